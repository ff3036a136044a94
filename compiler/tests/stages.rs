//! What each stage makes of the smallest kernel that shows a mechanism: `stages/NAME.tl` names the stage in its first line, the text of
//! that stage is `stages/NAME.snap`. `INSTA_UPDATE=always cargo test --release --workspace --test stages` writes what is made now; read
//! the difference.
#![cfg(feature = "llvm")]

use std::path::Path;
use tessera_artifact::CpuVariant;
use tessera_compiler::diag::Sink;
use tessera_compiler::driver::{self, Dump};
use tessera_compiler::schedule::{self, picture::Picture};
use tessera_compiler::source::SourceMap;
use tessera_compiler::target::nvptx::SM_90A;

#[test]
fn stages_make_what_their_snapshots_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stages");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".tl")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for name in names {
        let text = std::fs::read_to_string(folder.join(format!("{name}.tl"))).expect("it is text");
        let made = stage_of(&name, &text);
        settings.bind(|| insta::assert_snapshot!(name, made));
    }
}

#[test]
fn the_page_on_tensor_cores_shows_the_plan_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is text");
    let program = read("tests/stages/plan_of_a_product.tl");
    let plan = stage_of("plan_of_a_product", &program);
    let page = read("../docs/tensor-cores.md");
    // Without the kernel's name.
    let shown = plan
        .split_once('\n')
        .expect("a plan has lines")
        .1
        .trim_end();
    assert!(page.contains(shown), "{shown}");
    let body = program.find("    reg acc").expect("the program has sums");
    let body = program[body..].trim_end().trim_end_matches('}').trim_end();
    assert!(page.contains(body), "{body}");
}

/// `tlc explain SOURCE --kernel NAME --svg docs/pictures` draws them anew.
#[test]
fn the_pages_show_pictures_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is text");
    let pictures = [
        (
            "compiler/tests/stages/plan_of_a_product.tl",
            "product",
            "stages_product_product",
        ),
        (
            "kernels-src",
            "expert_up_wide",
            "dsv4_experts_wide_expert_up_wide_BM_128",
        ),
    ];
    let page = read("docs/layouts.md");
    for (source, name, file) in pictures {
        let mut map = SourceMap::default();
        let source = root.join(source);
        let files = match source.is_dir() {
            true => std::fs::read_dir(&source)
                .expect("it can be listed")
                .map(|entry| entry.expect("it can be read").path())
                .collect(),
            false => vec![source],
        };
        for file in files {
            let text = std::fs::read_to_string(&file).expect("it is text");
            map.add(file.display().to_string(), text);
        }
        let mut sink = Sink::default();
        let parsed = driver::parse(&map, &mut sink);
        let kernels = driver::front(&parsed, &mut sink).expect("the sources compile");
        let kernel = (kernels.iter())
            .find(|k| k.name.ends_with(&format!("::{name}")))
            .expect("the kernel is there");
        let network = schedule::network(kernel, &SM_90A).expect("passes hold");
        let network = network.expect("it runs on tensor cores");
        let title = driver::manifest::entry(kernel, "").instance_name();
        let picture = Picture::new(&title, &network);
        let drawn = read(&format!("docs/pictures/{file}.svg"));
        assert!(
            drawn == picture.svg(),
            "docs/pictures/{file}.svg is not what is drawn now"
        );
        if name == "product" {
            for tile in &picture.tiles {
                for line in tile.to_string().lines() {
                    assert!(page.contains(line.trim_end()), "{line}");
                }
            }
        }
    }
}

#[test]
fn the_page_on_streaming_shows_the_plan_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is text");
    let program = read("tests/stages/rows_in_registers.tl");
    let plan = stage_of("rows_in_registers", &program);
    let page = read("../docs/streaming.md");
    for line in plan.lines().filter(|line| line.starts_with("tile ")) {
        assert!(page.contains(line), "{line}");
    }
    let body = program.find("    reg v").expect("the program has a tile");
    let body = program[body..].trim_end().trim_end_matches('}').trim_end();
    assert!(page.contains(body), "{body}");
}

fn stage_of(name: &str, text: &str) -> String {
    let first = text.lines().next().unwrap_or("");
    let stage = match first.strip_prefix("//@ stage: ") {
        Some("tile") => Dump::Tile,
        Some("tile-opt") => Dump::TileOptimised,
        Some("network") => Dump::Network,
        Some("plan") => Dump::Plan,
        Some("mlir") => Dump::Mlir,
        Some("ptx") => Dump::Ptx,
        _ => panic!("{name}: `{first}` names no stage"),
    };
    let mut map = SourceMap::default();
    map.add(format!("{name}.tl"), text.to_owned());
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let kernels = driver::front(&files, &mut sink);
    let Some([kernel]) = kernels.as_deref() else {
        panic!("{name}: {:#?}", sink.finish());
    };
    driver::dump(kernel, stage, CpuVariant::Avx2)
        .unwrap_or_else(|d| panic!("{name}: {}", d.message))
}
