//! `run`: one pod of one container.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{
    change::{ReportArgs, ValidateArg},
    create::{create, made},
    error::{CliError, Outcome},
    session::Session,
};

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The pod's name
    name: String,
    /// The image
    #[arg(long)]
    image: String,
    /// When a container that ended is started again
    #[arg(long, value_enum, ignore_case = true, default_value_t = Restart::Always)]
    restart: Restart,
    /// NAME=VALUE in the container's environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The pod's labels [default: run=NAME]
    #[arg(short, long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    labels: Vec<String>,
    /// The pod's annotations (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    annotations: Vec<String>,
    /// The port the container listens on
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// When the image is pulled: Always, IfNotPresent, Never
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// The words behind -- are the command, not its arguments
    #[arg(long)]
    command: bool,
    /// Arguments of the image's program
    #[arg(last = true, value_name = "WORD")]
    words: Vec<String>,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Restart {
    /// Whenever it ends
    #[value(name = "Always")]
    Always,
    /// When it fails
    #[value(name = "OnFailure")]
    OnFailure,
    /// Not at all
    #[value(name = "Never")]
    Never,
}

/// Runs `run`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &RunArgs) -> Outcome {
    let validate = ValidateArg { validate: "Strict" };
    create(session, &args.report, &validate, vec![made(pod(args)?)], "kubectl-run", "created").await
}

fn pod(args: &RunArgs) -> Outcome<Value> {
    if args.command && args.words.is_empty() {
        return Err(CliError::usage("--command needs the command behind --"));
    }
    let mut container = json!({"name": args.name, "image": args.image, "resources": {}});
    if !args.words.is_empty() {
        container[if args.command { "command" } else { "args" }] = json!(args.words);
    }
    if !args.env.is_empty() {
        let env =
            pairs("--env", &args.env)?.into_iter().map(|(name, value)| json!({"name": name, "value": value}));
        container["env"] = env.collect();
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{ "containerPort": port }]);
    }
    if let Some(policy) = &args.image_pull_policy {
        container["imagePullPolicy"] = policy.clone().into();
    }
    let labels = match args.labels.is_empty() {
        true => vec![("run".to_owned(), args.name.clone())],
        false => pairs("--labels", &args.labels)?,
    };
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": args.name, "labels": object(labels)},
        "spec": {"containers": [container], "dnsPolicy": "ClusterFirst",
            "restartPolicy": format!("{:?}", args.restart)}});
    if !args.annotations.is_empty() {
        pod["metadata"]["annotations"] = object(pairs("--annotations", &args.annotations)?);
    }
    Ok(pod)
}

fn object(pairs: Vec<(String, String)>) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>())
}

/// `KEY=VALUE` words.
///
/// # Errors
/// For words that are none, naming the option.
pub fn pairs(option: &str, words: &[String]) -> Outcome<Vec<(String, String)>> {
    words
        .iter()
        .map(|word| match word.split_once('=').filter(|(key, _)| !key.is_empty()) {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(CliError::usage(format!("{option}: expected KEY=VALUE, found {word:?}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn made(line: &str) -> Value {
        pod(&Line::try_parse_from(line.split(' ')).unwrap().args).unwrap()
    }

    #[test]
    fn a_command_line_becomes_a_pod() {
        let pod = made("run web --image=x --restart=never --env A=b=c --port 80 -l a=b,c=d -- sleep 1");
        assert_eq!(pod["metadata"]["labels"], json!({"a": "b", "c": "d"}));
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["args"], json!(["sleep", "1"]));
        assert_eq!(container["env"], json!([{"name": "A", "value": "b=c"}]));
        assert_eq!(container["ports"], json!([{"containerPort": 80}]));
        let pod = made("run web --image=x --command -- sleep 1");
        assert_eq!(pod["metadata"]["labels"], json!({"run": "web"}));
        assert_eq!(pod["spec"]["containers"][0]["command"], json!(["sleep", "1"]));
    }
}
