//! Containers, volumes and tolerations: what a pod and a pod's template have in common.

use serde_json::Value;

use super::write::{Text, boolean, list, or_none, pairs, plain, time};

/// The containers under a label. `indent` is that of a template within another object.
pub fn containers(
    text: &mut Text,
    label: &str,
    spec: &[Value],
    statuses: &[Value],
    pod: &Value,
    indent: &str,
) {
    let none = if spec.is_empty() { " <none>" } else { "" };
    text.line(0, format!("{indent}{label}:{none}"));
    for container in spec {
        let status = statuses.iter().find(|s| s["name"] == container["name"]);
        basics(text, container, status, indent);
        words(text, "Command", &container["command"]);
        words(text, "Args", &container["args"]);
        if let Some(status) = status {
            state(text, "State", &status["state"]);
            if status["lastState"]["terminated"].is_object() {
                state(text, "Last State", &status["lastState"]);
            }
            text.field(2, "Ready", boolean(&status["ready"]));
            text.field(2, "Restart Count", status["restartCount"].as_i64().unwrap_or(0).to_string());
        }
        for (name, field) in [("Limits", "limits"), ("Requests", "requests")] {
            let resources = pairs(&container["resources"][field]);
            if !resources.is_empty() {
                text.line(2, format!("{name}:"));
            }
            for (resource, quantity) in resources {
                text.field(3, &resource, quantity);
            }
        }
        for (name, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if container[field].is_object() {
                text.field(2, name, probe(&container[field]));
            }
        }
        environment(text, container, pod);
        mounts(text, container);
    }
}

fn basics(text: &mut Text, container: &Value, status: Option<&Value>, indent: &str) {
    let name_indent = if indent.is_empty() { "" } else { " " };
    text.line(1, format!("{name_indent}{}:", plain(&container["name"])));
    if let Some(status) = status {
        text.field(2, "Container ID", plain(&status["containerID"]));
    }
    text.field(2, "Image", plain(&container["image"]));
    if let Some(status) = status {
        text.field(2, "Image ID", plain(&status["imageID"]));
    }
    for (one, several, field) in [("Port", "Ports", "containerPort"), ("Host Port", "Host Ports", "hostPort")]
    {
        let ports: Vec<String> = list(&container["ports"])
            .iter()
            .map(|p| format!("{}/{}", p[field].as_i64().unwrap_or(0), plain(&p["protocol"])))
            .collect();
        let name = if ports.len() > 1 { several } else { one };
        text.field(2, name, or_none(ports.join(", ")));
    }
}

fn words(text: &mut Text, name: &str, words: &Value) {
    if list(words).is_empty() {
        return;
    }
    text.line(2, format!("{name}:"));
    for word in list(words) {
        plain(word).split('\n').for_each(|line| text.line(3, line));
    }
}

fn state(text: &mut Text, name: &str, state: &Value) {
    if state["running"].is_object() {
        text.field(2, name, "Running");
        text.field(3, "Started", time(&state["running"]["startedAt"]));
    } else if state["terminated"].is_object() {
        let ended = &state["terminated"];
        text.field(2, name, "Terminated");
        text.field_if(3, "Reason", &ended["reason"]);
        text.field_if(3, "Message", &ended["message"]);
        text.field(3, "Exit Code", ended["exitCode"].as_i64().unwrap_or(0).to_string());
        if let Some(signal) = ended["signal"].as_i64().filter(|s| *s > 0) {
            text.field(3, "Signal", signal.to_string());
        }
        text.field(3, "Started", time(&ended["startedAt"]));
        text.field(3, "Finished", time(&ended["finishedAt"]));
    } else {
        text.field(2, name, "Waiting");
        text.field_if(3, "Reason", &state["waiting"]["reason"]);
    }
}

fn probe(probe: &Value) -> String {
    let number = |field: &str| probe[field].as_i64().unwrap_or(0);
    let attributes = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds"),
        number("timeoutSeconds"),
        number("periodSeconds"),
        number("successThreshold"),
        number("failureThreshold")
    );
    let (http, tcp, grpc) = (&probe["httpGet"], &probe["tcpSocket"], &probe["grpc"]);
    if probe["exec"].is_object() {
        let words: Vec<String> = list(&probe["exec"]["command"]).iter().map(plain).collect();
        format!("exec [{}] {attributes}", words.join(" "))
    } else if http.is_object() {
        let path = plain(&http["path"]);
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        format!(
            "http-get {}://{}:{}{slash}{path} {attributes}",
            plain(&http["scheme"]).to_lowercase(),
            plain(&http["host"]),
            plain(&http["port"])
        )
    } else if tcp.is_object() {
        format!("tcp-socket {}:{} {attributes}", plain(&tcp["host"]), plain(&tcp["port"]))
    } else if grpc.is_object() {
        format!("grpc <pod>:{} {} {attributes}", plain(&grpc["port"]), plain(&grpc["service"]))
    } else {
        format!("unknown {attributes}")
    }
}

