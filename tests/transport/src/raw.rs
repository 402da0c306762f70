//! A peer that keeps no rule: bare quinn connections, for tests of what the link refuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keelson_transport::{Identity, SERVER_NAME};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ApplicationClose, ConnectionError, EndpointConfig, TokioRuntime};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::world::{World, within};

/// How a raw connection differs from a proper one.
#[derive(Debug, Clone)]
pub struct RawConfig {
    /// Certificate to show.
    pub identity: Option<Identity>,
    /// Application protocol to offer.
    pub alpn: Vec<u8>,
}

impl RawConfig {
    /// Without a certificate.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { identity: None, alpn: b"keelson/1".to_vec() }
    }

    /// With a certificate.
    #[must_use]
    pub fn with(identity: Identity) -> Self {
        Self { identity: Some(identity), ..Self::anonymous() }
    }
}

/// Connects from machine `number`.
///
/// # Errors
/// quinn's error when the handshake fails.
pub async fn connect(
    world: &World,
    number: u16,
    to: SocketAddr,
    config: RawConfig,
) -> Result<quinn::Connection, ConnectionError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(world.ca.certificate_der().to_vec())).expect("the CA is valid");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clock = Arc::new(TestTime(world.clock()));
    let builder = rustls::ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is known")
        .with_root_certificates(roots);
    let mut tls = match config.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from(identity.chain[0].clone())],
                PrivatePkcs8KeyDer::from(identity.key.expose_secret().to_vec()).into(),
            )
            .expect("the identity is valid"),
    };
    tls.alpn_protocols = vec![config.alpn];
    let quic = QuicClientConfig::try_from(tls).expect("TLS 1.3 is on");
    let mut client = quinn::ClientConfig::new(Arc::new(quic));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    client.transport_config(Arc::new(transport));
    let socket = world.network.socket((World::machine_ip(number), 50_000).into());
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )
    .expect("a simulated socket works");
    endpoint.connect_with(client, to, SERVER_NAME).expect("the address is valid").await
}

/// Waits until the other side closes, and returns code and reason.
///
/// # Panics
/// When the connection ends in another way.
pub async fn close_of(connection: &quinn::Connection) -> (u64, String) {
    match within("a close", connection.closed()).await {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => {
            (error_code.into_inner(), String::from_utf8_lossy(&reason).into_owned())
        }
        other => panic!("the connection ended without a close of the link: {other}"),
    }
}

#[derive(Clone)]
struct TestTime(keelson_transport::WallClock);

impl std::fmt::Debug for TestTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestTime")
    }
}

impl rustls::time_provider::TimeProvider for TestTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let ms = u64::try_from((self.0)().0).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}
