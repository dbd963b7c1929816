//! The connection to a CRI runtime, and its errors in the trait's words.
//!
//! Owns: where the socket is; one HTTP/2 connection for all calls, made anew when it breaks; how long a call may take.
//! Invariant: a call that was sent is not sent again: most change something.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;
use tokio::{net::UnixStream, sync::Mutex};

use super::proto;
use crate::runtime::{
    RuntimeError,
    grpc::{self, Call, Messages, Reply},
};

/// Where containerd listens unless it is told otherwise.
pub const USUAL_SOCKET: &str = "/run/containerd/containerd.sock";
/// The interface's own limit of a message.
const LONGEST: usize = 16 << 20;
/// For calls that only look, or end something small.
pub(super) const SHORT: Duration = Duration::from_secs(60);
/// For calls that make something: the slowest is a sandbox whose image has to be pulled first. Kubernetes gives four
/// minutes.
pub(super) const LONG: Duration = Duration::from_secs(240);
/// Of a connection and of a stream: large enough that a long list comes at once.
const WINDOW: u32 = 1 << 20;

const RUNTIME: &str = "/runtime.v1.RuntimeService/";
const IMAGES: &str = "/runtime.v1.ImageService/";
/// containerd's own services keep each client's things apart; what CRI has is here.
const NAMESPACE: &[(&str, &str)] = &[("containerd-namespace", "k8s.io")];

/// The socket of an endpoint as `crictl` and Kubernetes write it, `unix:///path`, or of a plain path.
///
/// # Errors
/// When it names something else than a socket of this machine.
pub fn socket(endpoint: &str) -> Result<PathBuf, RuntimeError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(RuntimeError::Config(format!(
        "the CRI socket is {endpoint:?}, but the runtime has to be on this machine: name it as /path or unix:///path"
    )))
}

pub(super) struct Client {
    socket: PathBuf,
    connection: Mutex<Option<SendRequest<Bytes>>>,
}

/// What went wrong with a call.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The runtime answered so: gRPC's code and the text.
    Refused(u32, String),
    /// It did not answer.
    Broken(String),
    /// It did not answer in time.
    Late(Duration),
}

impl Fault {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Fault::Refused(grpc::NOT_FOUND, _))
    }

    /// A program's end takes containerd's shim with it, and who is about to end it finds nobody to ask.
    fn is_of_an_ended_shim(&self) -> bool {
        self.text().contains("ttrpc: closed")
    }

    pub(super) fn is_unimplemented(&self) -> bool {
        matches!(self, Fault::Refused(grpc::UNIMPLEMENTED, _))
    }

    pub(super) fn text(&self) -> String {
        match self {
            Fault::Refused(_, text) => text.trim().to_owned(),
            Fault::Broken(text) => text.clone(),
            Fault::Late(time) => format!("no answer within {}s", time.as_secs()),
        }
    }

    pub(super) fn of(self, operation: impl Into<String>) -> RuntimeError {
        RuntimeError::System { operation: operation.into(), cause: self.text() }
    }
}

/// The error of an operation.
pub(super) fn fault(operation: impl Into<String>) -> impl FnOnce(Fault) -> RuntimeError {
    move |fault| fault.of(operation)
}

/// What was ended before, or never was, is ended.
pub(super) fn ended(result: Result<proto::Empty, Fault>) -> Result<(), Fault> {
    match result {
        Err(fault) if fault.is_absent() || fault.is_of_an_ended_shim() => Ok(()),
        other => other.map(drop),
    }
}

impl Client {
    /// A client and what the runtime says of itself: name and version.
    ///
    /// # Errors
    /// What is wrong with the socket, and what to do.
    pub(super) async fn connect(socket: &Path) -> Result<(Client, String, String), RuntimeError> {
        let client = Client { socket: socket.to_owned(), connection: Mutex::default() };
        let asked =
            client.runtime("Version", &proto::VersionRequest { version: "v1".to_owned() }, SHORT).await;
        let version: proto::VersionResponse = asked.map_err(|fault| unreachable(socket, &fault))?;
        Ok((client, version.runtime_name, version.runtime_version))
    }

