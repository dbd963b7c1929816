//! One pod and one container in it, as people name them: `POD`, `TYPE/NAME` of something that selects pods, `-c`.

use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    output::table::labels,
    session::{Session, name_of},
    target::{SelectorArgs, parse},
};

/// The annotation that names the container meant when nobody says which.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// What a word names.
///
/// # Errors
/// When there is no such object.
pub async fn named(session: &Session, word: &str) -> Outcome<Value> {
    let kinds = session.kinds().await?;
    let (resource, name) = match word.contains('/') {
        true => {
            let target = parse(kinds, std::slice::from_ref(&word.to_owned()))?.remove(0);
            (target.resource, target.name.unwrap_or_default())
        }
        false => (kinds.resolve("pods")?.clone(), word.to_owned()),
    };
    session.client.get(&resource.object(Some(&session.namespace), &name)).await
}

/// The pod that an object is, or those behind it, the best first.
///
/// # Errors
/// When it selects none; `doing` says what for.
pub async fn behind(session: &Session, object: Value, doing: &str) -> Outcome<Vec<Value>> {
    if object["kind"] == "Pod" {
        return Ok(vec![object]);
    }
    let selector = match &object["spec"]["selector"] {
        Value::Object(s) if s.contains_key("matchLabels") => labels(&s["matchLabels"]),
        selector @ Value::Object(s) if !s.is_empty() => labels(selector),
        _ => {
            let kind = object["kind"].as_str().unwrap_or_default();
            return Err(CliError::failed(format!("cannot {doing} {kind}: it selects no pods")));
        }
    };
    let select = SelectorArgs { selector: Some(selector), field_selector: None };
    let mut pods = session.list(session.kinds().await?.resolve("pods")?, false, &select).await?;
    // As kubectl: rather one that runs, rather the older.
    pods.sort_by_key(|p| {
        (p["status"]["phase"] != "Running", p["metadata"]["creationTimestamp"].as_str().map(str::to_owned))
    });
    Ok(pods)
}

/// The pod that a word means.
///
/// # Errors
/// When there is none.
pub async fn find(session: &Session, word: &str, doing: &str) -> Outcome<Value> {
    let object = named(session, word).await?;
    let pods = behind(session, object, doing).await?;
    pods.into_iter()
        .next()
        .ok_or_else(|| CliError::failed(format!("cannot {doing} {word}: it has no pods yet")))
}

/// The path of a pod.
///
/// # Errors
/// As discovery's.
pub async fn path(session: &Session, pod: &Value) -> Outcome<String> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or(&session.namespace);
    Ok(session.kinds().await?.resolve("pods")?.object(Some(namespace), name_of(pod)))
}

/// The container that is meant, with its description; says which when nobody named one of several.
///
/// # Errors
/// When the named one is not there.
pub fn container<'a>(pod: &'a Value, named: Option<&str>, quiet: bool) -> Outcome<&'a Value> {
    let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    let all = || list("containers").chain(list("initContainers")).chain(list("ephemeralContainers"));
    if let Some(name) = named {
        return all()
            .find(|c| c["name"] == name)
            .ok_or_else(|| CliError::failed(format!("container {name} not found in pod {}", name_of(pod))));
    }
    let default = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    let chosen = default.and_then(|name| list("containers").find(|c| c["name"] == name));
    if let Some(chosen) = chosen {
        return Ok(chosen);
    }
    let first = list("containers")
        .next()
        .ok_or_else(|| CliError::failed(format!("pod {} has no containers", name_of(pod))))?;
    if !quiet && all().count() > 1 {
        let name = |c: &Value| c["name"].as_str().unwrap_or_default().to_owned();
        let names = list("containers").map(name);
        let names = names.chain(list("initContainers").map(|c| format!("{} (init)", name(c))));
        let names = names.chain(list("ephemeralContainers").map(|c| format!("{} (ephem)", name(c))));
        eprintln!("Defaulted container {:?} out of: {}", name(first), names.collect::<Vec<_>>().join(", "));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_named_or_annotated_or_the_first() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let chosen = |pod: &Value, named| container(pod, named, true).map(|c| c["name"].clone());
        assert_eq!(chosen(&pod, None).unwrap(), "a");
        assert_eq!(chosen(&pod, Some("i")).unwrap(), "i");
        assert!(chosen(&pod, Some("x")).unwrap_err().to_string().contains("container x not found in pod p"));
        pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "b"});
        assert_eq!(chosen(&pod, None).unwrap(), "b");
        assert!(chosen(&json!({}), None).is_err());
    }
}
