//! One container of the shim's: root file system, start, exit.
//!
//! Owns: the overlay mount and libcontainer's use. Invariants: libcontainer runs in this one thread only; what it says
//! of a container's state is not asked (it guesses), `waitpid` is; the exit is on disk before anyone hears of it.

use std::{
    fs,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        resource::{Resource, getrlimit},
        wait::WaitStatus,
    },
    unistd::{Gid, Uid, pipe2},
};
use seccompiler::BpfProgram;

use super::{
    super::{
        caps,
        cgroup::Hierarchies,
        console::Console,
        profile,
        protocol::{Fault, Program},
        seccomp, spec,
        state::{self, ContainerDir, ContainerRecord, SandboxDir, SandboxRecord, Started},
        sys, user, userns,
        v1::Setting,
    },
    attach::Attached,
    executor::ProgramStart,
    log::Pump,
    mount_points,
    sandbox::{make_dir_in_root, read_in_root},
    users::Users,
    volumes,
};
use crate::runtime::{
    ContainerId, Exit,
    logs::{LogLimits, LogWriter},
};

/// What all containers of the pod share.
pub(super) struct Pod<'a> {
    pub dir: &'a SandboxDir,
    pub record: &'a SandboxRecord,
    pub hierarchies: &'a Hierarchies,
    /// The pid namespace that all of them enter.
    pub shared_pids: Option<&'a Path>,
    /// The node's mount namespace.
    pub node_mounts: &'a fs::File,
    /// Its own users, if it has any.
    pub users: Option<&'a Users>,
    /// The shim's own sockets, which are not for containers.
    pub sockets: Vec<RawFd>,
}

/// A container whose program runs.
pub(super) struct Running {
    pub pid: i32,
    pub log: LogWriter,
    pub pumps: Vec<Pump>,
    /// What it was started with: other programs in it get the same.
    pub plan: Plan,
    /// Those who listen and talk to it; its standard input stays open.
    pub attached: Attached,
}

