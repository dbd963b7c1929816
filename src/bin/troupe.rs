//! The `troupe` program: one file that is master, node, client, container shim and the built-in image's program.

use std::process::ExitCode;

use troupe::{
    app::{self, KubeletSettings, RegistryOptions, ResetOptions, RuntimeChoice, UpOptions},
    cli::{self, Invocation, RuntimeArg, UpArgs, default_data_dir},
    runtime::logs::LogLimits,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        // Before anything that could start a thread: a shim forks containers and has to be single-threaded.
        std::process::exit(troupe::runtime::native::shim_main(arguments));
    }
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if troupe::hello::is_meant(&args) {
        std::process::exit(troupe::hello::main(&args));
    }
    match cli::parse(std::env::args_os()) {
        Ok(Invocation::Demo(args)) => cli::demo::demo(&args),
        Ok(Invocation::Up(args)) => up(*args),
        Ok(Invocation::Reset(args)) => app::reset(&ResetOptions {
            data_dir: args.data_dir.unwrap_or_else(default_data_dir),
            yes: args.yes,
        }),
        Ok(Invocation::Client(client)) => cli::run(&client),
        Err(code) => code,
    }
}

fn up(args: UpArgs) -> ExitCode {
    let args = match args.complete() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("troupe: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match args.runtime.unwrap_or_default() {
        RuntimeArg::Auto => RuntimeChoice::Auto,
        RuntimeArg::Native => RuntimeChoice::Native,
        RuntimeArg::Sim => RuntimeChoice::Sim,
        RuntimeArg::Docker => RuntimeChoice::Docker,
    };
    let usual = UpOptions::new(args.data_dir());
    let log = usual.kubelet.container_log;
    app::up(UpOptions {
        api: args.api.unwrap_or(usual.api),
        links: args.listen,
        nodes: args.nodes.unwrap_or(usual.nodes),
        node_name: args.node_name,
        runtime,
        pod_network: args.pod_network,
        max_pods: args.max_pods.unwrap_or(usual.max_pods),
        api_names: args.api_names,
        crash_loop_initial: args.crash_loop_backoff,
        registries: RegistryOptions {
            insecure: args.insecure_registries,
            authorities: args.registry_authorities,
            credentials: args.registry_config,
        },
        manifests: args.manifests,
        kubelet: KubeletSettings {
            container_log: LogLimits {
                max_bytes: args.container_log_max_size.unwrap_or(log.max_bytes),
                max_files: args.container_log_max_files.unwrap_or(log.max_files),
            },
            eviction_hard: args.eviction_hard.unwrap_or_default(),
        },
        ..usual
    })
}
