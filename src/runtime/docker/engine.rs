//! The connection to the engine, and its errors in the trait's words.
//!
//! Owns: where the socket is, the API version that both sides know, what an error of the engine means.

use std::path::{Path, PathBuf};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};

use crate::runtime::{RuntimeError, native::sets_mounts_recursively};

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const USUAL_SOCKET: &str = "/var/run/docker.sock";
/// For the beginning of an answer; the slowest is the creation of a container on a busy disk.
const TIMEOUT_S: u64 = 120;

/// The engine's socket: `DOCKER_HOST`'s, else the usual one.
///
/// # Errors
/// When `DOCKER_HOST` names something else than a socket of this machine.
pub fn socket() -> Result<PathBuf, RuntimeError> {
    named(std::env::var("DOCKER_HOST").ok().as_deref())
}

fn named(host: Option<&str>) -> Result<PathBuf, RuntimeError> {
    match host.filter(|host| !host.is_empty()) {
        None => Ok(PathBuf::from(USUAL_SOCKET)),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(RuntimeError::Config(format!(
                "DOCKER_HOST is {host:?}, but the engine has to be on this machine: pods' volumes and logs are its \
                 files; set it to unix:///path/to/docker.sock or unset it"
            ))),
        },
    }
}

/// Connects: the client, and the engine's version.
pub(super) async fn connect(socket: &Path) -> Result<(Docker, String), RuntimeError> {
    let fault = |error: Error| unreachable(socket, &error);
    let docker = Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT_S, API_DEFAULT_VERSION)
        .map_err(fault)?;
    let docker = docker.negotiate_version().await.map_err(fault)?;
    let version = docker.version().await.map_err(fault)?.version.unwrap_or_default();
    Ok((docker, version))
}

/// Whether an engine (version 25 and newer, with Linux 5.12) makes mounts read-only all the way down.
pub(super) fn mounts_recursively(docker: &Docker) -> bool {
    let version = docker.client_version();
    (version.major_version, version.minor_version) >= (1, 44) && sets_mounts_recursively()
}

/// Says what is wrong with a socket and what to do.
pub(super) fn unreachable(socket: &Path, error: &Error) -> RuntimeError {
    let cause = causes(error);
    let advice = if !socket.exists() {
        "there is no such socket: install docker and start it (systemctl start docker), or name its socket with \
         DOCKER_HOST=unix:///path"
    } else if cause.contains("ermission denied") {
        "run as root, or as a user of the group docker"
    } else {
        "is dockerd running? (systemctl status docker)"
    };
    RuntimeError::System {
        operation: format!("reach the docker engine at {}", socket.display()),
        cause: format!("{cause}; {advice}"),
    }
}

/// An error with what is behind it, once each.
fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// The engine's refusal of an operation.
pub(super) fn fault(operation: impl Into<String>) -> impl FnOnce(Error) -> RuntimeError {
    let operation = operation.into();
    move |error| RuntimeError::System { operation, cause: message(&error) }
}

/// What the engine says, without the wrapping.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => causes(other),
    }
}

/// The HTTP status, if the engine answered with one.
pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// There is no such thing.
pub(super) fn is_absent(error: &Error) -> bool {
    status(error) == Some(404)
}

/// What ends something found it ended, or gone, or being removed.
pub(super) fn is_over(error: &Error) -> bool {
    matches!(status(error), Some(304 | 404 | 409))
}

/// An end that was there already is an end.
pub(super) fn ended(result: Result<(), Error>) -> Result<(), Error> {
    result.or_else(|error| if is_over(&error) { Ok(()) } else { Err(error) })
}

/// The sandbox that a container is to be in does not run any more. Told when it is made or, most often, when it is started.
pub(super) fn is_without_sandbox(error: &Error) -> bool {
    message(error).contains("non running container")
}

/// Why a program does not start: the engine's text from where it speaks of the program.
pub(super) fn start_error(error: &Error) -> RuntimeError {
    let text = message(error);
    let program = ["exec: ", "chdir to cwd", "error mounting"]
        .iter()
        .find_map(|words| Some(&text[text.find(words)?..]));
    RuntimeError::Start(program.unwrap_or(&text).trim_end_matches(": unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_taken() {
        assert_eq!(named(None).unwrap(), Path::new(USUAL_SOCKET));
        assert_eq!(named(Some("")).unwrap(), Path::new(USUAL_SOCKET));
        assert_eq!(named(Some("unix:///run/d.sock")).unwrap(), Path::new("/run/d.sock"));
        for other in ["tcp://10.0.0.1:2375", "ssh://host", "unix://relative"] {
            let error = named(Some(other)).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("unset"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_does_not_answer_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("d.sock");
        let missing = connect(&socket).await.unwrap_err().to_string();
        assert!(missing.contains("d.sock") && missing.contains("systemctl start docker"), "{missing}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let dead = connect(&socket).await.unwrap_err().to_string();
        assert!(dead.contains("refused") && dead.contains("is dockerd running"), "{dead}");
    }

    #[test]
    fn start_errors_say_what_is_wrong_with_the_program() {
        let message = "failed to create shim: OCI runtime create failed: container_linux.go:380: starting container \
                       process caused: exec: \"/no/such\": stat /no/such: no such file or directory: unknown";
        let error =
            start_error(&Error::DockerResponseServerError { status_code: 400, message: message.into() });
        assert_eq!(
            error.to_string(),
            "failed to start: exec: \"/no/such\": stat /no/such: no such file or directory"
        );
    }
}
