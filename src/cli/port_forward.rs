//! `port-forward`: ports of this machine that lead into a pod.
//!
//! Owns: which ports, and one WebSocket for each connection: so each ends as its connection does.

use std::{net::IpAddr, rc::Rc};

use clap::Args;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    error::{CliError, Outcome},
    pod,
    session::{Session, line},
};

/// Its channels: data and errors of the one port.
const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of the port that both channels begin with.
const GREETING: usize = 2;
const READ_BYTES: usize = 16 * 1024;

/// Options of `port-forward`.
#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// POD or TYPE/NAME
    #[arg(value_name = "WHERE")]
    what: String,
    /// REMOTE, LOCAL:REMOTE, or :REMOTE for any free local port
    #[arg(required = true, value_name = "PORTS")]
    ports: Vec<String>,
    /// Where to listen: localhost or addresses of this machine
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// A port here and a port there.
#[derive(Debug, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: String,
}

/// Runs `port-forward`; ends when interrupted.
///
/// # Errors
/// As every verb, and when no port can be listened on.
pub async fn run(session: Session, args: &PortForwardArgs) -> Outcome {
    let pairs = args.ports.iter().map(|text| pair(text)).collect::<Outcome<Vec<_>>>()?;
    let object = pod::named(&session, &args.what).await?;
    let service = (object["kind"] == "Service").then(|| object.clone());
    let pods = pod::behind(&session, object, "forward ports of").await?;
    let pod = pods
        .into_iter()
        .next()
        .ok_or_else(|| CliError::failed(format!("cannot forward ports of {}: it has no pods", args.what)))?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        return Err(CliError::failed(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    }
    let path = pod::path(&session, &pod).await?;
    let session = Rc::new(session);
    let mut listening = Vec::new();
    for Pair { local, remote } in pairs {
        let remote = port_of(&pod, service.as_ref(), &remote)?;
        for listener in listen(&args.address, local).await? {
            let address = listener.local_addr().map_err(|error| CliError::failed(error.to_string()))?;
            line(format!("Forwarding from {address} -> {remote}"))?;
            let path = format!("{path}/portforward?ports={remote}");
            listening.push(accept(Rc::clone(&session), path, listener, remote));
        }
    }
    futures_util::future::join_all(listening).await;
    Ok(())
}

fn pair(text: &str) -> Outcome<Pair> {
    let bad = || CliError::failed(format!("invalid port format {text:?}: expected REMOTE or LOCAL:REMOTE"));
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (if local.is_empty() { "0" } else { local }, remote),
        None => (text, text),
    };
    let remote_ok = !remote.is_empty() && remote != "0" && remote.parse::<i64>().is_ok_and(|n| n < 65_536);
    let named = remote.bytes().any(|byte| byte.is_ascii_alphabetic());
    let local = if text == remote && named { "0" } else { local };
    let local = local.parse().map_err(|_| bad())?;
    if remote_ok || named { Ok(Pair { local, remote: remote.to_owned() }) } else { Err(bad()) }
}

/// The pod's port that is meant: its own number or name, or that of a service before it.
fn port_of(pod: &Value, service: Option<&Value>, asked: &str) -> Outcome<u16> {
    let number = |port: &Value| port.as_u64().and_then(|port| u16::try_from(port).ok());
    let mut wanted = asked.to_owned();
    if let Some(service) = service {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let mut ports = ports.filter(|p| {
            p["name"] == asked || number(&p["port"]).map(|n| n.to_string()).as_deref() == Some(asked)
        });
        let port = ports.next().ok_or_else(|| {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            CliError::failed(format!("Service {name} does not have a service port {asked}"))
        })?;
        let target = match &port["targetPort"] {
            Value::String(name) => name.clone(),
            target => number(target).or_else(|| number(&port["port"])).unwrap_or_default().to_string(),
        };
        wanted = target;
    }
    if let Ok(port) = wanted.parse() {
        return Ok(port);
    }
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == wanted).and_then(|port| number(&port["containerPort"])).ok_or_else(
        || {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            CliError::failed(format!("Pod '{name}' does not have a named port '{wanted}'"))
        },
    )
}

