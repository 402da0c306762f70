//! Who one is on the link: certificates with their keys, requests for them, and what a peer's certificate says.

use std::fmt;

use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::ca::CaError;

/// Largest certificate that is looked at, in bytes. Ours have 500 to 700.
pub const CERTIFICATE_BYTES_MAX: usize = 4 * 1024;

/// Scheme and authority of the URI that names a machine in its certificate (RFC 5280, section 4.2.1.6).
const MACHINE_URI: &str = "keelson://machine/";

/// A certificate chain with the key of its leaf. `Debug` shows sizes only.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Certificates (DER), leaf first, CA last.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's key (PKCS#8, DER).
    pub key: SecretBytes,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("chain_bytes", &self.chain.iter().map(Vec::len).collect::<Vec<_>>())
            .field("key", &self.key)
            .finish()
    }
}

/// A key that was made here, with the request to certify it.
#[derive(Debug, Clone)]
pub struct KeyRequest {
    /// The key (PKCS#8, DER). Never leaves the machine.
    pub key: SecretBytes,
    /// PKCS#10 request (DER, RFC 2986), signed with the key. Asks for nothing: the CA decides what stands in the
    /// certificate.
    pub signing_request: Vec<u8>,
}

/// Makes a P-256 key and the request to certify it.
///
/// # Errors
/// [`CaError::Key`] when the system has no randomness.
pub fn make_key_request() -> Result<KeyRequest, CaError> {
    request_for(&KeyPair::generate().map_err(|source| CaError::Key { source })?)
}

/// Makes the request to certify a key that is there already, PKCS#8 in DER.
///
/// # Errors
/// [`CaError::Key`] when it is no such key.
pub fn key_request_of(key: &SecretBytes) -> Result<KeyRequest, CaError> {
    request_for(&KeyPair::try_from(key.expose_secret()).map_err(|source| CaError::Key { source })?)
}

fn request_for(key: &KeyPair) -> Result<KeyRequest, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|source| CaError::Key { source })?;
    Ok(KeyRequest { key: SecretBytes::new(key.serialize_der()), signing_request: request.der().to_vec() })
}

/// What a machine's certificate says about it. Whether the certificate can be trusted is TLS's to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The machine.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Begin of the certificate's life.
    pub not_before: WallTime,
    /// End of the certificate's life.
    pub not_after: WallTime,
}

/// Why a certificate names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Larger than any of ours.
    #[error("the certificate has {bytes} bytes, at most {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// No X.509 certificate in DER.
    #[error("the certificate is malformed")]
    Malformed,
    /// Not exactly one subject alternative name, or not a machine's.
    #[error(
        "the certificate must carry exactly one name, {MACHINE_URI}<id>/<incarnation>; it carries {names}"
    )]
    NotAMachine {
        /// What it carries, shortened.
        names: String,
    },
}

impl PeerIdentity {
    /// Reads the identity out of a leaf certificate (DER). The bytes are untrusted.
    ///
    /// # Errors
    /// [`IdentityError`] when the bytes are no certificate of a machine.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(IdentityError::TooLarge { bytes: der.len() });
        }
        let (rest, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed);
        }
        let names = certificate
            .extensions()
            .iter()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .collect::<Vec<_>>();
        let [GeneralName::URI(uri)] = names.as_slice() else {
            return Err(IdentityError::NotAMachine { names: format!("{} other names", names.len()) });
        };
        let (machine, incarnation) = parse_machine_uri(uri)
            .ok_or_else(|| IdentityError::NotAMachine { names: uri.chars().take(80).collect() })?;
        let validity = certificate.validity();
        Ok(Self {
            machine,
            incarnation,
            not_before: WallTime(validity.not_before.timestamp().saturating_mul(1_000)),
            not_after: WallTime(validity.not_after.timestamp().saturating_mul(1_000)),
        })
    }
}

/// The URI that names a machine in its certificate.
pub(crate) fn machine_uri(machine: &MachineId, incarnation: Incarnation) -> String {
    format!("{MACHINE_URI}{machine}/{incarnation}")
}

fn parse_machine_uri(uri: &str) -> Option<(MachineId, Incarnation)> {
    let (machine, number) = uri.strip_prefix(MACHINE_URI)?.split_once('/')?;
    let machine = MachineId::new(machine).ok()?;
    let incarnation = Incarnation(number.parse().ok()?);
    // Only the one canonical spelling: `+1` and `01` parse as numbers too.
    (machine_uri(&machine, incarnation) == uri).then_some((machine, incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_uris_have_one_spelling() {
        fn check(uri: &str, expected: Option<(&str, u32)>) {
            let got = parse_machine_uri(uri);
            let got = got.as_ref().map(|(machine, incarnation)| (machine.as_str(), incarnation.0));
            assert_eq!(got, expected, "{uri}");
        }
        check("keelson://machine/demo-worker-1/3", Some(("demo-worker-1", 3)));
        check("keelson://machine/demo-worker-1/03", None);
        check("keelson://machine/demo-worker-1/+3", None);
        check("keelson://machine/demo-worker-1/-3", None);
        check("keelson://machine/demo-worker-1/3/", None);
        check("keelson://machine/demo-worker-1/", None);
        check("keelson://machine/demo-worker-1", None);
        check("keelson://machine/Demo/3", None);
        check("keelson://machine//3", None);
        check("https://machine/demo/3", None);
        check("keelson://machine/demo/4294967296", None);
        check("", None);
    }

    #[test]
    fn debug_shows_no_key() {
        let request = make_key_request().unwrap();
        let identity = Identity { chain: vec![vec![1, 2]], key: request.key.clone() };
        let shown = format!("{identity:?} {request:?}");
        let key = format!("{:?}", request.key.expose_secret());
        assert!(!shown.contains(key.trim_matches(['[', ']'])), "{shown}");
    }
}
