//! The `troupe` program: one file that is master, node, client, container shim, network plugin and the built-in image's
//! program.

use std::{path::PathBuf, process::ExitCode};

use troupe::{
    app::{
        self, InstallOptions, KubeletSettings, NodeOptions, RegistryOptions, ResetOptions, Role,
        RuntimeChoice, UpOptions, rootless,
    },
    cli::{
        self, DemoArgs, InstallArgs, Invocation, MasterArgs, NodeArgs, ResetArgs, RuntimeArg, UpArgs,
        default_data_dir,
    },
    runtime::logs::LogLimits,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        // Before anything that could start a thread: a shim forks containers and has to be single-threaded.
        std::process::exit(troupe::runtime::native::shim_main(arguments));
    }
    if troupe::runtime::cri::is_cni(std::env::args_os().len()) {
        // Before anything that could start a thread: it goes into a pod's network namespace.
        std::process::exit(troupe::runtime::cri::cni_main());
    }
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if troupe::hello::is_meant(&args) {
        std::process::exit(troupe::hello::main(&args));
    }
    match cli::parse(std::env::args_os()) {
        Ok(Invocation::Demo(args)) => demo(&args),
        Ok(Invocation::Up(args)) => up(*args),
        Ok(Invocation::Master(args)) => master(*args),
        Ok(Invocation::Node(args)) => node(*args),
        Ok(Invocation::Reset(args)) => reset(args),
        Ok(Invocation::Restore(args)) => app::restore(&app::RestoreOptions {
            file: args.file,
            data_dir: args.data_dir.unwrap_or_else(default_data_dir),
        }),
        Ok(Invocation::Client(client)) => cli::run(&client),
        Err(code) => code,
    }
}

/// Root is root in its own namespaces, too, so all that is asked of the user comes before they are entered.
fn demo(args: &DemoArgs) -> ExitCode {
    let mut note = None;
    if !args.simulate && !nix::unistd::geteuid().is_root() {
        match rootless::possible() {
            Ok(()) => {
                if let Err(error) = rootless::enter_for_a_while() {
                    return failed(&error);
                }
                note = rootless::lacks().map(|lacks| {
                    format!(
                        "This is told in namespaces of your own, which end with it: addresses are reached from within. As an \
                         ordinary user: {lacks}."
                    )
                });
            }
            Err(why) => note = Some(why),
        }
    }
    cli::demo::demo(args, note.as_deref())
}

fn reset(args: ResetArgs) -> ExitCode {
    let data_dir = args.data_dir.unwrap_or_else(default_data_dir);
    match rootless::enter_to_reset(&data_dir) {
        Ok(()) => app::reset(&ResetOptions { data_dir, yes: args.yes }),
        Err(error) => failed(&error),
    }
}

fn failed(error: &app::StartError) -> ExitCode {
    eprintln!("troupe: {error}");
    ExitCode::FAILURE
}

fn up(args: UpArgs) -> ExitCode {
    let args = match args.complete() {
        Ok(args) => args,
        Err(error) => return misused(&error),
    };
    let runtime = runtime(args.runtime.unwrap_or_default());
    let usual = UpOptions::new(args.data_dir());
    let api = args.api.unwrap_or(usual.api);
    let rootless = match rootless::wanted(runtime, &usual.data_dir) {
        Ok(false) => None,
        Ok(true) => match rootless::enter(&usual.data_dir, api, args.listen) {
            Ok(entered) => Some(entered),
            Err(error) => return failed(&error),
        },
        Err(error) => return failed(&error),
    };
    app::raise_open_files();
    let (registries, kubelet) = (registries(&args), kubelet(&args));
    let options = UpOptions {
        api,
        links: args.listen,
        nodes: args.nodes.unwrap_or(usual.nodes),
        node_name: args.node_name,
        runtime,
        cri_socket: args.cri_socket,
        pod_network: args.pod_network,
        max_pods: args.max_pods.unwrap_or(usual.max_pods),
        api_names: args.api_names,
        crash_loop_initial: args.crash_loop_backoff,
        registries,
        kubelet,
        manifests: args.manifests,
        no_image_sharing: args.no_image_sharing,
        ..usual
    };
    app::up(options, rootless)
}

