//! Kubeconfig files: where a cluster is, who we are to it, and how both sides prove it.
//!
//! Owns: the choice of the file, the choice of the context in it, and its secrets, inline or in files beside it.
//! Leaves out: merging several files (the first that exists is used), exec plugins and passwords, which are refused
//! with a sentence.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;

use super::error::{CliError, Outcome};

/// The file a master writes into its data directory.
const ADMIN: &str = "admin.kubeconfig";
/// The file that a node which joined has in its own.
const NODE: &str = "node.json";

/// What is needed to speak to one cluster.
#[derive(Debug)]
pub struct Login {
    /// `https://HOST:PORT`, without a slash at its end.
    pub server: String,
    /// Whom to trust; empty when the server is not to be checked.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whether not to check the server at all.
    pub insecure: bool,
    /// Our certificate and its key.
    pub identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Our bearer token.
    pub token: Option<String>,
    /// The context's namespace.
    pub namespace: Option<String>,
}

/// Which kubeconfig: the one named, else the first of `$KUBECONFIG` that exists, else the data directory's.
///
/// # Errors
/// When there is none, saying how to start a cluster.
pub fn choose(flag: Option<&Path>, environment: Option<&str>, data_dir: &Path) -> Outcome<PathBuf> {
    if let Some(path) = flag {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(CliError::NoCluster(path.to_owned())),
        };
    }
    let named: Vec<PathBuf> = environment
        .into_iter()
        .flat_map(|list| list.split(':'))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect();
    let candidates = match named.is_empty() {
        true => vec![data_dir.join(ADMIN)],
        false => named.clone(),
    };
    let first = candidates.iter().find(|path| path.is_file()).cloned();
    first.ok_or_else(|| match node_of(data_dir).filter(|_| named.is_empty()) {
        Some((node, master)) => CliError::OnANode { node, master },
        None => CliError::NoCluster(candidates.into_iter().next().unwrap_or_default()),
    })
}

/// Which node's directory it is, and where that node's master is.
fn node_of(data_dir: &Path) -> Option<(String, String)> {
    let record = fs::read(data_dir.join(NODE)).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    let text = |name: &str| record.get(name)?.as_str().map(str::to_owned);
    Some((text("name")?, text("master")?))
}

/// Reads a file's present context, or the one named.
///
/// # Errors
/// With the file and what is wrong with it.
pub fn load(path: &Path, context: Option<&str>) -> Outcome<Login> {
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    parse(&text, path.parent().unwrap_or(Path::new(".")), context)
        .map_err(|cause| CliError::Kubeconfig { path: path.to_owned(), cause })
}

fn parse(text: &str, dir: &Path, context: Option<&str>) -> Result<Login, String> {
    let config: Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let current = context.or_else(|| config["current-context"].as_str()).filter(|c| !c.is_empty());
    let current = current.ok_or("it has no current-context; choose one with --context")?;
    let context = named(&config, "contexts", "context", current)?;
    let cluster_name = context["cluster"].as_str().unwrap_or_default();
    let cluster = named(&config, "clusters", "cluster", cluster_name)?;
    let user = match context["user"].as_str().filter(|u| !u.is_empty()) {
        Some(user) => named(&config, "users", "user", user)?,
        None => &Value::Null,
    };
    for unsupported in ["exec", "auth-provider", "username"] {
        if !user[unsupported].is_null() {
            return Err(format!(
                "its user logs in by {unsupported:?}, which is not supported; use a client certificate or a token"
            ));
        }
    }
    let server = cluster["server"].as_str().filter(|s| !s.is_empty());
    let server =
        server.ok_or_else(|| format!("cluster {cluster_name:?} names no server"))?.trim_end_matches('/');
    let insecure = cluster["insecure-skip-tls-verify"].as_bool().unwrap_or(false);
    let roots = match material(cluster, "certificate-authority", dir)? {
        Some(pem) => certificates(&pem, "certificate-authority")?,
        None if insecure || server.starts_with("http://") => Vec::new(),
        None => {
            return Err(format!(
                "cluster {cluster_name:?} has no certificate-authority, so that {server} cannot be trusted"
            ));
        }
    };
    Ok(Login {
        server: server.to_owned(),
        roots,
        insecure,
        identity: identity(user, dir)?,
        token: token(user, dir)?,
        namespace: context["namespace"].as_str().filter(|n| !n.is_empty()).map(str::to_owned),
    })
}

