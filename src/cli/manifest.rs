//! Documents out of files: YAML or JSON, several in one, directories, standard input, the web, and lists taken apart.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    fetch,
};

/// Where documents come from.
#[derive(Debug, Clone, Default, Args)]
pub struct FilesArg {
    /// A file, a directory, a URL, or - for standard input (repeatable)
    #[arg(short = 'f', long = "filename", value_name = "FILE", value_delimiter = ',')]
    pub files: Vec<PathBuf>,
    /// Descend into the directories within a directory
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// One document and where it came from.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file, or `STDIN`.
    pub source: String,
    /// An object with `apiVersion` and `kind`.
    pub object: Value,
}

impl Document {
    /// Its kind.
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    /// Its API version.
    pub fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }
}

impl FilesArg {
    /// Whether any is named.
    pub fn given(&self) -> bool {
        !self.files.is_empty()
    }

    /// Every document of every file, in order.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
    pub async fn read(&self) -> Outcome<Vec<Document>> {
        let mut documents = Vec::new();
        for file in &self.files {
            if file == Path::new("-") {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.map_err(|source| CliError::File { path: "standard input".into(), source })?;
                documents.extend(parse("STDIN", &text)?);
                continue;
            }
            if let Some(url) = file.to_str().filter(|name| fetch::is_url(name)) {
                documents.extend(parse(url, &fetch::text(url).await?)?);
                continue;
            }
            let is_dir = file.is_dir();
            for path in expand(file, self.recursive)? {
                let text = std::fs::read_to_string(&path).map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => {
                        CliError::failed(format!("the path {:?} does not exist", path.display().to_string()))
                    }
                    _ => CliError::File { path: path.clone(), source },
                })?;
                documents.extend(parse(&path.display().to_string(), &text)?);
            }
            if is_dir && documents.is_empty() {
                return Err(CliError::failed(format!(
                    "{}: no *.yaml, *.yml or *.json in it",
                    file.display()
                )));
            }
        }
        match documents.is_empty() {
            true => Err(CliError::failed("no objects passed to it")),
            false => Ok(documents),
        }
    }
}

/// A file is itself; a directory is its manifests, by name.
fn expand(path: &Path, recursive: bool) -> Outcome<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let fault = |source| CliError::File { path: path.to_owned(), source };
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(fault)?.collect();
    let mut entries: Vec<PathBuf> = entries.map_err(fault)?.into_iter().map(|e| e.path()).collect();
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        let manifest = entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if entry.is_dir() && recursive {
            files.extend(expand(&entry, true)?);
        } else if manifest && entry.is_file() {
            files.push(entry);
        }
    }
    Ok(files)
}

/// Takes a text apart into objects.
fn parse(source: &str, text: &str) -> Outcome<Vec<Document>> {
    let fault = |cause: String| CliError::failed(format!("error parsing {source}: {cause}"));
    let mut documents = Vec::new();
    for part in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(part).map_err(|e| fault(e.to_string()))?;
        match value {
            Value::Null => {}
            Value::Object(_) => add(source, value, &mut documents).map_err(fault)?,
            _ => return Err(fault("a document is not an object with apiVersion and kind".into())),
        }
    }
    Ok(documents)
}

fn add(source: &str, mut object: Value, to: &mut Vec<Document>) -> Result<(), String> {
    for field in ["kind", "apiVersion"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            return Err(format!("an object has no {field}; say what it is, like apiVersion: v1, kind: Pod"));
        }
    }
    let is_list = object["kind"].as_str().is_some_and(|k| k.ends_with("List"));
    match object["items"].take() {
        Value::Array(items) if is_list => {
            for item in items {
                add(source, item, to)?;
            }
        }
        items => {
            if !items.is_null() {
                object["items"] = items;
            } else if let Some(map) = object.as_object_mut() {
                map.remove("items");
            }
            to.push(Document { source: source.to_owned(), object });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_holds_several_documents_and_lists_of_them() {
        let text = "apiVersion: v1\nkind: Pod\n---\n# nothing\n---\n\
             {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Secret}, {apiVersion: v1, kind: Node}]}\n";
        let kinds: Vec<String> = parse("x", text).unwrap().iter().map(|d| d.kind().to_owned()).collect();
        assert_eq!(kinds, ["Pod", "Secret", "Node"]);
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_source() {
        for (text, part) in [("- a\n", "not an object"), ("kind: Pod\n", "no apiVersion"), ("a: [", "x")] {
            let error = parse("x.yaml", text).unwrap_err().text();
            assert!(error.contains("x.yaml") && error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_directory_is_its_manifests_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.yaml", "a.json", "c.txt", "sub/d.yml"] {
            std::fs::write(dir.path().join(name), "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}").unwrap();
        }
        for (recursive, count) in [(false, 2), (true, 3)] {
            let files = FilesArg { files: vec![dir.path().to_owned()], recursive };
            assert_eq!(files.read().await.unwrap().len(), count);
        }
    }
}