impl Pod<'_> {
    /// Mounts the root file system and writes the spec; gives what the start needs.
    pub(super) fn create(&self, mut record: ContainerRecord, program: Program) -> Result<Plan, Fault> {
        let dir = self.dir.container(&record.id);
        program.restore(&mut record.config);
        mount_root(&dir, &record, self.dir.mount_points(), self.users)?;
        let asked = record.clone();
        let prepared = match self.users {
            Some(users) => users.stage(&dir, &mut record),
            None => volumes::prepare(&dir, &mut record, self.node_mounts),
        };
        let plan = prepared.and_then(|()| {
            let held = self.users.map_or_else(|| dir.held(), |users| users.container(&dir).held());
            let unmountable = mount_points::prepare(&dir.rootfs(), self.dir, &asked, &held).err();
            self.plan(&dir, &record).map(|plan| Plan { unmountable, ..plan })
        });
        plan.inspect_err(|_| self.remove(&record.id))
    }

    /// Resolves everything that depends on the image's files and writes the OCI spec.
    fn plan(&self, dir: &ContainerDir, record: &ContainerRecord) -> Result<Plan, Fault> {
        let rootfs = dir.rootfs();
        let arguments =
            spec::arguments(record).ok_or_else(|| Fault::Create("no command specified".to_owned()))?;
        let database =
            |name| read_in_root(&rootfs, name).map_err(Fault::system(format!("read the image's /{name}")));
        let (identity, seem) = user::resolve(
            &record.config.security,
            &record.image.user,
            &database("etc/passwd")?,
            &database("etc/group")?,
        )
        .map(user::here)
        .map_err(Fault::Create)?;
        if let Some(users) = self.users {
            users.check(&identity)?;
        }
        make_dir_in_root(&rootfs, &spec::working_dir(record)).map_err(|errno| {
            Fault::Create(format!("working directory {:?}: {errno}", spec::working_dir(record)))
        })?;

        let security = &record.config.security;
        let available = caps::available().map_err(Fault::system("read own capabilities"))?;
        let guard_devices = self.hierarchies.guard_devices();
        let capabilities = caps::for_container(
            &security.add_capabilities,
            &security.drop_capabilities,
            security.privileged,
            guard_devices,
            &available,
        )
        .map_err(Fault::Config)?;
        let filtered = !security.seccomp_unconfined && !security.privileged;
        let profile = security.seccomp_profile.as_deref().filter(|_| filtered);
        let filters = match profile.map(profile::load).transpose().map_err(Fault::Config)? {
            Some(filters) => filters,
            None if filtered => vec![
                seccomp::default_filter(&capabilities)
                    .map_err(Fault::system("compile the system call filter"))?,
            ],
            None => Vec::new(),
        };
        // A filter goes on either with no_new_privs or with CAP_SYS_ADMIN; in the latter case the capability has to
        // stay until then, and one to take it off the bounding set.
        let mut setup = capabilities.clone();
        if filtered && !spec::no_new_privileges(record) {
            setup.extend(["SYS_ADMIN".to_owned(), "SETPCAP".to_owned()]);
        }
        // To map the namespace's root to another number takes this one.
        if seem.is_some() {
            setup.insert("SETFCAP".to_owned());
        }
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let environment = spec::environment(record, &hostname.to_string_lossy(), &identity.home);
        let devices = if security.privileged { node_devices() } else { Vec::new() };
        let joined = record.config.join_pids.as_ref().map(|id| self.pids_of(id)).transpose()?;
        let users = self.users.map(Users::path);
        let seen = self.users.map_or(self.dir, Users::shown);
        let root = if users.is_some() { seen.container(&record.id).rootfs() } else { "rootfs".into() };
        let on_node = |id| self.users.map_or(id, |users| users.on_node(id));
        let facts = spec::Facts {
            identity: &identity,
            capabilities: &setup,
            root: &root,
            users: users.as_deref(),
            devices: &devices,
            shared_pids: joined.as_deref().or(self.shared_pids),
            cgroups: match self.hierarchies {
                Hierarchies::V1(_) if self.hierarchies.are_aside() => spec::Cgroups::Aside,
                Hierarchies::V1(_) => spec::Cgroups::Shown,
                Hierarchies::V2(_) => spec::Cgroups::Unified,
                Hierarchies::Missing => spec::Cgroups::None,
            },
            terminal_group: userns::has_group(spec::TERMINAL_GROUP),
            foreign_pids: self.record.config.host_pid && userns::inside(),
            swap_limit: self.hierarchies.swap_limit(),
            huge_page_limit: self.hierarchies.huge_page_limit(),
            max_open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard),
        };
        // What runs is the executor's, which has it from memory: the spec lies on disk, and secrets may be in this.
        let unsaid = ["program".to_owned()];
        spec::build(self.record, seen, record, &unsaid, &[], &facts)
            .map_err(|error| error.to_string())
            .and_then(|spec| spec.save(dir.spec()).map_err(|error| error.to_string()))
            .map_err(|cause| Fault::System { operation: "write the OCI spec".to_owned(), cause })?;
        // A user namespace gives all of them anew.
        let final_capabilities = (setup != capabilities || seem.is_some())
            .then(|| capabilities.iter().filter_map(|name| caps::parse(name)).collect());
        Ok(Plan {
            arguments,
            environment,
            uid: on_node(identity.uid),
            gid: on_node(identity.gid),
            privileged: security.privileged,
            limits: self.hierarchies.limits(self.record, record),
            oom_score_adj: record.config.oom_score_adj,
            seem,
            filters: Rc::new(filters),
            final_capabilities,
            log_path: record.config.log_path.clone(),
            log_limits: record.config.log_limits,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            tty: record.config.tty,
            unmountable: None,
        })
    }

    /// The pid namespace of a running container.
    fn pids_of(&self, id: &ContainerId) -> Result<PathBuf, Fault> {
        let dir = self.dir.container(id);
        match (dir.read_started(), dir.read_exit()) {
            (Some(started), None) => Ok(format!("/proc/{}/ns/pid", started.pid).into()),
            _ => Err(Fault::Create(format!("container {id}, whose processes it is to see, does not run"))),
        }
    }

    /// Runs the program of a container as planned when it was created; returns when its first instruction is next.
    pub(super) fn start(&self, id: &ContainerId, plan: Plan) -> Result<(Running, Started), Fault> {
        if let Some(cause) = plan.unmountable {
            return Err(Fault::Start(cause));
        }
        let dir = self.dir.container(id);
        let log = LogWriter::open(&plan.log_path, plan.log_limits)
            .map_err(Fault::system(format!("open log {}", plan.log_path.display())))?;
        let (verdict, failures) = pipe()?;
        let failures = Rc::new(failures);
        let executor = ProgramStart {
            sockets: self.sockets.clone(),
            ..plan.program_start(plan.arguments.clone(), plan.tty, Rc::clone(&failures))?
        };
        let builder = ContainerBuilder::new(id.0.clone(), SyscallType::default()).with_executor(executor);
        let (builder, ends) = plan.ends(builder, &dir)?;
        let cgroup = self.record.cgroup.join(&id.0);
        let prepare = || {
            self.hierarchies.make(&cgroup).map_err(Fault::system("make the container's cgroups"))?;
            self.hierarchies
                .show(&cgroup, &self.shown_groups(&dir), !plan.privileged)
                .map_err(Fault::system("show the container its cgroups"))?;
            let shown = self.users.map(Users::show).transpose()?;
            let stay = self.hierarchies.enter(&cgroup);
            Ok((shown, stay.map_err(Fault::system("enter the container's cgroups"))?))
        };
        let (shown, stay) = prepare().inspect_err(|_: &Fault| self.forget(id))?;
        let built = builder
            .with_root_path(self.dir.libcontainer())
            .and_then(ContainerBuilder::validate_id)
            .and_then(|builder| builder.as_init(&dir.0).with_systemd(false).with_detach(true).build());
        // Before there are limits: they are not for the shim.
        drop(stay);
        drop(shown);
        // The container's process has its own copy; with ours gone, its exec ends the pipe.
        drop(failures);
        let mut container = match built {
            Ok(container) => container,
            Err(error) => {
                let told = read_verdict(verdict);
                self.forget(id);
                // Until its program runs, a container's standard error carries libcontainer's own reports.
                tracing::error!(container = %id, reports = %ends.reports(), "a container cannot be started");
                return Err(Fault::Start(told.unwrap_or_else(|| chain(&error))));
            }
        };
        let pid = container.pid().map_or(0, nix::unistd::Pid::as_raw);
        sys::adjust_oom_score(pid, plan.oom_score_adj);
        let taken = ends.take(&plan);
        let failure = match self.hierarchies.limit(&cgroup, &plan.limits) {
            Ok(()) => {
                let started = container.start().map_err(|error| chain(&error));
                read_verdict(verdict).or(started.err())
            }
            Err(error) => Some(error.to_string()),
        };
        let lost = taken.as_ref().err().map(|fault| fault.clone().into_error().to_string());
        if let Some(failure) = failure.or(lost) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            self.forget(id);
            return Err(Fault::Start(failure));
        }
        let started =
            Started { pid, ticks: state::start_ticks(pid).unwrap_or_default(), started_ms: state::now_ms() };
        state::write(&dir.started(), &started).map_err(Fault::system("record the start"))?;
        self.hierarchies.hide(&self.shown_groups(&dir));
        let (pumps, attached) = taken?;
        Ok((Running { pid, log, pumps, plan, attached }, started))
    }

    /// Records how a container ended and clears what it leaves in the kernel, except its root file system.
    pub(super) fn ended(&self, id: &ContainerId, running: &mut Running, status: WaitStatus) -> Exit {
        for pump in running.pumps.drain(..) {
            pump.drain(&mut running.log, &mut running.attached);
        }
        let group = self.hierarchies.group(&self.record.cgroup.join(&id.0));
        let (code, signal) = code_of(status);
        let oom_killed = code != 0 && group.oom_kills() > 0;
        let exit = Exit { code, signal, oom_killed, finished_ms: state::now_ms(), unseen: false };
        if let Err(error) = state::write(&self.dir.container(id).exit(), &exit) {
            tracing::error!(container = %id, %error, "cannot record an exit; it is lost if this shim ends too");
        }
        self.forget(id);
        exit
    }

    /// Where a container finds its cgroups of version 1.
    fn shown_groups(&self, dir: &ContainerDir) -> PathBuf {
        self.users.map_or_else(|| dir.cgroups(), |users| users.container(dir).cgroups())
    }

    /// Removes a dead container's cgroup, and what libcontainer knew of it.
    fn forget(&self, id: &ContainerId) {
        let _ = state::remove_tree(&self.dir.libcontainer().join(&id.0));
        self.hierarchies.hide(&self.shown_groups(&self.dir.container(id)));
        let group = self.hierarchies.group(&self.record.cgroup.join(&id.0));
        group.kill();
        if let Err(error) = group.remove() {
            tracing::error!(container = %id, %error, "cannot remove a cgroup");
        }
    }

    /// Unmounts an ended container's root file system.
    pub(super) fn remove(&self, id: &ContainerId) {
        let dir = self.dir.container(id);
        if let Some(users) = self.users {
            users.clear(&dir);
        }
        unmount_root(&dir);
    }
}

