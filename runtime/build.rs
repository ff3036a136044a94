//! Compiles `kernels-src` and embeds the archive, with a launch function for every kernel.

fn main() {
    let built = tessera_compiler::embed::Build::new()
        .dir("../kernels-src")
        .out("kernels")
        .ptx()
        .compile();
    if let Err(error) = built {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
