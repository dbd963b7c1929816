//! An HTTPS client to one cluster: JSON in, JSON out, the server's refusals as errors.
//!
//! Owns: the connection, how long to wait, and the translation of answers. Knows nothing of kinds or verbs: a path is
//! a path. Runs within an actix system (or any `LocalSet`), and is not to be sent between threads.
//! Invariant: a request waits [`ANSWER_TIMEOUT`] for its answer at most; streams, once begun, wait for ever.

mod channels;
mod literal;
mod tls;
mod watch;

use std::{cell::RefCell, path::Path, sync::Arc, time::Duration};

use awc::{
    Connector,
    error::{ConnectError, PayloadError, SendRequestError},
    http::{Method, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

pub use self::channels::{Receiving, Sending};
use self::literal::Literal;
use super::{
    error::{CliError, Outcome},
    kubeconfig::{self, Login},
};

/// How long a server may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer held in memory: a list of some ten thousand objects.
const ANSWER_BYTES: usize = 512 << 20;

/// Asks for objects as they are.
pub const JSON: &str = "application/json";
/// Asks for rows and columns where the server has them.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// A patch that replaces fields, RFC 7396.
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// A patch that knows Kubernetes' lists.
pub const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
/// A patch that is a list of operations, RFC 6902.
pub const JSON_PATCH: &str = "application/json-patch+json";
/// Server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Who wants to hear the server's warnings.
type OnWarning = Box<dyn Fn(&str)>;

/// A client of one cluster.
pub struct Client {
    http: awc::Client,
    server: String,
    literal: Option<Literal>,
    token: Option<String>,
    namespace: Option<String>,
    on_warning: Option<OnWarning>,
    warned: RefCell<Vec<String>>,
}

impl Client {
    /// A client for the present context of a kubeconfig.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
    pub fn from_kubeconfig(path: impl AsRef<Path>) -> Outcome<Client> {
        let path = path.as_ref();
        Client::new(kubeconfig::load(path, None)?)
            .map_err(|cause| CliError::Kubeconfig { path: path.to_owned(), cause })
    }

    /// A client for a login.
    ///
    /// # Errors
    /// A sentence when its certificates cannot be used.
    pub fn new(mut login: Login) -> Result<Client, String> {
        let literal = Literal::of(&login.server);
        let connector = Connector::new()
            .timeout(CONNECT_TIMEOUT)
            .handshake_timeout(CONNECT_TIMEOUT)
            .rustls_0_23(Arc::new(tls::config(&mut login, literal.as_ref())?));
        let mut http = awc::Client::builder()
            .connector(connector)
            .disable_redirects()
            .disable_timeout()
            .add_default_header((header::USER_AGENT, concat!("troupe/", env!("CARGO_PKG_VERSION"))));
        if let Some(literal) = &literal {
            http = http.add_default_header((header::HOST, literal.host.as_str()));
        }
        Ok(Client {
            http: http.finish(),
            literal,
            server: login.server,
            token: login.token,
            namespace: login.namespace,
            on_warning: None,
            warned: RefCell::default(),
        })
    }

    /// Calls this with each warning of the server, once each.
    #[must_use]
    pub fn on_warning(mut self, call: impl Fn(&str) + 'static) -> Client {
        self.on_warning = Some(Box::new(call));
        self
    }

    /// `https://HOST:PORT`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The context's namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// GET of an object or a list.
    ///
    /// # Errors
    /// The server's refusal, or why it could not be asked.
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.get_as(path, JSON).await
    }

    /// GET in a form: [`JSON`] or [`TABLE`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_as(&self, path: &str, accept: &str) -> Outcome<Value> {
        let bytes = self.request(Method::GET, path, accept, None).await?;
        decode(path, &bytes)
    }

    /// GET of a text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Outcome<String> {
        let bytes = self.request(Method::GET, path, "*/*", None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// POST: creates, and answers what was made.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Outcome<Value> {
        let body = Some((JSON, body.to_string().into()));
        decode(path, &self.request(Method::POST, path, JSON, body).await?)
    }

    /// PUT: replaces.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put(&self, path: &str, body: &Value) -> Outcome<Value> {
        let body = Some((JSON, body.to_string().into()));
        decode(path, &self.request(Method::PUT, path, JSON, body).await?)
    }

    /// PATCH, of one of the four types.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch(&self, path: &str, content_type: &str, patch: &Value) -> Outcome<Value> {
        let body = Some((content_type, patch.to_string().into()));
        decode(path, &self.request(Method::PATCH, path, JSON, body).await?)
    }

    /// DELETE, with `DeleteOptions` or without.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str, options: Option<&Value>) -> Outcome<Value> {
        let body = options.map(|o| (JSON, o.to_string().into()));
        decode(path, &self.request(Method::DELETE, path, JSON, body).await?)
    }

    /// The events of a watch: `{"type": …, "object": …}`. Ends when the server ends it.
    ///
    /// # Errors
    /// As [`Client::get`]; an `ERROR` event of the server is an error of the stream.
    pub async fn watch(&self, path: &str) -> Outcome<impl Stream<Item = Outcome<Value>> + use<>> {
        self.watch_as(path, JSON).await
    }

    /// As [`Client::watch`], in a form: [`JSON`] or [`TABLE`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn watch_as(
        &self,
        path: &str,
        accept: &str,
    ) -> Outcome<impl Stream<Item = Outcome<Value>> + use<>> {
        Ok(watch::events(path.to_owned(), self.bytes(Method::GET, path, accept).await?))
    }

    /// GET as a stream of bytes, for logs.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn stream(&self, path: &str) -> Outcome<impl Stream<Item = Outcome<Bytes>> + Unpin + use<>> {
        self.bytes(Method::GET, path, "*/*").await
    }

    /// POST without a body, answered by a stream of bytes: work that tells how far it is.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn work(&self, path: &str) -> Outcome<impl Stream<Item = Outcome<Bytes>> + Unpin + use<>> {
        self.bytes(Method::POST, path, "*/*").await
    }

    async fn bytes(
        &self,
        method: Method,
        path: &str,
        accept: &str,
    ) -> Outcome<impl Stream<Item = Outcome<Bytes>> + Unpin + use<>> {
        let request = self.prepare(method, path, accept);
        let answer = self.begun(request.send()).await?;
        let answer = self.accepted(path, answer).await?;
        let path = path.to_owned();
        Ok(answer
            .map(move |chunk| chunk.map_err(|e| CliError::Answer { path: path.clone(), cause: broken(&e) })))
    }

    /// POST of a body that is not held in memory; waits for the answer as long as it takes.
    ///
    /// # Errors
    /// As [`Client::get`], and those of the body.
    pub async fn upload(
        &self,
        path: &str,
        body: impl Stream<Item = std::io::Result<Bytes>> + 'static,
    ) -> Outcome<Value> {
        let request = self.prepare(Method::POST, path, JSON).content_type("application/octet-stream");
        let answer = request.send_stream(Box::pin(body)).await.map_err(|e| self.unreachable(&e))?;
        let mut answer = self.accepted(path, answer).await?;
        let bytes = answer.body().limit(ANSWER_BYTES).await;
        decode(path, &bytes.map_err(|e| CliError::Answer { path: path.to_owned(), cause: broken(&e) })?)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Outcome<Bytes> {
        let request = self.prepare(method, path, accept);
        let sent = match body {
            Some((content_type, bytes)) => request.content_type(content_type.to_owned()).send_body(bytes),
            None => request.send(),
        };
        let mut answer = {
            let answer = self.begun(sent).await?;
            self.accepted(path, answer).await?
        };
        let bytes = answer.body().limit(ANSWER_BYTES).await;
        bytes.map_err(|e| CliError::Answer { path: path.to_owned(), cause: broken(&e) })
    }

    fn url(&self, path: &str) -> String {
        let base = self.literal.as_ref().map_or(&self.server, |literal| &literal.base);
        format!("{base}{path}")
    }

    fn prepare(&self, method: Method, path: &str, accept: &str) -> awc::ClientRequest {
        let mut request = self.http.request(method, self.url(path));
        if let Some(literal) = &self.literal {
            request = request.address(literal.address);
        }
        let request = request.insert_header((header::ACCEPT, accept));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn begun<F, S>(&self, sent: F) -> Outcome<awc::ClientResponse<S>>
    where
        F: Future<Output = Result<awc::ClientResponse<S>, SendRequestError>>,
    {
        match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
            Ok(answer) => answer.map_err(|e| self.unreachable(&e)),
            Err(_) => Err(CliError::Connect {
                host: self.host().to_owned(),
                cause: format!("no answer within {}s", ANSWER_TIMEOUT.as_secs()),
            }),
        }
    }

    /// The answer, when it is no refusal; its warnings are passed on.
    async fn accepted<S>(
        &self,
        path: &str,
        mut answer: awc::ClientResponse<S>,
    ) -> Outcome<awc::ClientResponse<S>>
    where
        S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    {
        for warning in answer.headers().get_all(header::WARNING) {
            self.warn(warning.to_str().unwrap_or_default());
        }
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let body = answer.body().limit(ANSWER_BYTES).await.unwrap_or_default();
        Err(match serde_json::from_slice::<Value>(&body) {
            Ok(status) if status["kind"] == "Status" => CliError::Status(Box::new(status)),
            _ => CliError::Answer {
                path: path.to_owned(),
                cause: format!("the server answered {code}: {}", String::from_utf8_lossy(&body)),
            },
        })
    }

    /// `299 - "text"`: the text, once.
    fn warn(&self, header: &str) {
        let Some(text) = header.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')) else { return };
        let text = text.0.replace("\\\"", "\"").replace("\\\\", "\\");
        let Some(call) = &self.on_warning else { return };
        if !self.warned.borrow().contains(&text) {
            call(&text);
            self.warned.borrow_mut().push(text);
        }
    }

    fn host(&self) -> &str {
        self.server.split_once("://").map_or(self.server.as_str(), |(_, host)| host)
    }

    fn unreachable(&self, error: &SendRequestError) -> CliError {
        let cause = match error {
            SendRequestError::Connect(ConnectError::Io(e)) => e.to_string(),
            SendRequestError::Connect(ConnectError::Timeout) => "no answer".to_owned(),
            other => other.to_string(),
        };
        CliError::Connect { host: self.host().to_owned(), cause }
    }
}

fn decode(path: &str, bytes: &[u8]) -> Outcome<Value> {
    serde_json::from_slice(bytes)
        .map_err(|e| CliError::Answer { path: path.to_owned(), cause: format!("not JSON: {e}") })
}

/// Why an answer broke off, without the library's own words for it.
fn broken(error: &PayloadError) -> String {
    match error {
        PayloadError::Incomplete(_) | PayloadError::Io(_) => {
            "the connection to the server broke off".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_breaks_off_is_told_in_a_persons_words() {
        let eof = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        for error in [PayloadError::Incomplete(Some(eof)), PayloadError::Incomplete(None)] {
            assert_eq!(broken(&error), "the connection to the server broke off");
        }
    }
}