/// The exit code that a status means, and the signal, if one ended it.
pub(super) fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (SIGNAL_BASE + signal as i32, Some(signal as i32)),
        _ => (UNKNOWN_CODE, None),
    }
}

/// Shells' convention for programs ended by a signal.
const SIGNAL_BASE: i32 = 128;
const UNKNOWN_CODE: i32 = 255;

/// What a container's start needs beyond its spec.
#[derive(Clone)]
pub(super) struct Plan {
    arguments: Vec<String>,
    environment: Vec<String>,
    /// As the node has them.
    uid: u32,
    gid: u32,
    privileged: bool,
    limits: Vec<Setting>,
    pub(super) oom_score_adj: i32,
    /// The user and group that it has to seem to be, by a namespace of its own.
    seem: Option<(u32, u32)>,
    /// To be put on in this order.
    filters: Rc<Vec<BpfProgram>>,
    final_capabilities: Option<::caps::CapsHashSet>,
    log_path: PathBuf,
    log_limits: LogLimits,
    stdin: bool,
    stdin_once: bool,
    tty: bool,
    /// What cannot be mounted; as with other runtimes that is told by the start.
    unmountable: Option<String>,
}

/// Our ends of a container's streams before its program runs.
enum Ends {
    Pipes { out: OwnedFd, err: OwnedFd, stdin: Option<OwnedFd> },
    Terminal(Console),
}

