//! The `troupe` program.

fn main() {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if troupe::hello::is_meant(&args) {
        std::process::exit(troupe::hello::main(&args));
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        // Before anything that could start a thread: a shim forks containers and has to be single-threaded.
        std::process::exit(troupe::runtime::native::shim_main(arguments));
    }
}
