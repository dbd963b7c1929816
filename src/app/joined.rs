//! `troupe node`: a node of a master elsewhere, in the foreground, until a signal.
//!
//! Owns: the order of joining (who am I, whose, with which token), and the process around the node: the ready line and
//! file, signals, the exit code. Invariants: a directory that has joined needs no token, and one that is given again is
//! not in the way; a node that the master sends away says so, says what to do, and ends with [`SENT_AWAY`]. It never joins
//! again by itself, which a service would otherwise do as long as its token lives: one in a file is for the first join
//! alone, and only one on the command line, which takes a person, is used after that.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Node, NodeConfig, RegistryOptions, RuntimeChoice, StartError,
    address::{of_itself_alone, towards, with_port},
    cluster::this_machine,
    install::{TOKEN_FILE, not_used},
    kubeconfig::no_room,
    membership::{Files, Membership, Record, Standing, Whereabouts, locked},
    node::MAX_PODS,
    notify,
    runtime::{choose, open_runtime},
    telemetry::init_tracing,
    up::{Asked, with_causes},
};
use crate::{
    actors::{kubelet::KubeletSettings, supervisor::Escalation},
    logic::supervision::Backoff,
    messages::wire::JoinRefusal,
    model::{NodeName, token::JoinToken},
    net::join::{JoinError, join},
    store::DataDir,
};

/// A master that does not answer by then is not there, as far as a first join is concerned. A node that has joined
/// waits for ever.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// The exit code of a node that the master does not want: starting it again is no use.
pub(super) const SENT_AWAY: u8 = 3;
/// Between two attempts.
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// What `troupe node` was asked for.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The master's address for links; needed once, and when it has changed.
    pub join: Option<String>,
    /// A join token; needed once.
    pub token: Option<String>,
    /// A file with one, for the first join alone.
    pub token_file: Option<PathBuf>,
    /// The node's name; this machine's when absent.
    pub name: Option<String>,
    /// Labels for the node; none leaves those that it had.
    pub labels: Vec<(String, String)>,
    /// The address other machines reach it at; that from which it reaches the master when absent.
    pub address: Option<IpAddr>,
    /// Which runtime; the one it was started with before when absent.
    pub runtime: Option<RuntimeChoice>,
    /// Where the CRI runtime listens.
    pub cri_socket: Option<String>,
    /// Most pods.
    pub max_pods: Option<u32>,
    /// The first delay of CrashLoopBackOff.
    pub crash_loop_initial: Option<Duration>,
    /// Where images come from.
    pub registries: RegistryOptions,
    /// A directory of manifests, whose pods it runs in any case.
    pub manifests: Option<PathBuf>,
    /// Its limits.
    pub kubelet: KubeletSettings,
}

/// Runs until a signal, or until the node cannot go on; says why on standard error.
pub fn node(options: &NodeOptions) -> ExitCode {
    init_tracing();
    match actix::System::new().block_on(run(options)) {
        Ok(code) => code,
        Err(Ended::Usage(text)) => {
            eprintln!("troupe: {text}");
            ExitCode::from(2)
        }
        Err(Ended::Failed(error)) => {
            eprintln!("troupe: {}", with_causes(&error));
            ExitCode::from(1)
        }
    }
}

/// Why there is no node.
enum Ended {
    /// The command line makes no sense: exit code 2.
    Usage(String),
    /// Exit code 1.
    Failed(StartError),
}

impl<E: Into<StartError>> From<E> for Ended {
    fn from(error: E) -> Ended {
        Ended::Failed(error.into())
    }
}