impl Ends {
    /// What libcontainer reported by way of the container's standard error.
    fn reports(self) -> String {
        match self {
            Ends::Pipes { err, .. } => rest_of(err),
            Ends::Terminal(_) => "on its terminal".to_owned(),
        }
    }

    /// Once the container's process is there.
    fn take(self, plan: &Plan) -> Result<(Vec<Pump>, Attached), Fault> {
        match self {
            Ends::Pipes { out, err, stdin } => {
                let attached = Attached::to_pipes(stdin, plan.stdin_once)?;
                Ok((vec![Pump::new(out, "stdout"), Pump::new(err, "stderr")], attached))
            }
            Ends::Terminal(console) => {
                let fault = || Fault::system("take the container's terminal");
                let master = console.take().map_err(fault())?;
                let read = master.try_clone().map_err(fault())?;
                Ok((vec![Pump::new(read, "stdout")], Attached::to_terminal(master, plan.stdin)?))
            }
        }
    }
}

impl Plan {
    /// Gives a container its streams.
    fn ends(&self, builder: ContainerBuilder, dir: &ContainerDir) -> Result<(ContainerBuilder, Ends), Fault> {
        if self.tty {
            let fault = || Fault::system("make a terminal's socket");
            let place = dir.0.join("terminal");
            // An earlier attempt may have left one.
            state::remove_tree(&place).and_then(|()| fs::create_dir(&place)).map_err(fault())?;
            let console = Console::listen(&place).map_err(fault())?;
            return Ok((builder.with_console_socket(Some(Console::path(&place))), Ends::Terminal(console)));
        }
        let (out, out_end) = self.output_pipe()?;
        let (err, err_end) = self.output_pipe()?;
        let mut builder = builder.with_stdout(out_end).with_stderr(err_end);
        let mut stdin = None;
        if self.stdin {
            let (read, write) = pipe()?;
            builder = builder.with_stdin(read);
            stdin = Some(write);
        }
        Ok((builder, Ends::Pipes { out, err, stdin }))
    }

