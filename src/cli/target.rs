//! What a command is about: `TYPE NAME…`, `TYPE/NAME…`, `TYPE -l SELECTOR`, files.
//!
//! Owns: the words of the command line turned into kinds and names, and the fetching of what they mean.

use clap::Args;
use serde_json::Value;

use super::{
    discovery::{Discovery, Resource},
    error::{CliError, Outcome},
    manifest::{Document, FilesArg},
    session::{Session, name_of, with_query},
};

/// The largest page asked for at once, as kubectl.
pub const PAGE: usize = 500;

/// A kind, or one object of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub resource: Resource,
    /// The object, or all.
    pub name: Option<String>,
}

/// Which of a kind's objects.
#[derive(Debug, Clone, Default, Args)]
pub struct SelectorArgs {
    /// Only objects with these labels: a=b, a!=b, a in (b,c), a, !a
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Only objects whose fields are so: metadata.name=x, status.phase!=Running
    #[arg(long, value_name = "FIELDS")]
    pub field_selector: Option<String>,
}

/// An object found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its kind.
    pub resource: Resource,
    /// Its namespace, where its kind has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The object; null when it was not fetched.
    pub object: Value,
    /// The file it was named in.
    pub source: Option<String>,
}

impl Found {
    /// Its path.
    pub fn path(&self) -> String {
        self.resource.object(self.namespace.as_deref(), &self.name)
    }

    /// `pod/web`.
    pub fn called(&self) -> String {
        format!("{}/{}", self.resource.noun(), self.name)
    }
}

/// Reads the words.
///
/// # Errors
/// For kinds that the server does not have, and words that do not go together.
pub fn parse(kinds: &Discovery, words: &[String]) -> Outcome<Vec<Target>> {
    let Some((first, names)) = words.split_first() else {
        return Err(CliError::usage(
            "You must specify the type of resource, like `pods`; `api-resources` lists those there are",
        ));
    };
    if words.iter().any(|w| w.contains('/')) {
        return words.iter().map(|word| pair(kinds, word)).collect();
    }
    let mut targets = Vec::new();
    for resource in kinds.resolve_list(first)? {
        if names.is_empty() {
            targets.push(Target { resource: resource.clone(), name: None });
        }
        targets.extend(names.iter().map(|n| Target { resource: resource.clone(), name: Some(n.clone()) }));
    }
    Ok(targets)
}

fn pair(kinds: &Discovery, word: &str) -> Outcome<Target> {
    let Some((kind, name)) = word.split_once('/') else {
        return Err(CliError::usage(
            "there is no need to specify a resource type as a separate argument when passing arguments in \
             resource/name form (e.g. 'get resource/<resource_name>' instead of 'get resource resource/<resource_name>'",
        ));
    };
    if kind.is_empty() || name.is_empty() || name.contains('/') {
        return Err(CliError::usage(format!(
            "arguments in resource/name form must have a single resource and name; {word:?} has not"
        )));
    }
    Ok(Target { resource: kinds.resolve(kind)?.clone(), name: Some(name.to_owned()) })
}

impl Session {
    /// The namespace of a kind's objects.
    pub fn namespace_of(&self, resource: &Resource) -> Option<String> {
        resource.namespaced.then(|| self.namespace.clone())
    }

    /// What a document stands for: its kind, and the namespace it names or else the present one.
    ///
    /// # Errors
    /// For kinds that the server does not have, and namespaces at odds.
    pub async fn place(&self, document: &Document) -> Outcome<Found> {
        let kinds = self.kinds().await?;
        let resource = kinds.of_kind(document.api_version(), document.kind()).map_err(|e| match e {
            CliError::Failed(text) => CliError::failed(format!(
                "resource mapping not found for name: {:?} namespace: {:?} from {:?}: {text}",
                name_of(&document.object),
                document.object["metadata"]["namespace"].as_str().unwrap_or_default(),
                document.source
            )),
            other => other,
        })?;
        let own = document.object["metadata"]["namespace"].as_str().filter(|n| !n.is_empty());
        if let Some(own) =
            own.filter(|own| self.namespace_given && resource.namespaced && **own != self.namespace)
        {
            return Err(CliError::failed(format!(
                "the namespace from the provided object {own:?} does not match the namespace {:?}. You must pass \
                 '--namespace={own}' to perform this operation.",
                self.namespace
            )));
        }
        let namespace = resource.namespaced.then(|| own.unwrap_or(&self.namespace).to_owned());
        Ok(Found {
            resource: resource.clone(),
            namespace,
            name: name_of(&document.object).to_owned(),
            object: document.object.clone(),
            source: Some(document.source.clone()),
        })
    }

