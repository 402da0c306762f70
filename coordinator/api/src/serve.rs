//! Serves the router over TLS.
//!
//! HTTP/1.1 and HTTP/2, chosen by ALPN. A connection that does not finish its handshake, says nothing, or does not finish
//! its request head in time is closed, so that nobody can hold the server with idle connections.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Most connections at a time. A web page holds one, a command one or two; each costs some 50 KB.
pub const CONNECTIONS_MAX: usize = 1_024;

/// How a connection begins that speaks HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a TLS handshake and the first bytes of a request may take: three round trips around the world with one loss each.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the head of a request may take, and how long a kept-alive connection may idle.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests under way may take to end when the server stops. Event streams never end by themselves.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// How long to wait after an accept failed for lack of resources, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A TLS configuration that offers HTTP/2 and HTTP/1.1.
///
/// # Errors
/// When key and chain do not belong together.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves `router` on `listener` until `shutdown` is done; then requests under way have [`SHUTDOWN_GRACE`] to end. Each new
/// connection is answered with the newest `tls`.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let place = tokio::select! {
            () = &mut shutdown => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
                let (router, watcher) = (router.clone(), graceful.watcher());
                tokio::spawn(async move {
                    connection(stream, Peer(peer), acceptor, router, watcher).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_GRACE, graceful.shutdown()).await.is_err() {
        tracing::debug!("connections of the API were cut off at shutdown");
    }
}

async fn connection(stream: TcpStream, peer: Peer, acceptor: TlsAcceptor, router: Router, watcher: Watcher) {
    let Peer(address) = peer;
    // Answers are small and somebody waits for each; errors mean that the connection is gone already.
    let _ = stream.set_nodelay(true);
    // Which HTTP it speaks is told by its first bytes, and hyper waits for those without end.
    let begun = async {
        let mut stream = acceptor.accept(stream).await?;
        let mut first = Vec::with_capacity(HTTP2_PREFACE.len());
        while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
            if stream.read_buf(&mut first).await? == 0 {
                break;
            }
        }
        let (reader, writer) = tokio::io::split(stream);
        Ok::<_, std::io::Error>(tokio::io::join(std::io::Cursor::new(first).chain(reader), writer))
    };
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, begun).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake with a client failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "TLS handshake with a client took too long");
            return;
        }
    };
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(HEAD_TIMEOUT))
        .keep_alive_timeout(HANDSHAKE_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%address, %error, "a connection to the API ended early");
    }
}
