//! Sockets and limits.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::control::Control;
use crate::routes::{Peer, router};

/// A request's line and headers together; hyper's own lower bound is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long the answers under way may take when the server ends.
const STOP: Duration = Duration::from_secs(2);
/// How long we do not accept after the system would not let us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who may command, and the limits.
#[derive(Clone)]
pub struct Options {
    /// Commands need it, as `Authorization: Bearer TOKEN`. Without one they are taken from this machine only; an empty
    /// one is nobody's.
    pub token: Option<String>,
    /// Names under which the node may be commanded, besides addresses and `localhost`; without port.
    pub host_names: Vec<String>,
    /// At most so many connections; further ones wait until one has ended.
    pub connections_max: usize,
    /// How long a request's head may take to come, and its body again.
    pub request_timeout: Duration,
    /// How long the node may take to say how it is, before it is said to hang.
    pub status_timeout: Duration,
    /// How long an answer to a command is waited for. The command goes on after that.
    pub command_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            host_names: Vec::new(),
            connections_max: 64,
            request_timeout: Duration::from_secs(10),
            status_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("host_names", &self.host_names)
            .field("connections_max", &self.connections_max)
            .field("request_timeout", &self.request_timeout)
            .field("status_timeout", &self.status_timeout)
            .field("command_timeout", &self.command_timeout)
            .finish()
    }
}

impl Options {
    /// What one connection may take in all: one request, and a peer that is slow to take the answer.
    fn connection_timeout(&self) -> Duration {
        self.request_timeout * 3 + self.status_timeout + self.command_timeout
    }
}

/// Serves the API until `shutdown` ends; then answers under way have a moment to leave.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    options: Options,
    shutdown: impl Future<Output = ()>,
) {
    let options = Arc::new(options);
    let service = TowerToHyperService::new(router(control, Arc::clone(&options)));
    let room = Arc::new(Semaphore::new(options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            // Room first: who finds none waits in the system's queue.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (service, options) = (service.clone(), Arc::clone(&options));
                    connections.spawn(async move {
                        let _permit = permit;
                        connection(stream, peer, service, &options).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept an admin connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    // Those that are still there after that end with the set.
    let _ = timeout(STOP, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: TowerToHyperService<Router>,
    options: &Options,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        service.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.request_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        // One request each: nobody keeps a place that he does not use.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(options.connection_timeout(), served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "admin connection ended"),
        Err(_) => debug!(%peer, "admin connection took too long"),
    }
}

#[cfg(test)]
mod tests;
