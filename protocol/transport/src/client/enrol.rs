//! Enrolment: how a machine gets its first certificate.
//!
//! The machine knows the coordinator by the fingerprint of its CA only. The token is sent after TLS has proven that
//! the coordinator holds a certificate of that CA, so nobody else ever sees it.

use std::fmt;
use std::net::SocketAddr;

use keelson_protocol::message::{EnrolReply, EnrolRequest, Refusal, RefusalCode};
use keelson_protocol::wire::{EncodeError, encode_framed};

use super::{LinkEndpoint, dial};
use crate::clock::{WallClock, system_clock};
use crate::close::{CloseCode, close};
use crate::error::LinkError;
use crate::frame::{self, FrameReader};
use crate::identity::PeerIdentity;
use crate::settings::ENROL_WAIT;
use crate::tls::CaTrust;

/// What [`enrol`] needs.
pub struct EnrolConfig {
    /// Coordinators, tried in this order.
    pub coordinators: Vec<SocketAddr>,
    /// SHA-256 of the link CA's certificate (DER), hexadecimal, from the metadata channel.
    pub ca_fingerprint: String,
    /// The socket. `None`: one of its own.
    pub endpoint: Option<LinkEndpoint>,
    /// Time against which the coordinator's certificate is checked.
    pub clock: WallClock,
}

impl EnrolConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(coordinators: Vec<SocketAddr>, ca_fingerprint: impl Into<String>) -> Self {
        Self { coordinators, ca_fingerprint: ca_fingerprint.into(), endpoint: None, clock: system_clock() }
    }
}

impl fmt::Debug for EnrolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolConfig")
            .field("coordinators", &self.coordinators)
            .field("ca_fingerprint", &self.ca_fingerprint)
            .finish_non_exhaustive()
    }
}

/// What a machine has after its enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The machine's certificate chain (DER), leaf first, CA last.
    pub chain: Vec<Vec<u8>>,
    /// The link CA's certificate (DER), whose fingerprint is the one that the machine was given.
    pub ca_der: Vec<u8>,
}

/// Why a machine has no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// A coordinator answered, and refused.
    #[error("enrolment refused: {refusal}")]
    Refused {
        /// The refusal.
        refusal: Refusal,
    },
    /// No coordinator could be asked.
    #[error("no coordinator could be asked: {}", attempts_in_words(.attempts))]
    Unreachable {
        /// Every address with what went wrong there.
        attempts: Vec<(SocketAddr, LinkError)>,
    },
    /// The configuration names no coordinator, or no fingerprint.
    #[error("the enrolment data is incomplete: {why}")]
    Config {
        /// What is missing.
        why: &'static str,
    },
    /// The request breaks its own limits.
    #[error("the request cannot be sent")]
    Encode(#[from] EncodeError),
}

fn attempts_in_words(attempts: &[(SocketAddr, LinkError)]) -> String {
    attempts.iter().map(|(address, error)| format!("{address}: {error}")).collect::<Vec<_>>().join("; ")
}

/// Asks for the first certificate: one try at each coordinator, until one of them decides.
///
/// # Errors
/// [`EnrolError::Refused`] when a coordinator said no (the code tells whether trying again makes sense),
/// [`EnrolError::Unreachable`] when none could be asked, [`EnrolError::Config`] or [`EnrolError::Encode`] when the
/// arguments cannot be right.
pub async fn enrol(config: &EnrolConfig, request: EnrolRequest) -> Result<Enrolled, EnrolError> {
    let trust = CaTrust::Fingerprint(config.ca_fingerprint.clone());
    if trust.fingerprint().is_none() {
        return Err(EnrolError::Config { why: "the CA fingerprint is not 64 hexadecimal digits" });
    }
    if config.coordinators.is_empty() {
        return Err(EnrolError::Config { why: "it names no coordinator" });
    }
    let framed = encode_framed(&request)?;
    let mut attempts = Vec::new();
    let mut busy = None;
    for address in &config.coordinators {
        match ask(config, *address, &trust, &request, &framed).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(LinkError::Refused { refusal }) if refusal.code == RefusalCode::Busy => busy = Some(refusal),
            Err(LinkError::Refused { refusal }) => return Err(EnrolError::Refused { refusal }),
            Err(error) => attempts.push((*address, error)),
        }
    }
    match busy {
        Some(refusal) => Err(EnrolError::Refused { refusal }),
        None => Err(EnrolError::Unreachable { attempts }),
    }
}

async fn ask(
    config: &EnrolConfig,
    address: SocketAddr,
    trust: &CaTrust,
    request: &EnrolRequest,
    framed: &[u8],
) -> Result<Enrolled, LinkError> {
    let endpoint = match &config.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            LinkEndpoint::bind(&[address]).map_err(|error| LinkError::Socket { why: error.to_string() })?
        }
    };
    let connection = dial::connect(&endpoint, address, trust, None, &config.clock).await?;
    let reply = match tokio::time::timeout(ENROL_WAIT, exchange(&connection, framed)).await {
        Ok(Ok(reply)) => Ok(reply),
        // What the coordinator said when it closed explains more than the stream that broke by it.
        Ok(Err(error)) => Err(connection.close_reason().map_or(error, LinkError::from)),
        Err(_) => Err(LinkError::NoAnswer { within: ENROL_WAIT }),
    };
    close(&connection, CloseCode::Done, "");
    if config.endpoint.is_none() {
        // The coordinator holds a permit until it has been told.
        let _ = tokio::time::timeout(crate::settings::CLOSE_TIMEOUT, endpoint.wait_idle()).await;
    }
    match reply? {
        EnrolReply::Refused(refusal) => Err(LinkError::Refused { refusal }),
        EnrolReply::Accepted { chain } => check(chain, trust, request),
    }
}

async fn exchange(connection: &quinn::Connection, framed: &[u8]) -> Result<EnrolReply, LinkError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    frame::write(&mut send, framed).await?;
    let _ = send.finish();
    FrameReader::default().read::<EnrolReply>(&mut recv).await?.ok_or_else(|| LinkError::Protocol {
        why: "the coordinator ended the stream without an answer".into(),
    })
}

/// A chain that is not ours would only fail later, and less clearly.
fn check(chain: Vec<Vec<u8>>, trust: &CaTrust, request: &EnrolRequest) -> Result<Enrolled, LinkError> {
    let refuse =
        |why: String| LinkError::Protocol { why: format!("the certificate that came is not usable: {why}") };
    let [leaf, .., ca] = chain.as_slice() else {
        return Err(refuse(format!("{} certificates, leaf and CA are needed", chain.len())));
    };
    if CaTrust::Certificate(ca.clone()).fingerprint() != trust.fingerprint() {
        return Err(refuse("its CA is another one".into()));
    }
    let identity = PeerIdentity::from_certificate(leaf).map_err(|error| refuse(error.to_string()))?;
    if (&identity.machine, identity.incarnation) != (&request.machine, request.incarnation) {
        return Err(refuse(format!("it is for {} {}", identity.machine, identity.incarnation)));
    }
    Ok(Enrolled { ca_der: ca.clone(), chain })
}