fn environment(text: &mut Text, container: &Value, pod: &Value) {
    let optional = |of: &Value| of["optional"].as_bool().unwrap_or(false);
    if !list(&container["envFrom"]).is_empty() {
        text.line(2, "Environment Variables from:");
    }
    for from in list(&container["envFrom"]) {
        let (kind, reference) = match from["configMapRef"].is_object() {
            true => ("ConfigMap", &from["configMapRef"]),
            false => ("Secret", &from["secretRef"]),
        };
        let prefix = match plain(&from["prefix"]) {
            empty if empty.is_empty() => empty,
            prefix => format!(" with prefix '{prefix}'"),
        };
        text.line(
            3,
            format!("{}\t{kind}{prefix}\tOptional: {}", plain(&reference["name"]), optional(reference)),
        );
    }
    let variables = list(&container["env"]);
    text.line(2, if variables.is_empty() { "Environment:\t<none>" } else { "Environment:" });
    for variable in variables {
        let name = plain(&variable["name"]);
        let from = &variable["valueFrom"];
        if from["fieldRef"].is_object() {
            let field = &from["fieldRef"];
            let path = plain(&field["fieldPath"]);
            text.line(3, format!("{name}:\t{} ({}:{path})", of_pod(pod, &path), plain(&field["apiVersion"])));
        } else if from["resourceFieldRef"].is_object() {
            let field = &from["resourceFieldRef"];
            text.line(
                3,
                format!("{name}:\t{} ({})", of_resources(container, field), plain(&field["resource"])),
            );
        } else if from["secretKeyRef"].is_object() {
            let key = &from["secretKeyRef"];
            text.line(
                3,
                format!(
                    "{name}:\t<set to the key '{}' in secret '{}'>\tOptional: {}",
                    plain(&key["key"]),
                    plain(&key["name"]),
                    optional(key)
                ),
            );
        } else if from["configMapKeyRef"].is_object() {
            let key = &from["configMapKeyRef"];
            text.line(
                3,
                format!(
                    "{name}:\t<set to the key '{}' of config map '{}'>\tOptional: {}",
                    plain(&key["key"]),
                    plain(&key["name"]),
                    optional(key)
                ),
            );
        } else {
            for (at, line) in plain(&variable["value"]).split('\n').enumerate() {
                match at {
                    0 => text.field(3, &name, line),
                    _ => text.line(3, format!("\t{line}")),
                }
            }
        }
    }
}

/// What a downward field says of a pod, as far as its metadata tells.
fn of_pod(pod: &Value, path: &str) -> String {
    let metadata = &pod["metadata"];
    match path {
        "metadata.name" => plain(&metadata["name"]),
        "metadata.namespace" => plain(&metadata["namespace"]),
        "metadata.uid" => plain(&metadata["uid"]),
        _ => String::new(),
    }
}

fn of_resources(container: &Value, field: &Value) -> String {
    let resource = plain(&field["resource"]);
    let (of, name) = resource.split_once('.').unwrap_or(("limits", &resource));
    plain(&container["resources"][of][name])
}

fn mounts(text: &mut Text, container: &Value) {
    let mut mounts: Vec<&Value> = list(&container["volumeMounts"]).iter().collect();
    mounts.sort_by_key(|m| plain(&m["mountPath"]));
    text.line(2, if mounts.is_empty() { "Mounts:\t<none>" } else { "Mounts:" });
    for mount in mounts {
        let mut flags =
            vec![if mount["readOnly"].as_bool().unwrap_or(false) { "ro" } else { "rw" }.to_owned()];
        if let Some(path) = mount["subPath"].as_str().filter(|p| !p.is_empty()) {
            flags.push(format!("path={path:?}"));
        }
        text.line(
            3,
            format!("{} from {} ({})", plain(&mount["mountPath"]), plain(&mount["name"]), flags.join(",")),
        );
    }
}

