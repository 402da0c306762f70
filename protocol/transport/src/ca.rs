//! The link's certificate authority: who is the coordinator, and which machine is which.
//!
//! One CA (ECDSA P-256) signs the coordinator's certificate, which carries [`SERVER_NAME`], and each machine's, which
//! carries machine id and incarnation and nothing else that the machine asked for. `now` comes from the caller.

use std::fmt;
use std::time::Duration;

use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::SecureRandom;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::identity::{Identity, machine_uri};

/// Name in the coordinator's certificate, whatever its addresses are: agents know addresses, and trust this name.
pub const SERVER_NAME: &str = "coordinator.keelson.internal";

/// Life of a machine's and of the coordinator's link certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// How much earlier than `now` a certificate begins, at most by its life: a machine whose clock is an hour behind can use it at
/// once.
pub const CLOCK_SKEW: Duration = Duration::from_secs(2 * 3600);

/// Largest signing request, in bytes. One for a P-256 key without attributes has about 200.
pub const SIGNING_REQUEST_BYTES_MAX: usize = 4 * 1024;

/// Why the CA did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key could not be made.
    #[error("a key could not be made")]
    Key {
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be made.
    #[error("a certificate for {subject} could not be made")]
    Certificate {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The stored CA cannot be read.
    #[error("the stored link CA cannot be used: {why}")]
    Stored {
        /// What is wrong with it. Never holds content of the key.
        why: String,
    },
    /// The life begins or ends at a time that a certificate cannot hold, or after the CA's own end.
    #[error("a certificate cannot live from {not_before} to {not_after}: {why}")]
    Life {
        /// Begin.
        not_before: WallTime,
        /// End.
        not_after: WallTime,
        /// Which rule.
        why: &'static str,
    },
    /// The signing request is not one that we sign.
    #[error("the signing request is refused: {why}")]
    SigningRequest {
        /// Which rule it breaks.
        why: String,
    },
}

/// When a certificate is to be renewed: after two thirds of its life, so that a third is left for a coordinator that
/// is away.
#[must_use]
pub fn renew_at(not_before: WallTime, not_after: WallTime) -> WallTime {
    let life_ms = u64::try_from(not_after.since(not_before).as_millis()).unwrap_or(u64::MAX);
    not_before.plus(Duration::from_millis(life_ms - life_ms.div_ceil(3)))
}

/// Certificate and key of the link CA. `Debug` shows the fingerprint only.
pub struct LinkCa {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    not_after: WallTime,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for LinkCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkCa").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl LinkCa {
    /// Makes a new CA that is valid from `now` (less [`CLOCK_SKEW`]) for `life`.
    ///
    /// # Errors
    /// [`CaError::Key`], [`CaError::Life`] or [`CaError::Certificate`].
    pub fn generate(common_name: &str, now: WallTime, life: Duration) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(|source| CaError::Key { source })?;
        let mut params = blank_params(now, now.plus(life))?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .map_err(|source| CaError::Certificate { subject: common_name.to_owned(), source })?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            not_after: now.plus(life),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads a CA that [`LinkCa::to_pem`] wrote. `key` holds PEM bytes.
    ///
    /// # Errors
    /// [`CaError::Stored`] when one of both cannot be read, or when they do not belong together.
    pub fn from_pem(certificate: &str, key: &SecretBytes) -> Result<Self, CaError> {
        let stored = |why: &str| CaError::Stored { why: why.to_owned() };
        let key_pem =
            std::str::from_utf8(key.expose_secret()).map_err(|_| stored("the key is no PEM text"))?;
        let key = KeyPair::from_pem(key_pem).map_err(|_| stored("the key is no PKCS#8 PEM block"))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| stored("the certificate is no PEM block"))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| stored("the certificate is malformed"))?;
        if !parsed.is_ca() {
            return Err(stored("the certificate is not one of a CA"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(stored("the key does not belong to the certificate"));
        }
        let not_after = WallTime(parsed.validity().not_after.timestamp().saturating_mul(1_000));
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|source| CaError::Stored { why: source.to_string() })?;
        Ok(Self { certificate_pem: certificate.to_owned(), certificate_der: der.to_vec(), not_after, issuer })
    }

    /// Certificate and key as PEM, for the store.
    #[must_use]
    pub fn to_pem(&self) -> (String, SecretBytes) {
        let key = SecretBytes::new(self.issuer.key().serialize_pem().into_bytes());
        (self.certificate_pem.clone(), key)
    }

    /// The certificate (DER).
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// SHA-256 of the certificate (DER) in lower-case hexadecimal: what a new machine is given to know us by.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate_der)
    }

    /// End of the CA's life. No certificate that it signs lives longer.
    #[must_use]
    pub fn not_after(&self) -> WallTime {
        self.not_after
    }

    /// A key for [`crate::ServerConfig::reset_key`] that stays the same as long as the CA does, so that a restarted
    /// coordinator can tell agents at once that their sessions are gone (RFC 9000, section 10.3).
    #[must_use]
    pub fn reset_key(&self) -> SecretBytes {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.issuer.key().serialized_der());
        SecretBytes::new(ring::hmac::sign(&key, b"keelson link stateless reset 1").as_ref().to_vec())
    }

    /// Makes a key and a certificate for the coordinator.
    ///
    /// # Errors
    /// [`CaError::Key`], [`CaError::Life`] or [`CaError::Certificate`].
    pub fn issue_server(&self, now: WallTime, life: Duration) -> Result<Identity, CaError> {
        let key = KeyPair::generate().map_err(|source| CaError::Key { source })?;
        let name = SERVER_NAME.try_into().expect("the server name is ASCII");
        let leaf = self.sign(&key, SanType::DnsName(name), ExtendedKeyUsagePurpose::ServerAuth, now, life)?;
        Ok(Identity { chain: self.chain(&leaf), key: SecretBytes::new(key.serialize_der()) })
    }

    /// Signs the key of a PKCS#10 request (DER, untrusted) for a machine, and returns the chain: leaf first, CA last.
    /// Takes nothing but the key from the request; names and usages come from the arguments.
    ///
    /// # Errors
    /// [`CaError::SigningRequest`] when the request is malformed, is not signed with the key that it holds, or holds
    /// another kind of key than P-256; [`CaError::Life`] or [`CaError::Certificate`].
    pub fn sign_machine(
        &self,
        signing_request_der: &[u8],
        machine: &MachineId,
        incarnation: Incarnation,
        now: WallTime,
        life: Duration,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        let key = requested_key(signing_request_der)?;
        let uri = machine_uri(machine, incarnation).try_into().expect("machine ids are ASCII");
        let leaf = self.sign(&key, SanType::URI(uri), ExtendedKeyUsagePurpose::ClientAuth, now, life)?;
        Ok(self.chain(&leaf))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        name: SanType,
        usage: ExtendedKeyUsagePurpose,
        now: WallTime,
        life: Duration,
    ) -> Result<Certificate, CaError> {
        let mut params = blank_params(now, now.plus(life).min(self.not_after))?;
        let subject = format!("{name:?}");
        params.serial_number = Some(random_serial()?);
        params.subject_alt_names = vec![name];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).map_err(|source| CaError::Certificate { subject, source })
    }

    fn chain(&self, leaf: &Certificate) -> Vec<Vec<u8>> {
        vec![leaf.der().to_vec(), self.certificate_der.clone()]
    }
}

