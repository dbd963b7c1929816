//! The `troupe` program.

fn main() {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if troupe::hello::is_meant(&args) {
        std::process::exit(troupe::hello::main(&args));
    }
}
