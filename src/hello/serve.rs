//! The hello program's HTTP: a server of a thread per connection, and a client for one GET.
//!
//! Owns: as much of HTTP/1.1 as browsers, curl, probes and load generators need: keep-alive, HEAD, bodies that are
//! skipped. Limits: the bounds below; chunked requests are refused.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::{allocate, burn, crash, flags, host_name, say};

/// Most bytes of a request's head: eight times what proxies allow a header.
const MAX_HEAD: u64 = 64 * 1024;
/// Most bytes of a body that is skipped to reach the next request; beyond, the connection ends.
const MAX_BODY: u64 = 16 * 1024 * 1024;
/// Most connections at once: threads of 128 KiB stack each, of which a page or two is used.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(120);
/// How long `--fetch` waits for an answer, and the most it prints.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_FETCH: u64 = 1024 * 1024;

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
static UNHEALTHY: AtomicBool = AtomicBool::new(false);

/// Serves until the process ends.
pub(super) fn serve(listener: &TcpListener, hang: bool) -> Result<(), String> {
    let started = SystemTime::now();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Out of descriptors, or a client that left at once: neither is a reason to end.
            Err(error) => {
                say(format_args!("accept: {error}"));
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            let _ = (&stream).write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
            continue;
        }
        let spawned = super::spawn("connection", move || {
            if hang {
                hang_on();
            }
            // A client that leaves in the middle is its own affair.
            let _ = converse(&stream, started);
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            say(error);
        }
    }
}

fn hang_on() -> ! {
    loop {
        thread::park();
    }
}

fn converse(stream: &TcpStream, started: SystemTime) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    loop {
        let request = match Request::read(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Answer::text(400, format!("{error}\n")).send(stream, false, false);
            }
            Err(error) => return Err(error),
        };
        let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = answer(&request, started, count);
        say(format_args!("{peer} {} {} {}", request.method, request.target, answer.status));
        answer.send(stream, request.keep_alive, request.method == "HEAD")?;
        if let Some(end) = answer.then {
            end();
        }
        if !request.keep_alive {
            return Ok(());
        }
    }
}

/// A request without its body.
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    keep_alive: bool,
}

impl Request {
    /// Reads one; `None` when the client is done.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Request>> {
        let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let mut head = from.take(MAX_HEAD);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad("not an HTTP request"));
        };
        let (method, target) = (method.to_owned(), target.to_owned());
        let mut keep_alive = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return Err(bad("not HTTP/1")),
        };
        let (mut headers, mut body) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Err(bad("the head is cut or too large"));
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("a header without colon"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => body = value.parse().map_err(|_| bad("content-length"))?,
                "transfer-encoding" => return Err(bad("chunked requests are not understood")),
                "connection" if value.eq_ignore_ascii_case("close") => keep_alive = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => keep_alive = true,
                _ => {}
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
        if body > MAX_BODY {
            return Err(bad("the body is too large"));
        }
        io::copy(&mut from.take(body), &mut io::sink())?;
        Ok(Some(Request { method, target, headers, keep_alive }))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(n, _)| *n == name))
            .map(|(_, value)| value)
    }
}

/// An answer, and maybe what happens after it.
struct Answer {
    status: u16,
    kind: &'static str,
    body: String,
    then: Option<Box<dyn FnOnce()>>,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: body.into(), then: None }
    }

    fn then(self, then: impl FnOnce() + 'static) -> Answer {
        Answer { then: Some(Box::new(then)), ..self }
    }

    fn send(&self, mut stream: &TcpStream, keep_alive: bool, head_only: bool) -> io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            _ => "Service Unavailable",
        };
        let mut message = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            self.status,
            self.kind,
            self.body.len(),
            if keep_alive { "keep-alive" } else { "close" },
        );
        if !head_only {
            message.push_str(&self.body);
        }
        stream.write_all(message.as_bytes())
    }
}

fn answer(request: &Request, started: SystemTime, count: u64) -> Answer {
    let done =
        |result: Result<Answer, String>| result.unwrap_or_else(|e| Answer::text(400, format!("{e}\n")));
    match request.path() {
        "/" => greeting(request, started, count),
        "/healthz" if UNHEALTHY.load(Ordering::Relaxed) => Answer::text(503, "unhealthy, as told\n"),
        "/healthz" => Answer::text(200, "ok\n"),
        "/unhealthy" => {
            UNHEALTHY.store(true, Ordering::Relaxed);
            Answer::text(200, "/healthz answers 503 from now on\n")
        }
        "/healthy" => {
            UNHEALTHY.store(false, Ordering::Relaxed);
            Answer::text(200, "/healthz answers 200 from now on\n")
        }
        "/env" => lines(
            std::env::vars_os()
                .map(|(n, v)| (n.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())),
            "=",
        ),
        "/headers" => lines(request.headers.iter().cloned(), ": "),
        "/crash" => Answer::text(200, "crashing\n").then(|| crash()),
        "/hang" => hang_on(),
        "/exit" => done(flags::exit_code(request.query("code").unwrap_or("0")).map(|code| {
            Answer::text(200, format!("ending with code {code}\n")).then(move || std::process::exit(code))
        })),
        "/burn" => done(flags::duration(request.query("for").unwrap_or("1s")).map(|time| {
            burn(time);
            Answer::text(200, format!("used a core for {time:?}\n"))
        })),
        "/allocate" => done(
            flags::size(request.query("size").unwrap_or("1Mi"))
                .and_then(|bytes| allocate(bytes).map(|()| bytes))
                .map(|bytes| Answer::text(200, format!("holding {bytes} bytes more\n"))),
        ),
        _ => Answer::text(404, "no such path; --help lists them\n"),
    }
}

