use tessera_compiler::{diag::Sink, source::*, syntax};
fn main() {
    for name in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&name).unwrap();
        let mut map = SourceMap::default();
        let id = map.add(&name, &text);
        let mut sink = Sink::default();
        let t = std::time::Instant::now();
        let file = syntax::parse(&mut sink, id, &text);
        let first = t.elapsed();
        let t = std::time::Instant::now();
        let mut s2 = Sink::default();
        syntax::parse(&mut s2, id, &text);
        println!(
            "{name}: {} items, {first:?} then {:?}, {} lines",
            file.items.len(),
            t.elapsed(),
            text.lines().count()
        );
        for d in sink.finish() {
            let f = map.file(id);
            let (l, c) = f.line_col(d.span().start);
            println!(
                "{name}:{l}:{c}: {:?}[{}]: {}   <{}>",
                d.severity,
                d.code,
                d.message,
                map.text(d.span())
            );
            for h in d.helps {
                println!("    help: {} {:?}", h.text, h.edit);
            }
        }
        if std::env::var("AST").is_ok() {
            println!("{file:#?}");
        }
    }
}
