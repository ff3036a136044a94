fn main() {
    let built = tessera_compiler::embed::Build::new()
        .dir("kernels")
        .out("kernels")
        .compile();
    built.unwrap_or_else(|error| panic!("{error}"));
}