fn lines(pairs: impl Iterator<Item = (String, String)>, between: &str) -> Answer {
    Answer::text(
        200,
        pairs.fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}{between}{value}");
            text
        }),
    )
}

/// Who answered. The names are those that pods' manifests usually give these facts through the downward API.
fn greeting(request: &Request, started: SystemTime, count: u64) -> Answer {
    let host = host_name();
    let env = |name: &str| std::env::var(name).ok();
    let (pod, namespace) = (env("POD_NAME"), env("POD_NAMESPACE"));
    let (ip, node, container) = (env("POD_IP"), env("NODE_NAME"), env("CONTAINER_NAME"));
    let since = humantime::format_rfc3339_seconds(started);
    if request.header("accept").is_some_and(|accept| accept.contains("application/json")) {
        let body = json!({
            "hostname": host, "pod": pod, "namespace": namespace, "ip": ip, "node": node, "container": container,
            "started": since.to_string(), "requests": count,
        });
        return Answer { kind: "application/json", ..Answer::text(200, format!("{body}\n")) };
    }
    let mut text = format!("Hello from {}", pod.as_deref().unwrap_or(&host));
    for (word, value) in [("namespace", namespace), ("container", container), ("node", node), ("address", ip)]
    {
        if let Some(value) = value {
            let _ = write!(text, ", {word} {value}");
        }
    }
    let _ = writeln!(text, "\nhost {host}, up since {since}, request {count}");
    Answer::text(200, text)
}

/// GETs an `http://HOST[:PORT]/PATH`; returns the body of an answer below 400.
pub(super) fn fetch(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: only http:// is understood"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let talk = || -> io::Result<String> {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(FETCH_TIMEOUT))?;
        stream.set_write_timeout(Some(FETCH_TIMEOUT))?;
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(MAX_FETCH).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = talk().map_err(|e| format!("{url}: {e}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{url}: not an HTTP answer"))?;
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    match status.parse::<u16>() {
        Ok(code) if code < 400 => Ok(body.to_owned()),
        _ => Err(format!("{url}: answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> io::Result<Option<Request>> {
        Request::read(&mut text.as_bytes())
    }

    fn get(target: &str) -> Answer {
        let request = request(&format!("GET {target} HTTP/1.1\r\nX-One: 1\r\n\r\n")).unwrap().unwrap();
        answer(&request, SystemTime::UNIX_EPOCH, 7)
    }

    #[test]
    fn requests_follow_each_other_on_one_connection() {
        let mut bytes = &b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET /b?q=1 HTTP/1.0\r\n\r\n"[..];
        let first = Request::read(&mut bytes).unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.path(), first.keep_alive), ("POST", "/a", true));
        let second = Request::read(&mut bytes).unwrap().unwrap();
        assert_eq!((second.path(), second.query("q"), second.keep_alive), ("/b", Some("1"), false));
        assert!(Request::read(&mut bytes).unwrap().is_none());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000));
        let rows = [
            "hello\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nA: 1",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &long,
        ];
        for text in rows {
            assert_eq!(request(text).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidData), "{text:.60}");
        }
    }

    #[test]
    fn paths_answer_what_they_promise() {
        assert!(get("/").body.contains("request 7"));
        assert_eq!(get("/headers").body, "X-One: 1\n");
        assert_eq!(get("/nope").status, 404);
        assert_eq!(get("/exit?code=999").status, 400);
        assert!(get("/exit?code=3").then.is_some());
        assert_eq!(get("/allocate?size=1Ki").body, "holding 1024 bytes more\n");
        assert_eq!(get("/burn?for=1ms").status, 200);
        assert_eq!(get("/healthz").status, 200);
        get("/unhealthy");
        assert_eq!(get("/healthz").status, 503);
        get("/healthy");
        assert_eq!(get("/healthz").status, 200);
    }

    #[test]
    fn json_is_given_to_those_who_accept_it() {
        let request = request("GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n").unwrap().unwrap();
        let answer = answer(&request, SystemTime::UNIX_EPOCH, 7);
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (body["requests"].as_u64(), body["started"].as_str()),
            (Some(7), Some("1970-01-01T00:00:00Z"))
        );
    }
}