async fn run(options: &NodeOptions) -> Result<ExitCode, Ended> {
    let files = Files::of(&options.data_dir);
    // Before it is found to be in use: whoever reads that may stop the master.
    files.not_a_masters()?;
    let joined = files.record()?.is_some();
    let token = token(options.token.as_deref(), options.token_file.as_deref(), joined)?;
    if joined && options.token.is_none() && options.token_file.as_ref().is_some_and(|file| file.exists()) {
        eprintln!("troupe: {}", not_used(&options.data_dir));
    }
    let mut address = match &options.join {
        Some(text) => Some(with_port(text).map_err(|problem| Ended::Usage(format!("--join: {problem}")))?),
        None => None,
    };
    if let Some(record) = files.record()?.filter(|_| options.token.is_none() && options.token_file.is_some())
        && let Some(first) = address.take().filter(|first| *first != record.master)
    {
        eprintln!("troupe: {}", moved(&options.data_dir, &first, &record.master));
    }
    if let Some(text) = misuse(options, joined, address.is_some(), token.is_some()) {
        return Err(Ended::Usage(text));
    }
    if let Some(text) = options.address.and_then(of_itself_alone) {
        eprintln!("troupe: {text}");
    }
    let ready_file = options.data_dir.join("ready");
    // Held until the process ends: nobody else may use the directory.
    let _lock = DataDir::open(&options.data_dir)?;
    // Left by a process that was killed.
    let _ = std::fs::remove_file(&ready_file);
    let (record, proven) = match (files.record()?, address, token) {
        (Some(record), address, token) => joined_before(options, &files, record, address, token).await?,
        (None, Some(address), Some(token)) => (first_join(options, &files, address, &token).await?, true),
        (None, ..) => return Err(Ended::Usage("the node's record vanished".into())),
    };
    let record = remember(options, &files, record, proven)?;
    forget_token(&options.data_dir);
    serve(options, files, &record, &ready_file, joined).await
}

/// Why the address beside a token in a file is left alone: a service has both at each start, and the master may have moved since.
fn moved(data: &Path, first: &str, master: &str) -> String {
    let data = data.display();
    format!(
        "{data} has joined a cluster already, so --join {first} beside --token-file is not used; its master was last at {master}; \
         if it is not there: troupe node --data-dir {data} --join ADDR, once"
    )
}

/// The token to ask with. One in a file is there at each start of a service: it is for the first join alone.
fn token(word: Option<&str>, file: Option<&Path>, joined: bool) -> Result<Option<JoinToken>, Ended> {
    match (word, file) {
        (Some(text), _) => parsed_token("--token", text).map(Some),
        (None, Some(path)) if !joined => match std::fs::read_to_string(path) {
            Ok(text) => {
                if let Some(warning) = readable_by_others(path) {
                    eprintln!("troupe: {warning}");
                }
                parsed_token("--token-file", text.trim()).map(Some)
            }
            Err(error) => {
                Err(Ended::Usage(format!("--token-file: {} cannot be read: {error}", path.display())))
            }
        },
        (None, _) => Ok(None),
    }
}

/// That others on this machine can read a token's file, and join machines with what is in it.
fn readable_by_others(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o044 != 0).then(|| {
        format!(
            "--token-file: others on this machine can read {path}, and join machines until the token expires: chmod 600 {path}",
            path = path.display()
        )
    })
}

/// Removes the token that `troupe node install` wrote: the node has joined.
fn forget_token(data: &Path) {
    let path = data.join(TOKEN_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a join token that is not needed any more cannot be removed");
        }
        _ => {}
    }
}

fn parsed_token(option: &str, text: &str) -> Result<JoinToken, Ended> {
    text.parse::<JoinToken>().map_err(|error| Ended::Usage(format!("{option}: {error}")))
}

/// What is missing on the command line.
fn misuse(options: &NodeOptions, joined: bool, address: bool, token: bool) -> Option<String> {
    match (joined, address, token) {
        (true, ..) | (false, true, true) => None,
        (false, _, false) => Some(format!(
            "{} has joined no cluster yet: `troupe token create` on the master's machine prints the command for this one \
             (troupe node --join ADDR --token T)",
            options.data_dir.display()
        )),
        (false, false, true) => Some("--token needs the master's address beside: --join ADDR".into()),
    }
}