/// As kubectl: `localhost` is both loopbacks, of which one has to be free.
async fn listen(addresses: &[String], port: u16) -> Outcome<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let fault = |error: std::io::Error| {
            CliError::failed(format!("unable to listen on port {port} of {address}: {error}"))
        };
        if address == "localhost" {
            let first = TcpListener::bind(("127.0.0.1", port)).await.map_err(fault)?;
            let port = first.local_addr().map_err(fault)?.port();
            listeners.push(first);
            listeners.extend(TcpListener::bind(("::1", port)).await.ok());
        } else {
            let ip: IpAddr = address.parse().map_err(|_| {
                CliError::failed(format!("{address:?} is no address to listen on: localhost or an IP is one"))
            })?;
            listeners.push(TcpListener::bind((ip, port)).await.map_err(fault)?);
        }
    }
    Ok(listeners)
}

async fn accept(session: Rc<Session>, path: String, listener: TcpListener, remote: u16) {
    let local = listener.local_addr().map_or(0, |address| address.port());
    while let Ok((connection, _)) = listener.accept().await {
        // Nobody may be reading.
        let _ = line(format!("Handling connection for {local}"));
        let (session, path) = (Rc::clone(&session), path.clone());
        actix::spawn(async move {
            if let Err(error) = forward(&session, &path, connection).await {
                eprintln!("an error occurred forwarding {local} -> {remote}: {}", error.text());
            }
        });
    }
}

async fn forward(session: &Session, path: &str, connection: TcpStream) -> Outcome {
    let (mut sending, mut receiving) = session.client.channels(path, PROTOCOL).await?;
    let (mut read, mut write) = connection.into_split();
    let there = async {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if !sending.send(DATA, &buffer[..count]).await {
                break;
            }
        }
        // Its answer may still come; there is no word for half an end.
        std::future::pending::<()>().await;
    };
    let back = async {
        let mut greeted = [0, 0];
        while let Some((channel, bytes)) = receiving.next().await {
            let Some(seen) = greeted.get_mut(usize::from(channel)) else { continue };
            let skip = GREETING.saturating_sub(*seen).min(bytes.len());
            *seen += bytes.len();
            let bytes = &bytes[skip..];
            match channel {
                DATA if write.write_all(bytes).await.is_err() => return Ok(()),
                ERROR if !bytes.is_empty() => {
                    return Err(CliError::failed(String::from_utf8_lossy(bytes).into_owned()));
                }
                _ => {}
            }
        }
        let _ = write.shutdown().await;
        Ok(())
    };
    tokio::select! {
        done = back => done,
        () = there => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl() {
        for (text, expected) in [
            ("80", Some((80, "80"))),
            ("8080:80", Some((8080, "80"))),
            (":80", Some((0, "80"))),
            ("8080:http", Some((8080, "http"))),
            ("http", Some((0, "http"))),
            ("", None),
            ("8080:", None),
            ("0", None),
            ("70000", None),
            ("x:80", None),
        ] {
            let expected = expected.map(|(local, remote): (u16, &str)| Pair { local, remote: remote.into() });
            assert_eq!(pair(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_services_port_is_the_pods_it_leads_to() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [
            {"port": 80, "targetPort": "http"}, {"name": "x", "port": 81, "targetPort": 9}, {"port": 82}]}});
        let of = |service: Option<&Value>, asked| port_of(&pod, service, asked).ok();
        assert_eq!(of(Some(&service), "80"), Some(8080));
        assert_eq!(of(Some(&service), "x"), Some(9));
        assert_eq!(of(Some(&service), "82"), Some(82));
        assert_eq!(of(Some(&service), "83"), None);
        assert_eq!(of(None, "http"), Some(8080));
        assert_eq!(of(None, "90"), Some(90));
        assert_eq!(of(None, "nope"), None);
    }
}
