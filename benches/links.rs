//! N1 and N2: messages and bytes over a link, beside the same over bare QUIC (quinn), measured in one run.
//!
//! `cargo bench --bench links [-- --quick]`. Two threads on one machine, loopback, each with a runtime of its own, as two
//! processes have. Both ways have the same cipher, the same frames' sizes and one stream a class; the bare one has no
//! outbox, no codec and no events: it writes bytes and reads so many. The two take turns, so that a busy moment hits both.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a measurement that fails ends by panicking"
)]

#[path = "cluster/row.rs"]
#[allow(dead_code, reason = "shared with the other rows, which need more of it")]
mod row;

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use row::{Row, Times, print_header};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use troupe::{
    messages::wire::{ByteStream, Open},
    net::{
        Authority, Class, Connector, LinkConfig, LinkEvent, LinkEvents, LinkHandle, Listener,
        identity::MASTER,
    },
};

/// About a pod's status, or a small picture.
const QUESTION: usize = 1_000;
/// What an ask is answered with.
const ANSWER: usize = 200;
/// Asks under way at once.
const PIPELINE: usize = 64;
/// Bytes written in one go.
const PIECE: usize = 64 << 10;

/// node → master and back: bytes, as documents are.
#[derive(Serialize, Deserialize)]
struct Ask(u64, bytes::Bytes);

type Ends = (LinkHandle<Ask>, LinkEvents<Ask>);

fn main() -> ExitCode {
    let quick = std::env::args().any(|word| word == "--quick");
    print_header();
    let authority = Arc::new(Authority::ephemeral().unwrap());
    let (told, address) = mpsc::channel();
    // The other side ends with the process.
    let side = authority.clone();
    thread::spawn(move || block_on(serve(&side, &told)));
    let (link, bare) = (address.recv().unwrap(), address.recv().unwrap());
    let rows = block_on(measure(&authority, link, bare, quick));
    let met = rows.iter().all(|row| row.met);
    rows.iter().for_each(Row::print);
    if met { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

// The master's side: answers asks, and reads bytes until their end, then answers with one.

async fn serve(authority: &Authority, told: &mpsc::Sender<SocketAddr>) {
    let identity = authority.issue_master().unwrap();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut listener =
        Listener::bind(local, &identity, authority.certificate(), LinkConfig::default()).unwrap();
    told.send(listener.local_addr()).unwrap();
    let (chain, key) = (identity.chain().to_vec(), identity.key());
    let endpoint =
        Endpoint::server(quinn::ServerConfig::with_single_cert(chain, key).unwrap(), local).unwrap();
    told.send(endpoint.local_addr().unwrap()).unwrap();
    let (link, bare) =
        tokio::join!(listener.accept(), async { endpoint.accept().await.unwrap().await.unwrap() });
    tokio::join!(serve_link(link.unwrap().split()), serve_bare(bare));
}

async fn serve_link((handle, mut events): Ends) {
    loop {
        match events.next().await {
            LinkEvent::Message(Ask(number, _)) => {
                while handle.send(Class::Control, &Ask(number, vec![2; ANSWER].into())).is_err() {
                    tokio::task::yield_now().await;
                }
            }
            LinkEvent::Opened(_, responder) => {
                tokio::spawn(async move {
                    let mut stream: ByteStream = responder.accept().await.unwrap();
                    drain(&mut stream.read).await;
                    stream.write.write_all(&[1]).await.unwrap();
                    stream.write.shutdown().await.unwrap();
                });
            }
            LinkEvent::Closed(_) => return,
        }
    }
}

async fn serve_bare(connection: Connection) {
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let asks = async {
        let (mut question, answer) = (vec![0; QUESTION], vec![2; ANSWER]);
        while receive.read_exact(&mut question).await.is_ok() {
            send.write_all(&answer).await.unwrap();
        }
    };
    let streams = async {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            tokio::spawn(async move {
                drain(&mut receive).await;
                send.write_all(&[1]).await.unwrap();
                let _ = send.finish();
                let _ = send.stopped().await;
            });
        }
    };
    tokio::join!(asks, streams);
}

async fn drain(reader: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut piece = vec![0; PIECE];
    while reader.read(&mut piece).await.unwrap() > 0 {}
}

// The node's side, which measures.

/// Bare QUIC with one stream for asks.
struct Bare {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    _endpoint: Endpoint,
}

impl Bare {
    async fn connect(authority: &Authority, address: SocketAddr) -> Bare {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(LinkConfig::default().keep_alive));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let connection = endpoint.connect_with(config, address, MASTER).unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Bare { connection, send, receive, _endpoint: endpoint }
    }

    async fn ask(&mut self) {
        self.send.write_all(&[1; QUESTION]).await.unwrap();
        self.receive.read_exact(&mut [0; ANSWER]).await.unwrap();
    }

    async fn pipelined(&mut self, count: usize) -> Duration {
        let begun = Instant::now();
        let (mut sent, mut heard) = (0, 0);
        let (question, mut answer) = ([1; QUESTION], [0; ANSWER]);
        while heard < count {
            while sent < count && sent - heard < PIPELINE {
                self.send.write_all(&question).await.unwrap();
                sent += 1;
            }
            self.receive.read_exact(&mut answer).await.unwrap();
            heard += 1;
        }
        begun.elapsed()
    }

    async fn stream(&self, bytes: usize) -> Duration {
        let begun = Instant::now();
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        let piece = vec![3; PIECE];
        for _ in 0..bytes / PIECE {
            send.write_all(&piece).await.unwrap();
        }
        send.finish().unwrap();
        receive.read_exact(&mut [0]).await.unwrap();
        begun.elapsed()
    }
}

