//! The forwarder's health checks: how it asks a target inside the LAN.
//!
//! An HTTPS connection is kept open between two questions, because a TLS handshake costs both sides a hundred times what
//! a question does; one that broke is made again at once, so that a server's restart is not mistaken for its death.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use keelson_balancer::Ask;
use keelson_protocol::errors::chain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::forwarder::{Sockets, dial};
use crate::HealthCheck;

/// So much of an answer is read, in bytes, to use its connection again. Health endpoints answer with some words; after
/// more the connection is given up, and the status counts all the same.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Buffer of a connection, in bytes: room for the head of any answer.
const BUFFER_BYTES: usize = 16 * 1024;

type Sender = SendRequest<Empty<Bytes>>;

/// Asks one target.
pub(super) struct Asker {
    target: SocketAddr,
    check: HealthCheck,
    sockets: Sockets,
    tls: TlsConnector,
    kept: Option<Sender>,
}

impl Asker {
    pub(super) fn new(target: SocketAddr, check: HealthCheck, sockets: Sockets) -> Self {
        Self { target, check, sockets, tls: TlsConnector::from(tls_config()), kept: None }
    }

    async fn get(&mut self, path: &str) -> Result<StatusCode, String> {
        // Out of its place while it is in use: what was dropped half-way is not used again.
        if let Some(mut kept) = self.kept.take()
            && let Ok((status, reusable)) = exchange(&mut kept, self.target, path).await
        {
            self.kept = reusable.then_some(kept);
            return Ok(status);
        }
        let mut sender = self.connect().await?;
        let (status, reusable) = exchange(&mut sender, self.target, path).await?;
        self.kept = reusable.then_some(sender);
        Ok(status)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = dial(&self.sockets, self.target).await.map_err(|error| chain(&error))?;
        stream.set_nodelay(true).map_err(|error| chain(&error))?;
        let name = ServerName::from(self.target.ip());
        let stream = self.tls.connect(name, stream).await.map_err(|error| chain(&error))?;
        let handshake = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|error| format!("no HTTP connection: {error}"))?;
        // Ends when the sender is dropped or the target closes; an error there is seen by the next question.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl Ask for Asker {
    async fn ask(&mut self) -> Result<(), String> {
        let path = match &self.check {
            HealthCheck::Tcp => {
                let stream = dial(&self.sockets, self.target).await.map_err(|error| chain(&error))?;
                // A reset leaves nothing behind. An orderly end twice a second would leave hundreds of ports waiting.
                return stream.set_zero_linger().map_err(|error| chain(&error));
            }
            HealthCheck::Https { path } => path.clone(),
        };
        let status = self.get(&path).await?;
        if status.is_success() { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
    }
}

/// One question; its status, and whether the connection can be used again.
async fn exchange(sender: &mut Sender, target: SocketAddr, path: &str) -> Result<(StatusCode, bool), String> {
    sender.ready().await.map_err(|error| format!("the connection was closed: {error}"))?;
    let request = Request::get(path)
        .header(header::HOST, target.to_string())
        .header(header::USER_AGENT, "keelson-health-check")
        .body(Empty::new())
        .map_err(|error| format!("`{path}` is no path: {error}"))?;
    let response = sender.send_request(request).await.map_err(|error| format!("no HTTP answer: {error}"))?;
    let status = response.status();
    let whole = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.is_ok();
    Ok((status, whole))
}

fn tls_config() -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of all versions");
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Arc::new(builder.with_no_client_auth())
}

/// Takes every certificate, as [`HealthCheck::Https`] says: nothing is told to the target, and the connections that it
/// is given are verified by the clients at their ends. Whoever can pose as a target could refuse its connections anyway.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::socket::{SockFlag, SockType, socket};
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Makes sockets here, as the thread inside the LAN does there.
    fn sockets() -> Sockets {
        let (sockets, mut requests) = mpsc::channel::<(_, tokio::sync::oneshot::Sender<_>)>(1);
        tokio::spawn(async move {
            while let Some((family, answer)) = requests.recv().await {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let _ = answer.send(socket(family, SockType::Stream, flags, None));
            }
        });
        sockets
    }

    fn acceptor() -> TlsAcceptor {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["somebody".to_owned()]).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into(),
            );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// A server with a certificate that nobody signed. Each of its connections gives these answers, then ends.
    async fn server(answers: &'static [&'static str]) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, acceptor) = (Arc::clone(&connections), acceptor());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = [0; 4096];
                    for answer in answers {
                        let length = stream.read(&mut request).await.unwrap_or(0);
                        assert!(length == 0 || request.starts_with(b"GET /readyz HTTP/1.1\r\n"));
                        let head = format!("HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\nok");
                        let _ = stream.write_all(head.as_bytes()).await;
                    }
                    let _ = stream.shutdown().await;
                });
            }
        });
        (address, connections)
    }

    fn https(target: SocketAddr) -> Asker {
        Asker::new(target, HealthCheck::Https { path: "/readyz".to_owned() }, sockets())
    }

    #[tokio::test]
    async fn connections_are_kept_and_made_again_whoever_signed_the_certificate() {
        let (address, connections) = server(&["200 OK", "202 Accepted", "200 OK"]).await;
        let mut asker = https(address);
        for _ in 0..7 {
            assert_eq!(asker.ask().await, Ok(()));
        }
        assert_eq!(connections.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_status_tells_and_its_connection_is_kept_too() {
        let (address, connections) = server(&["503 Service Unavailable", "302 Found", "200 OK"]).await;
        let mut asker = https(address);
        assert_eq!(asker.ask().await, Err("status 503".to_owned()));
        assert_eq!(asker.ask().await, Err("status 302".to_owned()));
        assert_eq!(asker.ask().await, Ok(()));
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn taking_a_connection_is_enough_for_one_kind_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tcp = Asker::new(address, HealthCheck::Tcp, sockets());
        assert_eq!(tcp.ask().await, Ok(()));
        // Nobody answers here but the kernel, as in a machine that is frozen.
        let silent = tokio::time::timeout(keelson_balancer::CHECK_TIMEOUT, https(address).ask()).await;
        assert!(silent.is_err(), "{silent:?}");
        drop(listener);
        for mut asker in [tcp, https(address)] {
            let refused = asker.ask().await.unwrap_err();
            assert!(refused.contains("refused"), "{refused}");
        }
    }
}
