//! What every client verb needs: a client, the namespace meant, the cluster's kinds, and somewhere to print.
//!
//! Invariant: output whose reader has gone ends the command quietly, as with any well-behaved tool in a pipe.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    client::Client,
    discovery::Discovery,
    error::{CliError, Outcome},
    kubeconfig,
    up::default_data_dir,
};

/// Which cluster, and where in it.
#[derive(Debug, Clone, Default, Args)]
pub struct Connection {
    /// The kubeconfig [default: $KUBECONFIG, else admin.kubeconfig in the data directory]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Which context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// The namespace
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: Option<String>,
}

/// A command's surroundings.
pub struct Session {
    /// The cluster.
    pub client: Client,
    /// The namespace meant.
    pub namespace: String,
    /// Whether it was given on the command line.
    pub namespace_given: bool,
    discovery: tokio::sync::OnceCell<Discovery>,
}

impl Session {
    /// Reads the kubeconfig.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn open(connection: &Connection) -> Outcome<Session> {
        let data_dir = std::env::var_os("TROUPE_DATA_DIR").map_or_else(default_data_dir, PathBuf::from);
        let environment = std::env::var("KUBECONFIG").ok();
        let path = kubeconfig::choose(connection.kubeconfig.as_deref(), environment.as_deref(), &data_dir)?;
        let login = kubeconfig::load(&path, connection.context.as_deref())?;
        let client = Client::new(login)
            .map_err(|cause| CliError::Kubeconfig { path, cause })?
            .on_warning(|text| eprintln!("Warning: {text}"));
        let given = connection.namespace.clone().filter(|n| !n.is_empty());
        let namespace = given
            .clone()
            .or_else(|| client.namespace().map(str::to_owned))
            .unwrap_or_else(|| "default".into());
        Ok(Session {
            client,
            namespace,
            namespace_given: given.is_some(),
            discovery: tokio::sync::OnceCell::new(),
        })
    }

    /// The cluster's kinds, asked for once.
    ///
    /// # Errors
    /// As [`Discovery::ask`].
    pub async fn kinds(&self) -> Outcome<&Discovery> {
        self.discovery.get_or_try_init(|| Discovery::ask(&self.client)).await
    }
}

/// Prints a line.
///
/// # Errors
/// When nobody reads any more.
pub fn line(text: impl AsRef<str>) -> Outcome {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{}", text.as_ref()))
}

/// Prints as it is.
///
/// # Errors
/// As [`line()`].
pub fn raw(bytes: impl AsRef<[u8]>) -> Outcome {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes.as_ref()).and_then(|()| out.flush()))
}

/// The outcome of writing to standard output.
///
/// # Errors
/// As [`line()`].
pub fn written(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(CliError::OutputClosed),
        Err(source) => Err(CliError::File { path: "standard output".into(), source }),
    }
}

/// A path with a query of those that are given.
pub fn with_query(path: &str, query: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let mut separator = if path.contains('?') { '&' } else { '?' };
    for (name, value) in query {
        let Some(value) = value else { continue };
        out.push(separator);
        separator = '&';
        out.push_str(name);
        out.push('=');
        out.push_str(&super::discovery::escape(value));
    }
    out
}

/// `metadata.name`.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The present, as this machine has it.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let second = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
}
