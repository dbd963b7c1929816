//! The listening side: TLS, worker threads, start and stop.
//!
//! Owns: the [`Server`] handle. Invariant: once [`serve`] returns, connections are accepted on [`Server::address`];
//! once [`Server::stop`] returns, every request has been answered or cut off and the port is free.

use std::{io, net::SocketAddr, sync::Arc};

use actix_web::{App, HttpServer, dev::ServerHandle, web};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    auth::{self, TlsError},
    config::{ApiConfig, ApiState},
    door::{self, Shared},
};

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
    let tls = auth::server_config(tls)?;
    let stop = CancellationToken::new();
    let shared = Shared::new(state, limits, service_cidr, auth::Tokens::new(tokens), stop.clone());
    let shared = web::Data::from(Arc::new(shared));
    let fail = |source| ServeError::Listen { address: listen, source };
    let server =
        HttpServer::new(move || App::new().app_data(shared.clone()).default_service(web::to(door::handle)))
            .workers(workers)
            .on_connect(auth::on_connect)
            .keep_alive(limits.idle_timeout)
            .client_request_timeout(limits.head_timeout)
            .tls_handshake_timeout(limits.head_timeout)
            .max_connections(limits.connections)
            .shutdown_timeout(limits.stop_timeout.as_secs())
            .disable_signals();
    let server = match listener {
        Some(listener) => server.listen_rustls_0_23(listener, tls),
        None => server.bind_rustls_0_23(listen, tls),
    }
    .map_err(fail)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    let handle = server.handle();
    let ended = actix_rt::spawn(server);
    tracing::info!(%address, "serving the API");
    Ok(Server { address, handle, stop, ended })
}

impl Server {
    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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