fn named<'a>(config: &'a Value, list: &str, item: &str, name: &str) -> Result<&'a Value, String> {
    let all = config[list].as_array().into_iter().flatten();
    let found = all.clone().find(|entry| entry["name"] == name).map(|entry| &entry[item]);
    found.ok_or_else(|| {
        let known: Vec<&str> = all.filter_map(|entry| entry["name"].as_str()).collect();
        format!("{item} {name:?} does not exist; it has {}", known.join(", "))
    })
}

fn identity(
    user: &Value,
    dir: &Path,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, String> {
    let certificate = material(user, "client-certificate", dir)?;
    let key = material(user, "client-key", dir)?;
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| format!("client-key: {e}"))?;
    Ok(Some((certificates(&certificate, "client-certificate")?, key)))
}

fn token(user: &Value, dir: &Path) -> Result<Option<String>, String> {
    if let Some(token) = user["token"].as_str().filter(|t| !t.is_empty()) {
        return Ok(Some(token.to_owned()));
    }
    let Some(file) = user["tokenFile"].as_str().filter(|f| !f.is_empty()) else { return Ok(None) };
    let text = std::fs::read_to_string(dir.join(file)).map_err(|e| format!("tokenFile {file}: {e}"))?;
    Ok(Some(text.trim().to_owned()))
}

/// `NAME-data` in base64, else the file that `NAME` names, relative to the kubeconfig.
fn material(of: &Value, name: &str, dir: &Path) -> Result<Option<Vec<u8>>, String> {
    let inline = &of[format!("{name}-data")];
    if inline.as_str().is_some_and(|data| !data.is_empty()) {
        let bytes: k8s_openapi::ByteString =
            serde_json::from_value(inline.clone()).map_err(|e| format!("{name}-data: {e}"))?;
        return Ok(Some(bytes.0));
    }
    let Some(file) = of[name].as_str().filter(|f| !f.is_empty()) else { return Ok(None) };
    std::fs::read(dir.join(file)).map(Some).map_err(|e| format!("{name} {file}: {e}"))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(format!("{what}: no certificate in it")),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: a
clusters:
- {name: c, cluster: {server: 'https://127.0.0.1:1/', insecure-skip-tls-verify: true}}
- {name: bare, cluster: {server: 'https://127.0.0.1:2'}}
users:
- {name: u, user: {token: secret}}
- {name: plugin, user: {exec: {command: x}}}
contexts:
- {name: a, context: {cluster: c, user: u, namespace: there}}
- {name: b, context: {cluster: bare, user: u}}
- {name: p, context: {cluster: c, user: plugin}}
";

    fn read(context: Option<&str>) -> Result<Login, String> {
        parse(CONFIG, Path::new("."), context)
    }

    #[test]
    fn the_present_context_says_where_and_who() {
        let login = read(None).unwrap();
        assert_eq!(login.server, "https://127.0.0.1:1");
        assert_eq!(login.token.as_deref(), Some("secret"));
        assert_eq!(login.namespace.as_deref(), Some("there"));
    }

    #[test]
    fn on_a_nodes_machine_one_is_told_where_the_master_is() {
        let dir = tempfile::tempdir().unwrap();
        let told = |environment| choose(None, environment, dir.path()).unwrap_err().to_string();
        assert!(told(None).contains("troupe up"));
        fs::write(dir.path().join(NODE), r#"{"name": "d1", "cluster": "c", "master": "10.0.0.9:6443"}"#)
            .unwrap();
        assert!(
            told(None).starts_with("this machine is the node d1 of the master at 10.0.0.9:6443"),
            "{}",
            told(None)
        );
        assert!(told(Some("/nowhere")).contains("/nowhere"), "another was named");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_sentence() {
        assert!(read(Some("b")).unwrap_err().contains("no certificate-authority"));
        assert!(read(Some("p")).unwrap_err().contains("\"exec\""));
        assert!(read(Some("z")).unwrap_err().contains("it has a, b, p"));
        assert!(parse("[", Path::new("."), None).is_err());
        assert!(parse("{}", Path::new("."), None).unwrap_err().contains("current-context"));
    }

    #[test]
    fn the_first_file_that_exists_is_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let present = dir.path().join("present");
        std::fs::write(&present, CONFIG).unwrap();
        let list = format!("{}:{}", missing.display(), present.display());
        assert_eq!(choose(None, Some(&list), dir.path()).unwrap(), present);
        assert_eq!(choose(Some(&present), None, dir.path()).unwrap(), present);
        let error = choose(None, None, dir.path()).unwrap_err();
        assert!(error.to_string().contains("troupe up"), "{error}");
        std::fs::write(dir.path().join(ADMIN), CONFIG).unwrap();
        assert_eq!(choose(None, Some(""), dir.path()).unwrap(), dir.path().join(ADMIN));
    }
}