    /// A pipe for a program's output: our end, which does not block, and the program's.
    pub(super) fn output_pipe(&self) -> Result<(OwnedFd, OwnedFd), Fault> {
        let (ours, theirs) = pipe()?;
        self.own_pipe(theirs.as_raw_fd()).map_err(Fault::system("own a pipe"))?;
        fcntl(ours.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(Fault::system("set up a pipe"))?;
        Ok((ours, theirs))
    }

    /// So that a program that is not root can open /dev/stdout.
    pub(super) fn own_pipe(&self, pipe: RawFd) -> nix::Result<()> {
        nix::unistd::fchown(pipe, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// How a program is started in the container of this plan, its own and others.
    pub(super) fn program_start(
        &self,
        arguments: Vec<String>,
        terminal: bool,
        failures: Rc<OwnedFd>,
    ) -> Result<ProgramStart, Fault> {
        let mut environment = self.environment.clone();
        if terminal && !environment.iter().any(|pair| pair.starts_with("TERM=")) {
            environment.push("TERM=xterm".to_owned());
        }
        Ok(ProgramStart {
            arguments,
            environment,
            seem: self.seem,
            filters: Rc::clone(&self.filters),
            final_capabilities: self.final_capabilities.clone(),
            failures,
            sockets: Vec::new(),
        })
    }
}

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Fault> {
    pipe2(OFlag::O_CLOEXEC).map_err(Fault::system("make a pipe"))
}

pub(super) fn read_record(dir: &ContainerDir) -> Result<ContainerRecord, Fault> {
    state::read(&dir.record()).map_err(Fault::system(format!("read {}", dir.record().display())))
}

/// Mounts the image's layers with a writable one on top and the layer of mount points below. Layers go by short links,
/// since the kernel takes no more than a page of options and none of their separators in names.
fn mount_root(
    dir: &ContainerDir,
    record: &ContainerRecord,
    mount_points: PathBuf,
    users: Option<&Users>,
) -> Result<(), Fault> {
    let fault = |what: &str| Fault::system(format!("{what} of container {}", record.id));
    for path in [dir.0.join("rootfs"), dir.0.join("layers")] {
        fs::create_dir_all(path).map_err(fault("make the directories"))?;
    }
    dir.make_writable().map_err(fault("make the directories"))?;
    symlink(dir.writable(), dir.0.join("disk")).map_err(fault("link the writable layer"))?;
    let layers: Vec<&PathBuf> = record.image.layers.iter().chain([&mount_points]).collect();
    let links: Vec<String> = (0..layers.len()).map(|layer| format!("layers/{layer}")).collect();
    for (link, layer) in links.iter().zip(layers) {
        match users {
            Some(users) => users.mount_layer(layer, &dir.0.join(link))?,
            None => symlink(layer, dir.0.join(link)).map_err(fault("link the layers"))?,
        }
    }
    if let Some(users) = users {
        users.own(&dir.writable().join("upper"))?;
    }
    let lower = links.join(":");
    // The shim has one thread, so its directory can be lent to the kernel for the look-up of relative paths.
    std::env::set_current_dir(&dir.0).map_err(fault("enter the directory"))?;
    let mut options = format!("lowerdir={lower},upperdir=disk/upper,workdir=disk/work");
    if userns::inside() {
        // Its marks in attributes that an ordinary user may write; images are unpacked with the same.
        options.push_str(",userxattr");
    }
    // Device nodes of an image must not open the node's devices: those a container may have are in /dev. `volatile`
    // spares a sync of the whole file system below at unmount; what is lost in a power cut would be thrown away anyway.
    let flags = MsFlags::MS_NODEV;
    let volatile = format!("{options},volatile");
    let overlay = |options: &str| mount(Some("overlay"), "rootfs", Some("overlay"), flags, Some(options));
    let mounted = overlay(&volatile).or_else(|_| overlay(&options));
    let _ = std::env::set_current_dir("/");
    mounted.map_err(Fault::system(format!("mount the root file system of container {}", record.id)))
}

fn unmount_root(dir: &ContainerDir) {
    for entry in fs::read_dir(dir.held()).into_iter().flatten().flatten() {
        // What is the node's too stays there.
        if volumes::part(&entry.path()).is_ok() {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
    }
    let _ = umount2(&dir.rootfs(), MntFlags::MNT_DETACH);
    // Of a pod with users of its own layers are mounts, too; links cannot be unmounted.
    for entry in fs::read_dir(dir.0.join("layers")).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
    }
}

/// Device nodes in the node's `/dev`, without those below it.
fn node_devices() -> Vec<spec::Device> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let kind = match metadata.file_type() {
                kind if kind.is_char_device() => 'c',
                kind if kind.is_block_device() => 'b',
                _ => return None,
            };
            let path = entry.path();
            if LIBCONTAINER_DEVICES.iter().any(|name| path == Path::new("/dev").join(name)) {
                return None;
            }
            let device = metadata.rdev();
            Some(spec::Device {
                path,
                kind,
                major: nix::sys::stat::major(device),
                minor: nix::sys::stat::minor(device),
                mode: metadata.mode() & 0o7777,
            })
        })
        .collect()
}

/// Nodes that every container gets from libcontainer.
const LIBCONTAINER_DEVICES: &[&str] =
    &["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];

/// What the container's process said went wrong; `None` when exec closed the pipe.
pub(super) fn read_verdict(pipe: OwnedFd) -> Option<String> {
    let mut poll = [libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    match sys::poll(&mut poll, VERDICT_MS) {
        Ok(0) | Err(_) => Some("the program did not start in time".to_owned()),
        Ok(_) => {
            let mut text = String::new();
            let read = fs::File::from(pipe).take(VERDICT_BYTES).read_to_string(&mut text);
            (read.is_ok() && !text.is_empty()).then_some(text)
        }
    }
}

/// What is in a pipe right now.
fn rest_of(pipe: OwnedFd) -> String {
    let mut text = vec![0; VERDICT_BYTES as usize];
    let _ = fcntl(pipe.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let count = fs::File::from(pipe).read(&mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).into_owned()
}

/// Between libcontainer's "go" and exec there are a dozen system calls; a machine that needs longer is stuck.
const VERDICT_MS: i32 = 10_000;
const VERDICT_BYTES: u64 = 4096;

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
