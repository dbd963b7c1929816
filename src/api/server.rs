//! The listening side: TLS, worker threads, start and stop.
//!
//! Owns: the [`Server`] handle. Invariant: once [`serve`] returns, connections are accepted on [`Server::address`];
//! once [`Server::stop`] returns, every request has been answered or cut off and the port is free.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use actix_http::{HttpService, Protocol, error::DispatchError};
use actix_server::{GracefulShutdownSignal, ServerHandle};
use actix_service::{
    IntoServiceFactory as _, ServiceFactory, ServiceFactoryExt as _, fn_service, map_config,
};
use actix_tls::accept::{
    TlsError as TlsFailure,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::{App, dev::AppConfig, rt::net::TcpStream, web};
use nix::sys::socket::Backlog;
use rustls::ServerConfig;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    auth::{self, TlsError},
    certificate::ServerCertificate,
    config::{ApiConfig, ApiState, Limits},
    connection::Connection,
    door::{self, Shared},
    plain,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// HTTP/2's name in TLS.
const H2: &[u8] = b"h2";

/// Why the API does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Certificates.
    #[error("cannot set up TLS for the API")]
    Tls(#[from] TlsError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for the API; choose another address with --api: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A running API.
pub struct Server {
    address: SocketAddr,
    certificate: ServerCertificate,
    handle: ServerHandle,
    stop: CancellationToken,
    ended: JoinHandle<io::Result<()>>,
}

/// Starts the API on worker threads of its own. To be called inside an actix system.
///
/// # Errors
/// When certificates are unusable or the address cannot be bound.
pub fn serve(config: ApiConfig, state: ApiState) -> Result<Server, ServeError> {
    let ApiConfig { listen, listener, tls, tokens, limits, service_cidr, workers } = config;
    let (tls, certificate) = auth::server_config(tls)?;
    let stop = CancellationToken::new();
    let shared = Shared::new(state, limits, service_cidr, auth::Tokens::new(tokens), stop.clone());
    let shared = web::Data::from(Arc::new(shared));
    let fail = |source| ServeError::Listen { address: listen, source };
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(listen).map_err(fail)?,
    };
    // More than the library's own choice.
    let backlog = Backlog::new(BACKLOG).map_err(|errno| fail(errno.into()))?;
    nix::sys::socket::listen(&listener, backlog).map_err(|errno| fail(errno.into()))?;
    listener.set_nonblocking(true).map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let builder = actix_server::Server::build();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder
        .workers(workers)
        .max_concurrent_connections(limits.connections)
        .shutdown_timeout(limits.stop_timeout.as_secs())
        .disable_signals()
        .listen("api", listener, move || connections(&shared, &tls, limits, &stopping))
        .map_err(fail)?
        .run();
    let handle = server.handle();
    let ended = actix_rt::spawn(server);
    tracing::info!(%address, "serving the API");
    Ok(Server { address, certificate, handle, stop, ended })
}

/// What a worker makes of a connection: a look at its first byte ([`plain`]), TLS, a look at the first head ([`Connection`]), HTTP, the door.
fn connections(
    shared: &web::Data<Shared>,
    tls: &ServerConfig,
    limits: Limits,
    stopping: &GracefulShutdownSignal,
) -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = (),
    Error = TlsFailure<io::Error, DispatchError>,
    InitError = (),
> + use<> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    let mut acceptor = Acceptor::new(tls);
    acceptor.set_handshake_timeout(limits.head_timeout);
    let stopping = stopping.clone();
    let app = App::new().app_data(shared.clone()).default_service(web::to(door::handle)).into_factory();
    let http = HttpService::build()
        .graceful_shutdown_signal(move || {
            let stopping = stopping.clone();
            async move { stopping.notified().await }
        })
        .keep_alive(limits.idle_timeout)
        .client_request_timeout(limits.head_timeout)
        .on_connect_ext(|connection: &Connection<TlsStream<TcpStream>>, data| {
            auth::on_connect(connection.get_ref(), data);
        })
        .finish(map_config(app, move |()| AppConfig::default()));
    let head_timeout = limits.head_timeout;
    fn_service(move |tcp: TcpStream| async move {
        plain::look(tcp, head_timeout).await.map_err(TlsFailure::<io::Error, DispatchError>::Tls)
    })
    .and_then(acceptor.map_init_err(|_| ()).map_err(TlsFailure::into_service_error))
    .and_then(|io: TlsStream<TcpStream>| async move {
        let (tcp, session) = io.get_ref();
        let h2 = session.alpn_protocol() == Some(H2);
        // What is written is whole: it need not wait for more.
        let _ = tcp.set_nodelay(true);
        let peer = tcp.peer_addr().ok();
        Ok((Connection::new(io, !h2), if h2 { Protocol::Http2 } else { Protocol::Http1 }, peer))
    })
    .and_then(http.map_err(TlsFailure::Service))
}

impl Server {
    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it shows, to be replaced in time.
    pub fn certificate(&self) -> ServerCertificate {
        self.certificate.clone()
    }

    /// Ends watches and other streams, lets requests in flight finish within the configured time, and closes.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.handle.stop(true).await;
        if let Err(error) = (&mut self.ended).await {
            tracing::warn!(%error, "the API's listener ended badly");
        }
    }
}

impl Drop for Server {
    /// For whoever leaves without [`Server::stop`]: nothing is accepted any more, and nobody waits for requests.
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.handle.stop(false));
    }
}