    /// A method of CRI's runtime service.
    pub(super) async fn runtime<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        time: Duration,
    ) -> Result<A, Fault> {
        self.call(&format!("{RUNTIME}{method}"), &[], request, time).await
    }

    /// A method of CRI's image service.
    pub(super) async fn image<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        time: Duration,
    ) -> Result<A, Fault> {
        self.call(&format!("{IMAGES}{method}"), &[], request, time).await
    }

    /// A method of one of containerd's own services; other runtimes do not have it.
    pub(super) async fn containerd<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, Fault> {
        self.call(&format!("/containerd.services.{method}"), NAMESPACE, request, SHORT).await
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        metadata: &[(&'static str, &'static str)],
        request: &Q,
        time: Duration,
    ) -> Result<A, Fault> {
        let answer = async {
            let connection = self.connection().await?;
            let message = request.encode_to_vec();
            grpc::unary(connection, call(path, metadata), &message).await.map_err(Fault::Broken)
        };
        let reply = tokio::time::timeout(time, answer).await.map_err(|_| Fault::Late(time))??;
        match reply {
            Reply { code: 0, message, .. } => A::decode(message).map_err(|e| Fault::Broken(e.to_string())),
            Reply { code, text, .. } => Err(Fault::Refused(code, text)),
        }
    }

    /// Begins a call whose answer is a stream: of the interface itself, or of one of containerd's own services.
    pub(super) async fn stream<Q: Message>(&self, path: &str, request: &Q) -> Result<Messages, Fault> {
        let connection = self.connection().await?;
        let message = request.encode_to_vec();
        grpc::begin(connection, call(path, NAMESPACE), &message).await.map_err(Fault::Broken)
    }

    /// The connection, made when there is none that works.
    async fn connection(&self) -> Result<SendRequest<Bytes>, Fault> {
        let mut connection = self.connection.lock().await;
        if let Some(made) = connection.take()
            && let Ok(ready) = made.ready().await
        {
            *connection = Some(ready.clone());
            return Ok(ready);
        }
        let broken = |error: &dyn std::error::Error| Fault::Broken(error.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| broken(&error))?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (made, driver) = builder.handshake(stream).await.map_err(|error| broken(&error))?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told the same.
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to the container runtime has ended");
            }
        });
        *connection = Some(made.clone());
        Ok(made)
    }
}

fn call<'a>(path: &'a str, metadata: &'a [(&'static str, &'static str)]) -> Call<'a> {
    Call { authority: "localhost", path, user_agent: "troupe", metadata, longest: LONGEST }
}

/// Says what is wrong with a socket and what to do.
pub(super) fn unreachable(socket: &Path, fault: &Fault) -> RuntimeError {
    let cause = fault.text();
    let advice = if !socket.exists() {
        "there is no such socket: install containerd and start it (systemctl start containerd), or name another with \
         --cri-socket"
    } else if cause.contains("ermission denied") {
        "run as root"
    } else if fault.is_unimplemented() {
        "this program serves no CRI: in containerd's config.toml, `cri` must not be among the disabled_plugins"
    } else {
        "is the container runtime running? (systemctl status containerd)"
    };
    RuntimeError::System {
        operation: format!("reach the container runtime at {}", socket.display()),
        cause: format!("{cause}; {advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_taken() {
        for endpoint in ["unix:///run/c.sock", "/run/c.sock"] {
            assert_eq!(socket(endpoint).unwrap(), Path::new("/run/c.sock"));
        }
        for other in ["tcp://10.0.0.1:1", "c.sock", ""] {
            assert!(socket(other).unwrap_err().to_string().contains("unix://"), "{other}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_does_not_answer_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("c.sock");
        let missing = Client::connect(&socket).await.err().unwrap().to_string();
        assert!(missing.contains("c.sock") && missing.contains("--cri-socket"), "{missing}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let dead = Client::connect(&socket).await.err().unwrap().to_string();
        assert!(dead.contains("refused") && dead.contains("is the container runtime running"), "{dead}");
    }
}