/// A master runs no containers, so it needs nothing of what an ordinary user lacks.
fn master(args: MasterArgs) -> ExitCode {
    let (args, to_install) = args.split();
    let node_certificates = args.node_certificate_life.unwrap_or(app::CERTIFICATES);
    let certificates = args.certificate_life.unwrap_or(app::CERTIFICATES);
    let args = match args.complete() {
        Ok(args) => args,
        Err(error) => return misused(&error),
    };
    if let Some(how) = to_install {
        return install(Role::Master, args.data_dir(), None, how);
    }
    app::raise_open_files();
    let usual = UpOptions::master(args.data_dir());
    let options = UpOptions {
        api: args.api.unwrap_or(usual.api),
        links: args.listen.or(usual.links),
        pod_network: args.pod_network,
        api_names: args.api_names,
        node_certificates,
        certificates,
        no_image_sharing: args.no_image_sharing,
        ..usual
    };
    app::up(options, None)
}

/// Writes a unit that starts us as we were asked to be installed.
fn install(role: Role, data_dir: PathBuf, token: Option<String>, how: InstallArgs) -> ExitCode {
    // `troupe ROLE install`, then the options.
    let words = std::env::args_os().skip(3).map(|word| word.to_string_lossy().into_owned()).collect();
    let InstallArgs { print, unit_dir } = how;
    app::install(&InstallOptions { role, words, data_dir, token, print, unit_dir })
}

fn node(args: NodeArgs) -> ExitCode {
    let (args, to_install) = args.split();
    let shared = match args.complete() {
        Ok(shared) => shared,
        Err(error) => return misused(&error),
    };
    if let Some(how) = to_install {
        return install(Role::Node, shared.data_dir(), args.token, how);
    }
    app::raise_open_files();
    app::node(&NodeOptions {
        data_dir: shared.data_dir(),
        join: args.join,
        token: args.token,
        token_file: args.token_file,
        name: args.name,
        labels: args.labels,
        address: args.address,
        runtime: shared.runtime.map(runtime),
        registries: registries(&shared),
        kubelet: kubelet(&shared),
        cri_socket: shared.cri_socket,
        max_pods: shared.max_pods,
        crash_loop_initial: shared.crash_loop_backoff,
        manifests: shared.manifests,
    })
}

fn misused(error: &cli::CliError) -> ExitCode {
    eprintln!("troupe: {error}");
    ExitCode::from(2)
}

fn runtime(name: RuntimeArg) -> RuntimeChoice {
    match name {
        RuntimeArg::Auto => RuntimeChoice::Auto,
        RuntimeArg::Native => RuntimeChoice::Native,
        RuntimeArg::Sim => RuntimeChoice::Sim,
        RuntimeArg::Docker => RuntimeChoice::Docker,
        RuntimeArg::Cri => RuntimeChoice::Cri,
    }
}

fn registries(args: &UpArgs) -> RegistryOptions {
    RegistryOptions {
        insecure: args.insecure_registries.clone(),
        authorities: args.registry_authorities.clone(),
        credentials: args.registry_config.clone(),
    }
}

fn kubelet(args: &UpArgs) -> KubeletSettings {
    let log = KubeletSettings::default().container_log;
    KubeletSettings {
        container_log: LogLimits {
            max_bytes: args.container_log_max_size.unwrap_or(log.max_bytes),
            max_files: args.container_log_max_files.unwrap_or(log.max_files),
        },
        eviction_hard: args.eviction_hard.clone().unwrap_or_default(),
        eviction_transition: args.eviction_pressure_transition_period,
        no_image_sharing: args.no_image_sharing,
    }
}