/// A link.
struct Linked {
    handle: LinkHandle<Ask>,
    events: LinkEvents<Ask>,
}

impl Linked {
    async fn connect(authority: &Authority, address: SocketAddr) -> Linked {
        let identity = authority.issue_node(&"n1".into()).unwrap();
        let connector = Connector::new(&identity, authority.certificate(), LinkConfig::default()).unwrap();
        let (handle, events) = connector.connect::<Ask, Ask>(address, MASTER).await.unwrap().split();
        Linked { handle, events }
    }

    async fn heard(&mut self) -> u64 {
        match self.events.next().await {
            LinkEvent::Message(Ask(number, _)) => number,
            _ => panic!("the link has ended"),
        }
    }

    fn send(&self, number: u64, question: &bytes::Bytes) {
        self.handle.send(Class::Control, &Ask(number, question.clone())).unwrap();
    }

    async fn ask(&mut self, number: u64, question: &bytes::Bytes) {
        self.send(number, question);
        assert_eq!(self.heard().await, number);
    }

    async fn pipelined(&mut self, count: usize, question: &bytes::Bytes) -> Duration {
        let begun = Instant::now();
        let (mut sent, mut heard) = (0, 0);
        while heard < count {
            while sent < count && sent - heard < PIPELINE {
                self.send(sent as u64, question);
                sent += 1;
            }
            assert_eq!(self.heard().await, heard as u64);
            heard += 1;
        }
        begun.elapsed()
    }

    async fn stream(&self, bytes: usize) -> Duration {
        let begun = Instant::now();
        let mut stream = self.handle.open(Open::Stats, Duration::from_secs(5)).await.unwrap();
        let piece = vec![3; PIECE];
        for _ in 0..bytes / PIECE {
            stream.write.write_all(&piece).await.unwrap();
        }
        stream.write.shutdown().await.unwrap();
        stream.read.read_exact(&mut [0]).await.unwrap();
        begun.elapsed()
    }
}

async fn measure(authority: &Authority, link: SocketAddr, bare: SocketAddr, quick: bool) -> Vec<Row> {
    let (rounds, asks, bytes) = if quick { (5, 500, 64 << 20) } else { (15, 2_000, 256 << 20) };
    let mut linked = Linked::connect(authority, link).await;
    let mut bare = Bare::connect(authority, bare).await;
    let question = bytes::Bytes::from(vec![1; QUESTION]);
    let (mut one, mut one_bare) = (Times::default(), Times::default());
    let (mut many, mut many_bare) = (Times::default(), Times::default());
    let (mut flow, mut flow_bare) = (Times::default(), Times::default());
    for _ in 0..rounds {
        for number in 0..asks {
            let begun = Instant::now();
            linked.ask(number, &question).await;
            one.push(begun.elapsed());
        }
        for _ in 0..asks {
            let begun = Instant::now();
            bare.ask().await;
            one_bare.push(begun.elapsed());
        }
        let pipelined = asks as usize * 10;
        many.push(linked.pipelined(pipelined, &question).await / pipelined as u32);
        many_bare.push(bare.pipelined(pipelined).await / pipelined as u32);
        flow.push(linked.stream(bytes).await);
        flow_bare.push(bare.stream(bytes).await);
    }
    let per_second = |time: Duration| 1.0 / time.as_secs_f64();
    let mib_s = |time: Duration| bytes as f64 / f64::from(1 << 20) / time.as_secs_f64();
    let slower = one.median().as_secs_f64() / one_bare.median().as_secs_f64();
    let share = per_second(many.median()) / per_second(many_bare.median());
    let flow_share = mib_s(flow.median()) / mib_s(flow_bare.median());
    vec![
        Row {
            name: "N1",
            what: format!("typed ask over a link, {QUESTION} bytes there and {ANSWER} back"),
            troupe: us(&one),
            beside: format!("raw quinn {}: {slower:.2} ×", us(&one_bare)),
            budget: "≤ 1.5 ×".into(),
            met: slower <= 1.5,
        },
        Row {
            name: "N1",
            what: format!("asks per second, {PIPELINE} under way"),
            troupe: format!("{:.0}/s", per_second(many.median())),
            beside: format!("raw quinn {:.0}/s: {:.0} %", per_second(many_bare.median()), share * 100.0),
            budget: "≥ 70 %".into(),
            met: share >= 0.7,
        },
        Row {
            name: "N2",
            what: format!("byte stream over a link, {} MiB", bytes >> 20),
            troupe: format!("{:.0} MiB/s", mib_s(flow.median())),
            beside: format!(
                "raw quinn, one stream, {:.0} MiB/s: {:.0} %",
                mib_s(flow_bare.median()),
                flow_share * 100.0
            ),
            budget: "≥ 85 %".into(),
            met: flow_share >= 0.85,
        },
    ]
}

fn us(times: &Times) -> String {
    let text = |time: Duration| format!("{:.0} µs", time.as_secs_f64() * 1e6);
    format!("p50 {}, p99 {} (n={})", text(times.median()), text(times.quantile(0.99)), times.len())
}
