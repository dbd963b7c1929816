//! `token`: what machines need to join.
//!
//! Owns: the making, listing and revoking of join tokens, as an ordinary client of the API: a token is a secret of
//! `kube-system` that has the digest of its secret only, so what `create` prints can be read nowhere again.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::{
    api::core::v1,
    jiff::{SignedDuration, Timestamp},
};
use serde_json::{Value, json};

use super::{
    discovery::escape,
    error::{CliError, Outcome},
    output::tabs::Tabs,
    session::{Session, line, now, raw},
};
use crate::{
    logic::join::{NAMESPACE, TOKEN_TYPE, TokenInfo, token_info, token_name, token_object},
    model::{
        table::human_duration,
        token::{JoinToken, is_id, pin_of},
    },
};

/// Where machines join.
const LINKS: &str = "/troupe/v1/links";

/// Options of `token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Print a new token; on standard error the command that uses it
    Create {
        /// How long it can be used
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = ttl, allow_hyphen_values = true)]
        ttl: Duration,
        /// What it is for, for the list
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Show the tokens; their secrets are known to nobody any more
    #[command(visible_alias = "list")]
    Ls {
        /// Another form; name: the ids alone, for token rm
        #[arg(long, short, value_enum)]
        output: Option<Form>,
    },
    /// Revoke tokens. Nodes that joined with them stay
    #[command(visible_alias = "delete")]
    Rm {
        /// Their ids: what stands before the first dot
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Json,
    Yaml,
    Wide,
    Name,
}

/// Runs `token`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &TokenArgs) -> Outcome {
    match &args.action {
        Action::Create { ttl, description } => create(session, *ttl, description.as_deref()).await,
        Action::Ls { output } => list(session, *output).await,
        Action::Rm { ids } => remove(session, ids).await,
    }
}

fn secrets() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

/// The longest: longer ones are slips. A year as `1y` is read: 365 days and a quarter.
const TTL_MAX: Duration = Duration::from_secs(365 * 86_400 + 86_400 / 4);

/// How long a token lives: there is none that lives for ever, as there is with kubeadm.
fn ttl(text: &str) -> Result<Duration, String> {
    let range = "it must be between 1s and 1y, such as 30m or 24h";
    let ttl = match humantime::parse_duration(text) {
        Ok(ttl) => ttl,
        Err(humantime::DurationError::NumberOverflow) => return Err(range.into()),
        Err(_) if text.starts_with('-') => return Err(range.into()),
        Err(error) => return Err(format!("{error}; {range}")),
    };
    match ttl {
        _ if ttl < Duration::from_secs(1) || ttl > TTL_MAX => Err(range.into()),
        ttl => Ok(ttl),
    }
}

async fn create(session: &Session, ttl: Duration, description: Option<&str>) -> Outcome {
    let links = session.client.get(LINKS).await?;
    let text = |name: &str| links[name].as_str();
    let Some(pin) = text("authority").and_then(pin_of) else {
        return Err(CliError::failed("the master does not say where machines join"));
    };
    let token = JoinToken::generate(pin, rand::random);
    let ttl = SignedDuration::try_from(ttl).map_err(|error| CliError::usage(format!("--ttl: {error}")))?;
    let expires = now().saturating_add(ttl).map_err(|error| CliError::usage(format!("--ttl: {error}")))?;
    session.client.post(&secrets(), &token_object(&token, expires, description)).await?;
    if let Some(problem) = text("problem") {
        eprintln!("note: {problem}");
    }
    line(token.to_string())?;
    // Standard output is what `--token-file` reads.
    eprintln!("\n# on the machine that is to join, as root, before {expires}:");
    eprintln!("troupe node --join {} --token {token}", join_address(&links));
    Ok(())
}

/// Where a machine is to join; a word to be replaced when no other machine could.
fn join_address(links: &Value) -> String {
    let text = |name: &str| links[name].as_str();
    let listen = text("listen").and_then(|listen| listen.parse::<SocketAddr>().ok());
    match (text("address"), listen) {
        (Some(address), _) => address.to_owned(),
        // One on the same machine can.
        (None, Some(listen)) if listen.ip().is_loopback() => listen.to_string(),
        (None, listen) => format!("ADDRESS:{}", listen.map_or(0, |listen| listen.port())),
    }
}

