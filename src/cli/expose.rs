//! `expose`: a service in front of the pods that something else selects.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    change::{ReportArgs, ValidateArg},
    create::{create, made},
    error::{CliError, Outcome},
    manifest::FilesArg,
    run::pairs,
    session::Session,
    target::{Found, Which},
};

/// Options of `expose`.
#[derive(Debug, Clone, Args)]
pub struct ExposeArgs {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    /// The service's name [default: the object's]
    #[arg(long)]
    name: Option<String>,
    /// The service's port [default: the containers' ports]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The containers' port, by number or name [default: the service's]
    #[arg(long, value_name = "PORT")]
    target_port: Option<String>,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// ClusterIP, NodePort or LoadBalancer
    #[arg(long = "type", value_name = "TYPE")]
    type_: Option<String>,
    /// Which pods [default: those the object selects]
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    selector: Vec<String>,
    /// The service's labels [default: the object's]
    #[arg(short, long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    labels: Vec<String>,
    /// The service's address; None for none
    #[arg(long, value_name = "IP")]
    cluster_ip: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs `expose`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &ExposeArgs) -> Outcome {
    let which = Which { needs_choice: true, ..Which::default() };
    let (found, errors) = session.fetch(&args.what, &args.files, &which).await?;
    CliError::all(errors)?;
    let services = found.iter().map(|about| service(args, about).map(made)).collect::<Outcome<Vec<_>>>()?;
    let validate = ValidateArg { validate: "Strict" };
    create(session, &args.report, &validate, services, "kubectl-expose", "exposed").await
}

fn service(args: &ExposeArgs, about: &Found) -> Outcome<Value> {
    let object = &about.object;
    let selector = match args.selector.is_empty() {
        true => selector(about)?,
        false => map(pairs("--selector", &args.selector)?),
    };
    let labels = match args.labels.is_empty() {
        true => object["metadata"]["labels"].clone(),
        false => map(pairs("--labels", &args.labels)?),
    };
    let mut metadata = json!({"name": args.name.as_deref().unwrap_or(&about.name)});
    if let Some(namespace) = &about.namespace {
        metadata["namespace"] = namespace.clone().into();
    }
    if labels.is_object() {
        metadata["labels"] = labels;
    }
    let mut spec = json!({"selector": selector, "ports": ports(args, about)?});
    if let Some(type_) = &args.type_ {
        spec["type"] = type_.clone().into();
    }
    if let Some(ip) = &args.cluster_ip {
        spec["clusterIP"] = ip.clone().into();
    }
    Ok(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
}

fn map(pairs: Vec<(String, String)>) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>())
}

/// The labels of the pods behind an object.
fn selector(about: &Found) -> Outcome<Value> {
    let object = &about.object;
    let selector = match about.resource.kind.as_str() {
        "Pod" => &object["metadata"]["labels"],
        _ if object["spec"]["selector"]["matchLabels"].is_object() => {
            &object["spec"]["selector"]["matchLabels"]
        }
        _ => &object["spec"]["selector"],
    };
    match selector.as_object() {
        Some(labels) if !labels.is_empty() => Ok(selector.clone()),
        _ if about.resource.kind == "Pod" => Err(CliError::failed(
            "couldn't retrieve selectors via --selector flag or introspection: the pod has no labels and cannot be exposed",
        )),
        _ => Err(CliError::failed(format!("cannot expose a {}", about.resource.kind))),
    }
}

fn ports(args: &ExposeArgs, about: &Found) -> Outcome<Value> {
    let target = |port: &Value| match &args.target_port {
        Some(text) => text.parse::<u16>().map_or_else(|_| text.clone().into(), Value::from),
        None => port.clone(),
    };
    if let Some(port) = args.port {
        return Ok(json!([{"port": port, "protocol": args.protocol, "targetPort": target(&port.into())}]));
    }
    let spec = &about.object["spec"];
    let pod = if spec["template"].is_object() { &spec["template"]["spec"] } else { spec };
    let containers = pod["containers"].as_array().into_iter().flatten();
    let of_service = spec["ports"].as_array().into_iter().flatten();
    let found: Vec<&Value> =
        containers.flat_map(|c| c["ports"].as_array().into_iter().flatten()).chain(of_service).collect();
    if found.is_empty() {
        return Err(CliError::failed("couldn't find port via --port flag or introspection"));
    }
    let several = found.len() > 1;
    let ports = found.iter().enumerate().map(|(n, port)| {
        let number = if port["containerPort"].is_null() { &port["port"] } else { &port["containerPort"] };
        let mut out = json!({"port": number, "targetPort": target(number),
            "protocol": port["protocol"].as_str().unwrap_or(&args.protocol)});
        if several {
            out["name"] = format!("port-{}", n + 1).into();
        }
        out
    });
    Ok(ports.collect())
}
