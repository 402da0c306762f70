//! TLS 1.3 on both sides, with ring and only with the link CA.
//!
//! The coordinator asks for a client certificate but also lets machines in that have none yet: these may enrol and
//! nothing else. No session tickets and no 0-RTT: every connection checks the certificates again, so that an expired
//! one never slips through a resumption.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::ca::fingerprint;
use crate::clock::{TlsClock, WallClock};
use crate::identity::Identity;
use crate::settings::{ALPN, agent_transport, coordinator_transport};

/// How an agent knows the coordinator. Both name the same: the one CA whose certificates it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaTrust {
    /// SHA-256 of the CA's certificate (DER), hexadecimal: what the metadata channel hands to a new machine.
    Fingerprint(String),
    /// The CA's certificate (DER): what an enrolled machine has in its ledger.
    Certificate(Vec<u8>),
}

impl CaTrust {
    /// The fingerprint in lower-case hexadecimal; `None` when it has not the form of one.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        match self {
            Self::Certificate(der) => Some(fingerprint(der)),
            Self::Fingerprint(text) => {
                let text = text.trim().to_ascii_lowercase();
                hex::decode(&text).is_ok_and(|bytes| bytes.len() == 32).then_some(text)
            }
        }
    }
}

/// TLS could not be set up.
#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS cannot be set up: {why}")]
pub(crate) struct TlsError {
    pub(crate) why: String,
}

impl TlsError {
    fn new(what: &str, error: impl fmt::Display) -> Self {
        Self { why: format!("{what}: {error}") }
    }
}

/// ring, made once: a process that plays a fleet dials thousands of times.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

fn certificates(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

fn private_key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(identity.key.expose_secret().to_vec()).into()
}

fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    if identity.chain.is_empty() {
        return Err(TlsError { why: "the identity has no certificate".into() });
    }
    CertifiedKey::from_der(certificates(&identity.chain), private_key(identity), &provider())
        .map(Arc::new)
        .map_err(|error| TlsError::new("certificate and key", error))
}

/// The coordinator's certificate, which can be replaced while connections are being made.
pub(crate) struct CurrentIdentity(RwLock<Arc<CertifiedKey>>);

impl CurrentIdentity {
    pub(crate) fn new(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(certified_key(identity)?)))
    }

    pub(crate) fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        let key = certified_key(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }
}

impl fmt::Debug for CurrentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentIdentity")
    }
}

impl ResolvesServerCert for CurrentIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// QUIC settings of the coordinator.
pub(crate) fn server_config(
    identity: Arc<CurrentIdentity>,
    ca_der: &[u8],
    clock: WallClock,
) -> Result<quinn::ServerConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca_der.to_vec())).map_err(|error| TlsError::new("link CA", error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| TlsError::new("link CA", error))?;
    let mut tls = rustls::ServerConfig::builder_with_details(provider(), Arc::new(TlsClock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::new("TLS 1.3", error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls).map_err(|error| TlsError::new("QUIC", error))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    config.transport_config(coordinator_transport());
    Ok(config)
}

/// QUIC settings of an agent; without an identity it can only enrol.
pub(crate) fn client_config(
    trust: &CaTrust,
    identity: Option<&Identity>,
    clock: WallClock,
) -> Result<quinn::ClientConfig, TlsError> {
    let fingerprint = trust
        .fingerprint()
        .ok_or_else(|| TlsError { why: "the CA fingerprint is not 64 hexadecimal digits".into() })?;
    let verifier = Arc::new(PinnedCa { fingerprint, provider: provider() });
    let builder = rustls::ClientConfig::builder_with_details(provider(), Arc::new(TlsClock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::new("TLS 1.3", error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            // The coordinator has the CA; only the leaf travels.
            let leaf = identity.chain.get(..1).unwrap_or_default();
            if leaf.is_empty() {
                return Err(TlsError { why: "the identity has no certificate".into() });
            }
            builder
                .with_client_auth_cert(certificates(leaf), private_key(identity))
                .map_err(|error| TlsError::new("certificate and key", error))?
        }
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let quic = QuicClientConfig::try_from(tls).map_err(|error| TlsError::new("QUIC", error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(agent_transport());
    Ok(config)
}

/// Trusts the coordinator when the last certificate that it sends is the CA of that fingerprint, and the first one is
/// signed by it for the server's name.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some((ca, between)) = intermediates.split_last() else {
            return Err(rustls::Error::General("it sent no CA certificate".into()));
        };
        let got = fingerprint(ca);
        if got != self.fingerprint {
            return Err(rustls::Error::General(format!(
                "its CA has the fingerprint {got}, this machine trusts {}",
                self.fingerprint
            )));
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, between, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the link speaks TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