async fn list(session: &Session, form: Option<Form>) -> Outcome {
    let path = format!("{}?fieldSelector={}", secrets(), escape(&format!("type={TOKEN_TYPE}")));
    let answer = session.client.get(&path).await?;
    let read = |item: &Value| token_info(&serde_json::from_value::<v1::Secret>(item.clone()).ok()?);
    let tokens: Vec<TokenInfo> = answer["items"].as_array().into_iter().flatten().filter_map(read).collect();
    match form {
        Some(Form::Json) => {
            raw(serde_json::to_string_pretty(&told(&tokens, now())).unwrap_or_default() + "\n")
        }
        Some(Form::Yaml) => raw(serde_yaml_ng::to_string(&told(&tokens, now())).unwrap_or_default()),
        Some(Form::Name) => tokens.iter().try_for_each(|token| line(&token.id)),
        None | Some(Form::Wide) if tokens.is_empty() => {
            eprintln!("no tokens; troupe token create makes one");
            Ok(())
        }
        None | Some(Form::Wide) => raw(Tabs::table().align(&table(&tokens, now(), form.is_some()))),
    }
}

/// All that is known of tokens: what they are worth is known to who made them.
fn told(tokens: &[TokenInfo], now: Timestamp) -> Value {
    let tokens = tokens.iter().map(|token| {
        json!({
            "id": token.id,
            "expires": token.expires.map(|at| at.to_string()),
            "expired": token.expires.is_some_and(|at| at <= now),
            "description": token.description,
        })
    });
    tokens.collect()
}

fn table(tokens: &[TokenInfo], now: Timestamp, wide: bool) -> String {
    let mut text = format!("ID\tEXPIRES\tDESCRIPTION{}\n", if wide { "\tAT\tSECRET" } else { "" });
    for token in tokens {
        let expires = match token.expires {
            None => "never".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => format!("in {}", human_duration(at.duration_since(now).as_secs())),
        };
        text.push_str(&format!("{}\t{expires}\t{}", token.id, token.description));
        if wide {
            let at = token.expires.map_or_else(|| "-".to_owned(), |at| at.to_string());
            text.push_str(&format!("\t{at}\t{}", token_name(&token.id)));
        }
        text.push('\n');
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_for_a_second_to_a_year_and_other_lives_are_refused_in_words() {
        assert_eq!(ttl("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!((ttl("365d"), ttl("1y")), (Ok(Duration::from_secs(365 * 86_400)), Ok(TTL_MAX)));
        for text in [
            "-5m",
            "0",
            "0s",
            "500ms",
            "366d",
            "99999999999y",
            "999999999999999999999999999h",
            "-",
            "soon",
            "",
        ] {
            let refused = ttl(text).unwrap_err();
            assert!(refused.contains("between 1s and 1y"), "{text}: {refused}");
        }
    }

    #[test]
    fn the_command_names_an_address_that_can_be_joined_at_or_a_gap_to_be_filled() {
        for (listen, address, expected) in [
            ("0.0.0.0:6443", json!("10.77.0.1:6443"), "10.77.0.1:6443"),
            ("127.0.0.1:7000", Value::Null, "127.0.0.1:7000"),
            ("0.0.0.0:6443", Value::Null, "ADDRESS:6443"),
            ("10.77.0.9:7000", Value::Null, "ADDRESS:7000"),
        ] {
            assert_eq!(join_address(&json!({"listen": listen, "address": address})), expected);
        }
    }

    #[test]
    fn tokens_are_shown_in_all_forms() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let token = |id: &str, expires| TokenInfo { id: id.into(), expires, ..TokenInfo::default() };
        let tokens = [token("aaaaaa", Some(at(160))), token("bbbbbb", Some(at(50)))];
        let shown = told(&tokens, at(100));
        assert_eq!(
            (&shown[0]["expires"], &shown[0]["expired"]),
            (&json!("1970-01-01T00:02:40Z"), &json!(false))
        );
        assert_eq!(shown[1]["expired"], true);
        let plain = table(&tokens, at(100), false);
        assert_eq!(plain, "ID\tEXPIRES\tDESCRIPTION\naaaaaa\tin 60s\t\nbbbbbb\texpired\t\n");
        let wide = table(&tokens, at(100), true);
        assert!(wide.contains("aaaaaa\tin 60s\t\t1970-01-01T00:02:40Z\tbootstrap-token-aaaaaa\n"), "{wide}");
    }
}