/// Becomes a node.
async fn first_join(
    options: &NodeOptions,
    files: &Files,
    address: String,
    token: &JoinToken,
) -> Result<Record, Ended> {
    let name = options.name.clone().unwrap_or_else(|| this_machine().to_string());
    // What cannot run anything here is told before the cluster has another node.
    let runtime = options.runtime.unwrap_or_default();
    choose(runtime, &options.data_dir, &[name.as_str().into()], options.cri_socket.as_deref())?;
    let until = Instant::now() + JOIN_WITHIN;
    let mut told = false;
    loop {
        let error = match ask(files, &address, token, &name).await {
            Ok(cluster) => {
                return Ok(Record { name, cluster, master: address, labels: BTreeMap::new(), runtime: None });
            }
            Err(error) => error,
        };
        let again = match &error {
            Asking::Join(JoinError::Unreachable { .. } | JoinError::Refused(JoinRefusal::Busy, _)) => true,
            Asking::Join(_) | Asking::Failed(_) => false,
            Asking::Lookup(_) => true,
        };
        if !again || Instant::now() >= until {
            return Err(error.ended(&address));
        }
        if !told {
            eprintln!("troupe: {}; trying on for {} s", error.text(), JOIN_WITHIN.as_secs());
            told = true;
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

/// A node that is one already: takes up a new address, and uses a token if that helps. Whether its master is known to be there.
async fn joined_before(
    options: &NodeOptions,
    files: &Files,
    mut record: Record,
    address: Option<String>,
    token: Option<JoinToken>,
) -> Result<(Record, bool), Ended> {
    let data = options.data_dir.display();
    if let Some(other) = options.name.as_ref().filter(|name| **name != record.name) {
        return Err(Ended::Failed(StartError::Refused(format!(
            "{data} is that of the node {} of the cluster {}: name another --data-dir for the node {other}",
            record.name, record.cluster
        ))));
    }
    if let Some(address) = address {
        record.master = address;
    }
    let mut proven = false;
    if let Some(token) = token {
        if token.pin != files.ca()?.public_key_pin()? {
            return Err(Ended::Failed(StartError::Refused(format!(
                "{data} is that of the node {} of the cluster {}, and the token is another cluster's: name another --data-dir, \
                 or end this node for good (troupe reset --data-dir {data})",
                record.name, record.cluster
            ))));
        }
        match ask(files, &record.master, &token, &record.name).await {
            Ok(cluster) => (record.cluster, proven) = (cluster, true),
            Err(Asking::Failed(error)) => return Err(Ended::Failed(error)),
            // It needs none as long as the master knows it, which its link will show.
            Err(error) => tracing::info!(why = error.text(), "the token is not used; linking as before"),
        }
    }
    Ok((record, proven))
}

/// What went wrong in asking for admission.
enum Asking {
    Lookup(String),
    Join(JoinError),
    Failed(StartError),
}

impl Asking {
    fn text(&self) -> String {
        match self {
            Asking::Lookup(text) => text.clone(),
            Asking::Join(error) => error.to_string(),
            Asking::Failed(error) => error.to_string(),
        }
    }

    fn ended(self, address: &str) -> Ended {
        Ended::Failed(match self {
            Asking::Failed(error) => error,
            Asking::Join(JoinError::Refused(_, text)) => {
                StartError::Refused(format!("the master at {address} refuses this node: {text}"))
            }
            other => StartError::Refused(other.text()),
        })
    }
}

/// Asks the master once; the cluster's name when this machine is admitted and everything is written.
async fn ask(files: &Files, address: &str, token: &JoinToken, name: &str) -> Result<String, Asking> {
    let key = files.key().map_err(Asking::Failed)?;
    let request = key.request().map_err(|error| Asking::Failed(error.into()))?;
    let master = resolve(address).await.map_err(Asking::Lookup)?;
    let admitted = join(master, token, name, request, None).await.map_err(Asking::Join)?;
    files.write_certificates(&admitted).map_err(Asking::Failed)?;
    Ok(admitted.cluster)
}

async fn resolve(address: &str) -> Result<SocketAddr, String> {
    let problem = |problem: String| format!("{address}: {problem}");
    let mut found = tokio::net::lookup_host(address).await.map_err(|error| problem(error.to_string()))?;
    found.next().ok_or_else(|| problem("the name has no address".into()))
}

/// Keeps what the next start is to need no flags for. Where the master is only when it is `proven` to be there: an address
/// that was mistyped once is not to be in the way of all later starts.
fn remember(
    options: &NodeOptions,
    files: &Files,
    mut record: Record,
    proven: bool,
) -> Result<Record, StartError> {
    if !options.labels.is_empty() {
        record.labels = options.labels.iter().cloned().collect();
    }
    if let Some(runtime) = options.runtime {
        record.runtime = Some(runtime.name().into());
    }
    let before = files.record()?;
    let mut kept = record.clone();
    if let Some(before) = before.as_ref().filter(|_| !proven) {
        kept.master.clone_from(&before.master);
    }
    if before.as_ref() != Some(&kept) {
        match files.write_record(&kept) {
            // What is new in it is told at each start, or found out again.
            Err(StartError::File { path, source }) if before.is_some() && no_room(&source) => {
                tracing::warn!(path = %path.display(), error = %source, "the node's record stays as it is");
            }
            written => written?,
        }
    }
    Ok(record)
}

/// There is a link: the master is where it was looked for.
fn keep_master(data: &Path, record: &Record) {
    let files = Files::of(data);
    let kept = match files.record() {
        Ok(Some(kept)) if kept.master == record.master => Ok(()),
        Ok(_) => files.write_record(record),
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        tracing::warn!(%error, master = record.master, "the master's address cannot be kept: --join is needed again");
    }
}

async fn serve(
    options: &NodeOptions,
    files: Files,
    record: &Record,
    ready_file: &Path,
    joined: bool,
) -> Result<ExitCode, Ended> {
    let login = files.login(record)?;
    let name = login.name.clone();
    let remembered = record.runtime.as_deref().and_then(RuntimeChoice::by_name);
    let runtime = options.runtime.or(remembered).unwrap_or_default();
    let data = &options.data_dir;
    let socket = options.cri_socket.as_deref();
    let runtime = choose(runtime, data, std::slice::from_ref(&name), socket)?;
    let runtime = open_runtime(runtime, data, &name, 0, options.registries.read()?, socket).await?;
    // Looked up once: while names cannot be, each time takes long.
    let master = match options.address {
        Some(_) => None,
        None => resolve(&record.master).await.ok(),
    };
    let address = options.address.or_else(|| towards(master?)).unwrap_or(Ipv4Addr::LOCALHOST.into());
    let (escalated, mut escalation) = tokio::sync::mpsc::unbounded_channel::<Escalation>();
    let mut crash_loop = Backoff::CRASH_LOOP;
    if let Some(initial) = options.crash_loop_initial {
        crash_loop.initial = initial;
        crash_loop.cap = crash_loop.cap.max(initial);
    }
    let config = NodeConfig {
        login,
        directory: data.join("nodes").join(name.as_str()),
        runtime,
        labels: record.labels.clone(),
        address,
        max_pods: options.max_pods.unwrap_or(MAX_PODS),
        manifests: options.manifests.clone(),
        crash_loop,
        registry_config: options.registries.credentials.clone(),
        settings: options.kubelet.clone(),
        sockets: None,
        host_ports: None,
        on_escalate: Arc::new(move |escalation| {
            // The process is about to end anyway when nobody listens.
            let _ = escalated.send(escalation);
        }),
    };
    let (member, mut standing) = Membership::new(files);
    // Which address that is may change while it runs, and so may the master's.
    let whereabouts = options.address.is_none().then(|| member.whereabouts());
    if let Some(of_master) = &whereabouts {
        *locked(of_master) = master;
    }
    let mut asked = Asked::listen()?;
    let node = Node::start_as(config, Some(Arc::new(member))).await?;
    if joined {
        // It does its work without the master, which may be away for long: nothing is to wait for that, such as the machine's boot.
        notify::ready(&apart(record));
    }
    let code = tokio::select! {
        () = asked.wait() => ExitCode::SUCCESS,
        Some(escalation) = escalation.recv() => {
            eprintln!("troupe: {} gave up: {}", escalation.supervisor, escalation.reason);
            ExitCode::from(1)
        }
        why = attend(&mut standing, record, data, ready_file, whereabouts.as_ref(), resolve) => {
            eprintln!("{}", sent_away(&name, record, data, &why));
            ExitCode::from(SENT_AWAY)
        }
    };
    notify::stopping();
    // It may never have been there.
    let _ = std::fs::remove_file(ready_file);
    node.say_goodbye().await;
    node.stop().await;
    Ok(code)
}

/// Says that the node is ready when it has a link, and looks then where the master is; ends when that sends it away.
async fn attend(
    standing: &mut watch::Receiver<Standing>,
    record: &Record,
    data: &Path,
    ready_file: &Path,
    whereabouts: Option<&Whereabouts>,
    look: impl AsyncFn(&str) -> Result<SocketAddr, String>,
) -> String {
    let mut said = false;
    loop {
        let now = standing.borrow_and_update().clone();
        let is_linked = now == Standing::Linked;
        match now {
            Standing::TurnedAway(why) => return why,
            Standing::Linked if !said => {
                said = true;
                keep_master(data, record);
                announce(record, ready_file);
            }
            Standing::Linked => notify::status(&linked(record)),
            Standing::Apart => notify::status(&apart(record)),
        }
        let looking = async {
            if let Some(of_master) = whereabouts.filter(|_| is_linked)
                && let Ok(found) = look(&record.master).await
            {
                *locked(of_master) = Some(found);
            }
            std::future::pending::<()>().await;
        };
        // A resolver may not answer for long; what becomes of the link does not wait for it.
        let changed = tokio::select! {
            changed = standing.changed() => changed,
            () = looking => Ok(()),
        };
        if changed.is_err() {
            // The node's actors are gone without it: they were stopped.
            return std::future::pending().await;
        }
    }
}

/// What a node says of its link while there is one.
fn linked(record: &Record) -> String {
    let Record { name, cluster, master, .. } = record;
    format!("ready: node {name} of cluster {cluster}, linked to the master at {master}")
}

/// And while there is none.
fn apart(record: &Record) -> String {
    let Record { name, cluster, master, .. } = record;
    format!(
        "node {name} of cluster {cluster}: no link to the master at {master}; what ran runs on, and it is tried on"
    )
}

fn announce(record: &Record, ready_file: &Path) {
    if let Err(error) = std::fs::write(ready_file, format!("{}\n", record.master)) {
        tracing::warn!(path = %ready_file.display(), %error, "cannot be written");
    }
    let mut out = std::io::stdout();
    let said = linked(record);
    // Nobody may read standard output; the file says the same.
    let _ = writeln!(out, "{said}");
    let _ = out.flush();
    notify::ready(&said);
}

fn sent_away(name: &NodeName, record: &Record, data: &Path, why: &str) -> String {
    format!(
        "troupe: the master at {master} sends this node away: {why}\n\
         to join again: troupe node --data-dir {data} --join {master} --token T  (`troupe token create` on the master's \
         machine makes a token)\n\
         to end its containers and forget the cluster: troupe reset --data-dir {data}  (until then they run on; node {name})",
        master = record.master,
        data = data.display(),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TOKEN: &str =
        "8rcmdg.tenwfs0vok4bymlh.c7130f5b7e4d4e0c36e1434dce75a75904dd61d3583149d085044699e10423c4";

    #[test]
    fn a_token_in_a_file_is_for_the_first_join_and_one_on_the_command_line_for_any() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(TOKEN_FILE);
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let used = |word, joined| token(word, Some(&file), joined).ok().unwrap().is_some();
        assert!(used(None, false));
        for (mode, warns) in [(0o644, true), (0o640, true), (0o600, false), (0o400, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(readable_by_others(&file).is_some(), warns, "{mode:o}");
        }
        assert!(!used(None, true), "a node that was deleted would come back by itself");
        assert!(used(Some(TOKEN), true), "a person says so");
        // It is gone as soon as it was used.
        forget_token(dir.path());
        assert!(!file.exists());
        forget_token(dir.path());
        assert!(!used(None, true));
        assert!(token(None, Some(&file), false).is_err(), "but the first time it has to be there");
    }

    #[tokio::test]
    async fn a_node_that_is_sent_away_ends_though_its_masters_name_is_still_being_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, mut standing) = watch::channel(Standing::Apart);
        let record = Record {
            name: "n1".into(),
            cluster: "c".into(),
            master: "master:6443".into(),
            labels: Default::default(),
            runtime: None,
        };
        let (looked, mut looks) = watch::channel(false);
        let whereabouts = Whereabouts::default();
        let look = async |_: &str| {
            looked.send_replace(true);
            std::future::pending().await
        };
        let ready = dir.path().join("ready");
        let attended = attend(&mut standing, &record, dir.path(), &ready, Some(&whereabouts), look);
        let sent_away = async {
            tell.send_replace(Standing::Linked);
            looks.wait_for(|looked| *looked).await.unwrap();
            tell.send_replace(Standing::TurnedAway("it was deleted".into()));
        };
        let both = async { tokio::join!(attended, sent_away).0 };
        let why = tokio::time::timeout(Duration::from_secs(10), both).await.expect("it ends");
        assert_eq!(why, "it was deleted");
        assert!(ready.exists());
    }
}