/// SHA-256 of `der` in lower-case hexadecimal.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, der))
}

/// Checks a signing request (DER, untrusted) and returns its key.
///
/// # Errors
/// [`CaError::SigningRequest`] says which rule it breaks.
pub fn requested_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CaError> {
    let refuse = |why: &str| CaError::SigningRequest { why: why.to_owned() };
    if der.len() > SIGNING_REQUEST_BYTES_MAX {
        return Err(CaError::SigningRequest {
            why: format!("it has {} bytes, at most {SIGNING_REQUEST_BYTES_MAX} are allowed", der.len()),
        });
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| refuse("it is no PKCS#10 request in DER"))?;
    if !rest.is_empty() {
        return Err(refuse("bytes follow it"));
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|_| refuse("its key is of an unknown kind; make an ECDSA P-256 key"))?;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(refuse("its key is not an ECDSA P-256 key"));
    }
    request.verify_signature().map_err(|_| refuse("it is not signed with the key that it holds"))?;
    Ok(key)
}

/// SHA-256 of the key in a signing request (DER, untrusted), in lower-case hexadecimal: tells whether two requests come
/// from one holder.
///
/// # Errors
/// As [`requested_key`].
pub fn requested_key_fingerprint(der: &[u8]) -> Result<String, CaError> {
    Ok(fingerprint(requested_key(der)?.der_bytes()))
}

fn blank_params(now: WallTime, not_after: WallTime) -> Result<CertificateParams, CaError> {
    let skew = CLOCK_SKEW.min(not_after.since(now));
    let not_before = WallTime(now.0.saturating_sub(i64::try_from(skew.as_millis()).unwrap_or(i64::MAX)));
    let refuse = |why| CaError::Life { not_before, not_after, why };
    if not_after <= now {
        return Err(refuse("it would be over already; renew the link CA when its own end is near"));
    }
    let moment = |at: WallTime| OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1_000));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(not_before).map_err(|_| refuse("the begin is no date"))?;
    params.not_after = moment(not_after).map_err(|_| refuse("the end is no date"))?;
    Ok(params)
}

pub(crate) fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CaError::Key { source: rcgen::Error::RingUnspecified })?;
    // A serial number is positive (RFC 5280, section 4.1.2.2) and not zero.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