    /// Every object of a collection, page by page.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn list(&self, resource: &Resource, all: bool, select: &SelectorArgs) -> Outcome<Vec<Value>> {
        let namespace = if all { None } else { self.namespace_of(resource) };
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let query = [
                ("fieldSelector", select.field_selector.clone()),
                ("labelSelector", select.selector.clone()),
                ("limit", Some(PAGE.to_string())),
                ("continue", next),
            ];
            let mut page =
                self.client.get(&with_query(&resource.collection(namespace.as_deref()), &query)).await?;
            if let Value::Array(items) = page["items"].take() {
                found.extend(items.into_iter().map(|mut item| {
                    // Items of a typed list need not say what they are.
                    item["apiVersion"] = resource.api_version().into();
                    item["kind"] = resource.kind.clone().into();
                    item
                }));
            }
            next = page["metadata"]["continue"].as_str().filter(|c| !c.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// An object that was listed.
    pub fn found(&self, resource: &Resource, object: Value) -> Found {
        Found {
            resource: resource.clone(),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: name_of(&object).to_owned(),
            object,
            source: None,
        }
    }

    /// Everything the words, the selector and the files mean, fetched. Each object that is missing is an error of its own.
    ///
    /// # Errors
    /// When the words make no sense; what concerns one object is returned beside the others.
    pub async fn fetch(
        &self,
        words: &[String],
        files: &FilesArg,
        which: &Which,
    ) -> Outcome<(Vec<Found>, Vec<CliError>)> {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        if files.given() {
            if !words.is_empty() {
                return Err(CliError::usage(
                    "when paths, URLs, or stdin is provided as resource input, you may not specify resource arguments as well",
                ));
            }
            for document in files.read().await? {
                let mut place = self.place(&document).await?;
                match self.client.get(&place.path()).await {
                    Ok(object) => {
                        place.object = object;
                        found.push(place);
                    }
                    Err(e) => errors.push(e),
                }
            }
            return Ok((found, errors));
        }
        for target in parse(self.kinds().await?, words)? {
            match &target.name {
                Some(name) => {
                    if which.all || which.all_namespaces || which.select.selector.is_some() {
                        return Err(CliError::usage(
                            "a resource cannot be retrieved by name across all namespaces, nor by name and selector",
                        ));
                    }
                    let namespace = self.namespace_of(&target.resource);
                    match self.client.get(&target.resource.object(namespace.as_deref(), name)).await {
                        Ok(object) => found.push(self.found(&target.resource, object)),
                        Err(e) => errors.push(e),
                    }
                }
                None if which.needs_choice && !which.chosen() => {
                    return Err(CliError::usage(
                        "resource(s) were provided, but no name was specified; name one, or use -l or --all",
                    ));
                }
                None => {
                    let list = self.list(&target.resource, which.all_namespaces, &which.select).await?;
                    found.extend(list.into_iter().map(|o| self.found(&target.resource, o)));
                }
            }
        }
        Ok((found, errors))
    }
}

/// How [`Session::fetch`] chooses among a kind's objects.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Selectors.
    pub select: SelectorArgs,
    /// `--all`.
    pub all: bool,
    /// `-A`.
    pub all_namespaces: bool,
    /// Whether a kind alone does not mean all of its objects.
    pub needs_choice: bool,
}

impl Which {
    fn chosen(&self) -> bool {
        self.all || self.select.selector.is_some() || self.select.field_selector.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Discovery {
        let kind = |plural: &str, kind: &str| Resource {
            plural: plural.into(),
            singular: kind.to_lowercase(),
            kind: kind.into(),
            version: "v1".into(),
            ..Resource::default()
        };
        Discovery { resources: vec![kind("pods", "Pod"), kind("services", "Service")] }
    }

    fn read(words: &[&str]) -> Outcome<Vec<String>> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let told = |t: Target| format!("{}/{}", t.resource.plural, t.name.unwrap_or_default());
        Ok(parse(&kinds(), &words)?.into_iter().map(told).collect())
    }

    #[test]
    fn words_name_kinds_and_objects() {
        assert_eq!(read(&["pods"]).unwrap(), ["pods/"]);
        assert_eq!(read(&["pods,service"]).unwrap(), ["pods/", "services/"]);
        assert_eq!(read(&["pod", "a", "b"]).unwrap(), ["pods/a", "pods/b"]);
        assert_eq!(read(&["pod/a", "service/b"]).unwrap(), ["pods/a", "services/b"]);
        for wrong in [&[][..], &["pods", "pod/a"], &["pod/"], &["pod/a/b"]] {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        assert!(read(&["frobs"]).is_err());
    }
}