/// The volumes.
pub fn volumes(text: &mut Text, volumes: &[Value], indent: &str) {
    if volumes.is_empty() {
        return text.line(0, format!("{indent}Volumes:\t<none>"));
    }
    text.line(0, format!("{indent}Volumes:"));
    let name_indent = if indent.is_empty() { "" } else { " " };
    for volume in volumes {
        text.line(1, format!("{name_indent}{}:", plain(&volume["name"])));
        let optional = |of: &Value| of["optional"].as_bool().unwrap_or(false).to_string();
        if volume["emptyDir"].is_object() {
            let dir = &volume["emptyDir"];
            text.field(2, "Type", "EmptyDir (a temporary directory that shares a pod's lifetime)");
            text.field(2, "Medium", plain(&dir["medium"]));
            let size = plain(&dir["sizeLimit"]);
            text.field(2, "SizeLimit", if size.is_empty() || size == "0" { "<unset>".into() } else { size });
        } else if volume["hostPath"].is_object() {
            text.field(2, "Type", "HostPath (bare host directory volume)");
            text.field(2, "Path", plain(&volume["hostPath"]["path"]));
            text.field(2, "HostPathType", volume["hostPath"]["type"].as_str().unwrap_or("<none>"));
        } else if volume["configMap"].is_object() {
            text.field(2, "Type", "ConfigMap (a volume populated by a ConfigMap)");
            text.field(2, "Name", plain(&volume["configMap"]["name"]));
            text.field(2, "Optional", optional(&volume["configMap"]));
        } else if volume["secret"].is_object() {
            text.field(2, "Type", "Secret (a volume populated by a Secret)");
            text.field(2, "SecretName", plain(&volume["secret"]["secretName"]));
            text.field(2, "Optional", optional(&volume["secret"]));
        } else if volume["projected"].is_object() {
            projected(text, &volume["projected"]);
        } else if volume["downwardAPI"].is_object() {
            text.field(2, "Type", "DownwardAPI (a volume populated by information about the pod)");
            text.line(2, "Items:");
            for item in list(&volume["downwardAPI"]["items"]) {
                let field = &item["fieldRef"]["fieldPath"];
                let source = if field.is_null() { &item["resourceFieldRef"]["resource"] } else { field };
                text.line(3, format!("{} -> {}", plain(source), plain(&item["path"])));
            }
        } else {
            let other = volume.as_object().into_iter().flatten().find(|(k, _)| *k != "name");
            text.field(2, "Type", other.map_or("<unknown>", |(k, _)| k.as_str()));
        }
    }
}

fn projected(text: &mut Text, volume: &Value) {
    text.field(2, "Type", "Projected (a volume that contains injected data from multiple sources)");
    for source in list(&volume["sources"]) {
        for (field, name) in [("secret", "SecretName"), ("configMap", "ConfigMapName")] {
            if source[field].is_object() {
                text.field(2, name, plain(&source[field]["name"]));
                text.field(2, "Optional", source[field]["optional"].as_bool().unwrap_or(false).to_string());
            }
        }
        if source["downwardAPI"].is_object() {
            text.field(2, "DownwardAPI", "true");
        }
        if source["serviceAccountToken"].is_object() {
            text.field(
                2,
                "TokenExpirationSeconds",
                plain(&source["serviceAccountToken"]["expirationSeconds"]),
            );
        }
    }
}

/// The tolerations, one a line.
pub fn tolerations(text: &mut Text, title: &str, tolerations: &[Value]) {
    let mut sorted: Vec<&Value> = tolerations.iter().collect();
    sorted.sort_by_key(|t| plain(&t["key"]));
    let told = sorted.into_iter().map(|t| {
        let (key, value, effect) = (plain(&t["key"]), plain(&t["value"]), plain(&t["effect"]));
        let mut out = key;
        if !value.is_empty() {
            out += &format!("={value}");
        }
        if !effect.is_empty() {
            out += &format!(":{effect}");
        }
        if t["operator"] == "Exists" && value.is_empty() {
            out += if out.is_empty() { "op=Exists" } else { " op=Exists" };
        }
        if let Some(seconds) = t["tolerationSeconds"].as_i64() {
            out += &format!(" for {seconds}s");
        }
        out
    });
    text.lines(title, told.collect());
}
