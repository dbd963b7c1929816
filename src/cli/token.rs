//! `token`: what machines need to join.
//!
//! Owns: the making, listing and revoking of join tokens, as an ordinary client of the API: a token is a secret of
//! `kube-system` that has the digest of its secret only, so what `create` prints can be read nowhere again.

use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::{api::core::v1, jiff::SignedDuration};
use serde_json::Value;

use super::{
    discovery::escape,
    error::{CliError, Outcome},
    output::tabs::Tabs,
    session::{Session, line, now, raw},
};
use crate::{
    logic::join::{
        LINKS, LINKS_ADDRESS, LINKS_AUTHORITY, NAMESPACE, TOKEN_TYPE, token_info, token_name, token_object,
    },
    model::{
        table::human_duration,
        token::{JoinToken, is_id, pin_of},
    },
};

/// Options of `token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Print a new token and the command that uses it
    Create {
        /// How long it can be used
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// What it is for, for the list
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Show the tokens; their secrets are known to nobody any more
    #[command(visible_alias = "list")]
    Ls,
    /// Revoke tokens. Nodes that joined with them stay
    #[command(visible_alias = "delete")]
    Rm {
        /// Their ids: what stands before the first dot
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Runs `token`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &TokenArgs) -> Outcome {
    match &args.action {
        Action::Create { ttl, description } => create(session, *ttl, description.as_deref()).await,
        Action::Ls => list(session).await,
        Action::Rm { ids } => remove(session, ids).await,
    }
}

fn secrets() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

/// The longest: longer ones are slips.
const TTL_MAX: Duration = Duration::from_secs(365 * 86_400);

const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

async fn create(session: &Session, ttl: Duration, description: Option<&str>) -> Outcome {
    if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
        return Err(CliError::usage("--ttl: must be between 1s and 365d"));
    }
    let map = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{LINKS}");
    // A master that was started for the first time a moment ago may not have written it yet.
    let begun = tokio::time::Instant::now();
    let links = loop {
        match session.client.get(&map).await {
            Err(error) if error.is_not_found() && begun.elapsed() < WRITTEN_WITHIN => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            answer => break answer?,
        }
    };
    let (address, pin) = (links["data"][LINKS_ADDRESS].as_str(), links["data"][LINKS_AUTHORITY].as_str());
    let (Some(address), Some(pin)) = (address, pin.and_then(pin_of)) else {
        return Err(CliError::failed(format!(
            "the config map {NAMESPACE}/{LINKS} does not say where machines join"
        )));
    };
    let token = JoinToken::generate(pin, rand::random);
    let ttl = SignedDuration::try_from(ttl).map_err(|error| CliError::usage(format!("--ttl: {error}")))?;
    let expires = now().saturating_add(ttl).map_err(|error| CliError::usage(format!("--ttl: {error}")))?;
    session.client.post(&secrets(), &token_object(&token, expires, description)).await?;
    if address.starts_with("127.") || address.starts_with("[::1]") {
        eprintln!(
            "note: this master listens for machines on {address} only, where no other reaches it; start it with --listen ADDR"
        );
    }
    line(token.to_string())?;
    line(format!("\n# on the machine that is to join, as root, before {expires}:"))?;
    line(format!("troupe node --join {address} --token {token}"))
}

async fn list(session: &Session) -> Outcome {
    let path = format!("{}?fieldSelector={}", secrets(), escape(&format!("type={TOKEN_TYPE}")));
    let answer = session.client.get(&path).await?;
    let now = now();
    let mut text = "ID\tEXPIRES\tDESCRIPTION\n".to_owned();
    let mut any = false;
    for item in answer["items"].as_array().into_iter().flatten() {
        let Ok(secret) = serde_json::from_value::<v1::Secret>(Value::clone(item)) else { continue };
        let Some(info) = token_info(&secret) else { continue };
        let expires = match info.expires {
            None => "never".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => format!("in {}", human_duration(at.duration_since(now).as_secs())),
        };
        any = true;
        text.push_str(&format!("{}\t{expires}\t{}\n", info.id, info.description));
    }
    if !any {
        eprintln!("no tokens; troupe token create makes one");
        return Ok(());
    }
    raw(Tabs::table().align(&text))
}

async fn remove(session: &Session, ids: &[String]) -> Outcome {
    let mut errors = Vec::new();
    for id in ids {
        // A whole token is understood, too: its id is what comes first.
        let id = id.split('.').next().unwrap_or_default();
        if !is_id(id) {
            errors.push(CliError::usage(format!("{id:?} is no token's id; see: troupe token ls")));
            continue;
        }
        match session.client.delete(&format!("{}/{}", secrets(), token_name(id)), None).await {
            Ok(_) => line(format!("token {id} revoked"))?,
            Err(error) if error.is_not_found() => {
                errors.push(CliError::failed(format!("there is no token {id}")));
            }
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}
