//! What goes wrong on the command line, and how it is told: in kubectl's words where kubectl has some.
//!
//! Owns: [`CliError`], its text and its exit code. Invariant: an error is printed once, on standard error, and says
//! what to do next where a person can do something.

use std::{fmt::Write as _, path::PathBuf};

use serde_json::Value;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The server refused: its `Status` object.
    #[error("{}", message(.0))]
    Status(Box<Value>),
    /// No server answered.
    #[error("{cause}")]
    Connect {
        /// `HOST:PORT`.
        host: String,
        /// What the connection said.
        cause: String,
    },
    /// The server's answer broke off or was not what it should be.
    #[error("{path}: {cause}")]
    Answer {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// No kubeconfig anywhere.
    #[error("no cluster: there is no {}; start one with `troupe up`, or name one with --kubeconfig or $KUBECONFIG", .0.display())]
    NoCluster(PathBuf),
    /// The machine is a node, on which there are no credentials of administrators.
    #[error(
        "this machine is the node {node} of the master at {master}: run this there, or copy that master's admin.kubeconfig and \
         name it with --kubeconfig or $KUBECONFIG"
    )]
    OnANode {
        /// Its name.
        node: String,
        /// Where the master's links are.
        master: String,
    },
    /// A kubeconfig that cannot be used.
    #[error("kubeconfig {}: {cause}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A file.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Anything else, as a sentence.
    #[error("{0}")]
    Failed(String),
    /// The command does not make sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Several at once, one for each object.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Many(Vec<CliError>),
    /// A program that was run in a container failed with this code: exit code the same.
    #[error("command terminated with exit code {0}")]
    Program(u8),
    /// Everything was said already.
    #[error("failed")]
    Silent,
    /// Whoever read our output has gone: nothing to say, nothing to do.
    #[error("nobody reads the output")]
    OutputClosed,
}

fn message(status: &Value) -> &str {
    status["message"].as_str().filter(|m| !m.is_empty()).unwrap_or("unknown")
}

/// Shorthand of this room.
pub type Outcome<T = ()> = Result<T, CliError>;

impl CliError {
    /// A sentence as an error.
    pub fn failed(text: impl Into<String>) -> CliError {
        CliError::Failed(text.into())
    }

    /// Wrong usage.
    pub fn usage(text: impl Into<String>) -> CliError {
        CliError::Usage(text.into())
    }

    /// The reason of the server's refusal, `NotFound`, if it is one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            CliError::Status(status) => status["reason"].as_str(),
            _ => None,
        }
    }

    /// Whether the server said that there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.reason() == Some("NotFound")
    }

    /// Whether the server said that the object changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.reason() == Some("Conflict")
    }

    /// None when it is empty, the one when there is one, else all.
    pub fn all(mut errors: Vec<CliError>) -> Outcome {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(CliError::Many(errors)),
        }
    }

    /// Says what was done to what, as kubectl: `error when creating "x.yaml": …`.
    #[must_use]
    pub fn while_(self, doing: &str, source: &str) -> CliError {
        let told = |text: &str| format!("error when {doing} {source:?}: {text}");
        match self {
            CliError::Status(mut status) => {
                status["message"] = told(message(&status)).into();
                CliError::Status(status)
            }
            CliError::Failed(text) => CliError::Failed(told(&text)),
            other => other,
        }
    }

    /// Ready for standard error, without a newline at its end.
    pub fn text(&self) -> String {
        match self {
            CliError::Status(status) => status_text(status),
            CliError::Connect { host, cause } if cause.contains("refused") => {
                format!(
                    "The connection to the server {host} was refused - did you specify the right host or port?"
                )
            }
            CliError::Connect { cause, .. } => format!("Unable to connect to the server: {cause}"),
            CliError::Many(errors) => errors.iter().map(CliError::text).collect::<Vec<_>>().join("\n"),
            CliError::Program(_) => self.to_string(),
            CliError::Silent | CliError::OutputClosed => String::new(),
            other => format!("error: {other}"),
        }
    }

    /// 1 failed, 2 wrong usage, else a program's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_) => 2,
            CliError::Program(code) => *code,
            _ => 1,
        }
    }
}

fn status_text(status: &Value) -> String {
    let text = message(status);
    match status["reason"].as_str().filter(|r| !r.is_empty()) {
        Some("Invalid") => invalid_text(status, text),
        Some("Unauthorized") => format!("error: You must be logged in to the server ({text})"),
        Some(reason) => format!("Error from server ({reason}): {text}"),
        None => format!("Error from server: {text}"),
    }
}

/// As kubectl: the object, then its faults, one a line when there are several.
fn invalid_text(status: &Value, text: &str) -> String {
    let details = &status["details"];
    let causes: Vec<&Value> = details["causes"].as_array().into_iter().flatten().collect();
    let (kind, name) =
        (details["kind"].as_str().unwrap_or_default(), details["name"].as_str().unwrap_or_default());
    let mut out = if kind.is_empty() && name.is_empty() {
        "The request is invalid".to_owned()
    } else {
        format!("The {kind} {name:?} is invalid")
    };
    let mut faults: Vec<String> = Vec::new();
    for cause in &causes {
        let field = cause["field"].as_str().unwrap_or_default();
        let fault = format!("{field}: {}", cause["message"].as_str().unwrap_or_default());
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    match faults.as_slice() {
        [] if kind.is_empty() && name.is_empty() => {
            let _ = write!(out, ": {text}");
        }
        [] => {}
        [one] => {
            let _ = write!(out, ": {one}");
        }
        several => {
            out.push_str(": ");
            for fault in several {
                let _ = write!(out, "\n* {fault}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(status: Value, text: &str) {
        assert_eq!(CliError::Status(Box::new(status)).text(), text);
    }

    #[test]
    fn errors_are_told_as_kubectl_tells_them() {
        check(
            json!({"reason": "NotFound", "message": "pods \"x\" not found"}),
            "Error from server (NotFound): pods \"x\" not found",
        );
        check(json!({"message": "boom"}), "Error from server: boom");
        check(
            json!({"reason": "Unauthorized", "message": "Unauthorized"}),
            "error: You must be logged in to the server (Unauthorized)",
        );
        let cause = |field: &str| json!({"field": field, "message": "Required value"});
        check(
            json!({"reason": "Invalid", "details": {"kind": "Pod", "name": "web", "causes": [cause("a")]}}),
            "The Pod \"web\" is invalid: a: Required value",
        );
        check(
            json!({"reason": "Invalid", "details": {"kind": "Pod", "name": "web",
                "causes": [cause("a"), cause("b"), cause("a")]}}),
            "The Pod \"web\" is invalid: \n* a: Required value\n* b: Required value",
        );
    }

    #[test]
    fn a_source_is_named_within_the_servers_own_error() {
        let status = json!({"reason": "AlreadyExists", "message": "pods \"w\" already exists"});
        let error = CliError::Status(Box::new(status)).while_("creating", "pod.yaml");
        assert_eq!(
            error.text(),
            "Error from server (AlreadyExists): error when creating \"pod.yaml\": pods \"w\" already exists"
        );
    }

    #[test]
    fn wrong_usage_has_an_exit_code_of_its_own() {
        assert_eq!(CliError::usage("x").exit_code(), 2);
        assert_eq!(CliError::failed("x").exit_code(), 1);
    }
}
