//! `version`: ours, and the cluster's when there is one.

use clap::Args;
use serde_json::json;

use super::{
    error::{CliError, Outcome},
    output::{Format, json as go_json, yaml},
    session::{Connection, Session, line, raw},
};

/// Options of `version`.
#[derive(Debug, Clone, Args)]
pub struct VersionArgs {
    /// Only ours
    #[arg(long)]
    client: bool,
    /// json or yaml
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Runs `version`. Without a cluster there is still something to say.
///
/// # Errors
/// When a cluster is meant and does not answer.
pub async fn run(connection: &Connection, args: &VersionArgs) -> Outcome {
    let ours = concat!("v", env!("CARGO_PKG_VERSION"));
    let server = match args.client {
        true => Ok(None),
        false => server(connection).await,
    };
    match &args.output {
        None => {
            line(format!("Client Version: {ours}"))?;
            if let Ok(Some(server)) = &server {
                line(format!("Server Version: {}", server["gitVersion"].as_str().unwrap_or("unknown")))?;
            }
        }
        Some(format) => {
            let mut value = json!({"clientVersion": {"gitVersion": ours}});
            if let Ok(Some(server)) = &server {
                value["serverVersion"] = server.clone();
            }
            match format {
                Format::Json => raw(go_json::pretty(&value))?,
                Format::Yaml => raw(yaml::document(&value))?,
                _ => return Err(CliError::usage("--output must be 'yaml' or 'json'")),
            }
        }
    }
    server.map(|_| ())
}

/// The cluster's version; none when no cluster is meant.
async fn server(connection: &Connection) -> Outcome<Option<serde_json::Value>> {
    match Session::open(connection) {
        Ok(session) => session.client.get("/version").await.map(Some),
        Err(CliError::NoCluster(_) | CliError::OnANode { .. }) if connection.kubeconfig.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}
