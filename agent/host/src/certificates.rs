//! Keys and certificates: made, written, looked at. PEM as in RFC 7468, keys as PKCS#8 (RFC 5958).

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use keelson_agent_core::{CertificateFiles, CertificateSeen, Validity};
use keelson_protocol::{SecretBytes, WallTime};
use nix::errno::Errno;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::error::HostError;
use crate::files::{Stamp, write_together};

/// Everybody may read a certificate.
const CERTIFICATE_MODE: u32 = 0o644;
/// Only root may read a key.
const KEY_MODE: u32 = 0o600;
/// Most certificates in a chain.
const CHAIN_MAX: usize = 8;

/// Why text is not the PEM that was expected. Never holds content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// No certificate, or one that is not one.
    #[error("the file holds no readable certificate")]
    Certificate,
    /// No PKCS#8 key, or one of a kind that we do not make.
    #[error("the file holds no readable PKCS#8 key")]
    Key,
}

/// A key whose certificate has not come yet.
pub(crate) struct PendingKey {
    pair: KeyPair,
}

impl fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingKey")
    }
}

/// Makes a P-256 key and a signing request for it. The request asks for nothing: the coordinator knows what the config
/// allows.
pub(crate) fn make_key() -> Result<(PendingKey, Vec<u8>), HostError> {
    let pair = KeyPair::generate().map_err(|source| HostError::Key { source })?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&pair).map_err(|source| HostError::Key { source })?;
    Ok((PendingKey { pair }, request.der().to_vec()))
}

/// Writes a certificate and its key.
pub(crate) fn install(
    files: &CertificateFiles,
    chain: &[Vec<u8>],
    key: &PendingKey,
) -> Result<Validity, HostError> {
    let refuse = |why: &str| HostError::Certificate { certificate: files.name.clone(), why: why.to_owned() };
    let leaf = chain
        .first()
        .filter(|_| chain.len() <= CHAIN_MAX)
        .ok_or_else(|| refuse("its chain is empty or too long"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| refuse("it is malformed"))?;
    if parsed.public_key().raw != key.pair.subject_public_key_info() {
        return Err(refuse("it is for another key"));
    }
    // The key first: a reader in between sees a pair that does not match and keeps what it has.
    let (key_pem, chain_pem) = (key.pair.serialize_pem(), chain_to_pem(chain));
    write_together(&[
        (Path::new(&files.key_path), KEY_MODE, key_pem.as_bytes()),
        (Path::new(&files.certificate_path), CERTIFICATE_MODE, chain_pem.as_bytes()),
    ])?;
    Ok(validity_of(&parsed))
}

/// What was found out about a pair, with the stamps of both files then.
#[derive(Debug)]
pub(crate) struct CachedPair {
    stamps: (Option<Stamp>, Option<Stamp>),
    seen: CertificateSeen,
}

pub(crate) fn look(
    pairs: &[CertificateFiles],
    cache: &mut BTreeMap<String, CachedPair>,
) -> BTreeMap<String, CertificateSeen> {
    let mut known = std::mem::take(cache);
    let mut all = BTreeMap::new();
    for files in pairs {
        let stamps = (Stamp::of_path(&files.certificate_path), Stamp::of_path(&files.key_path));
        let pair = match known.remove(&files.name) {
            Some(pair) if pair.stamps == stamps => pair,
            // Of one that cannot be read nothing is known, and that is not kept: the next look may read it.
            _ => match look_at(files) {
                Some(seen) => CachedPair { stamps, seen },
                None => continue,
            },
        };
        all.insert(files.name.clone(), pair.seen.clone());
        cache.insert(files.name.clone(), pair);
    }
    all
}

/// `None` when it cannot be read for a want that has nothing to do with it.
fn look_at(files: &CertificateFiles) -> Option<CertificateSeen> {
    let missing = |why: &str| Some(CertificateSeen::Missing { why: why.to_owned() });
    let chain = match read(&files.certificate_path, "it is not there")? {
        Ok(chain) => chain,
        Err(why) => return missing(&why),
    };
    let key = match read(&files.key_path, "its key is not there")? {
        Ok(key) => key,
        Err(why) => return missing(&why),
    };
    let Ok(chain) = chain_from_pem(&chain) else { return missing("it is not readable") };
    let Ok(pair) = KeyPair::from_pem(&key) else { return missing("its key is not readable") };
    match x509_parser::parse_x509_certificate(&chain[0]) {
        Ok((_, parsed)) if parsed.public_key().raw == pair.subject_public_key_info() => {
            Some(CertificateSeen::Held(validity_of(&parsed)))
        }
        Ok(_) => missing("its key belongs to another certificate"),
        Err(_) => missing("it is malformed"),
    }
}

/// The text of a file, or why there is none; `None` when that cannot be told. A sector that cannot be read, or a folder in its
/// place, is as good as no file: another one is written beside it.
fn read(path: &str, missing: &str) -> Option<Result<String, String>> {
    match std::fs::read(path) {
        // Whatever it is that is no text, it is no certificate.
        Ok(bytes) => Some(Ok(String::from_utf8(bytes).unwrap_or_default())),
        Err(error) if says_nothing(&error) => None,
        Err(error) if error.kind() == ErrorKind::NotFound => Some(Err(missing.to_owned())),
        Err(error) => Some(Err(format!("{missing}: {error}"))),
    }
}

/// Whether an error tells of the want of something else than the file: of descriptors, or memory.
fn says_nothing(error: &std::io::Error) -> bool {
    let wants = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EINTR];
    wants.iter().any(|want| error.raw_os_error() == Some(*want as i32))
}

/// Validity of a certificate (DER).
///
/// # Errors
/// [`PemError::Certificate`] when the bytes are none.
pub fn validity(certificate: &[u8]) -> Result<Validity, PemError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PemError::Certificate)?;
    Ok(validity_of(&parsed))
}

fn validity_of(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Validity {
    let milliseconds = |time: x509_parser::time::ASN1Time| WallTime(time.timestamp().saturating_mul(1_000));
    let validity = certificate.validity();
    Validity { not_before: milliseconds(validity.not_before), not_after: milliseconds(validity.not_after) }
}

/// Whether a key (PKCS#8 DER) belongs to a certificate (DER).
#[must_use]
pub fn matches_key(certificate: &[u8], key: &SecretBytes) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.expose_secret()));
    pair.is_ok_and(|pair| parsed.public_key().raw == pair.subject_public_key_info())
}

/// A chain (DER) as PEM.
#[must_use]
pub fn chain_to_pem(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| block("CERTIFICATE", der)).collect()
}

/// A chain from PEM, leaf first (DER).
///
/// # Errors
/// [`PemError::Certificate`] when there is none, or when one is damaged.
pub fn chain_from_pem(text: &str) -> Result<Vec<Vec<u8>>, PemError> {
    let chain: Result<Vec<Vec<u8>>, _> = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(CHAIN_MAX)
        .map(|der| der.map(|der| der.to_vec()).map_err(|_| PemError::Certificate))
        .collect();
    chain.and_then(|chain| if chain.is_empty() { Err(PemError::Certificate) } else { Ok(chain) })
}

/// A key (PKCS#8 DER) as PEM.
#[must_use]
pub fn key_to_pem(key: &SecretBytes) -> SecretBytes {
    SecretBytes::new(block("PRIVATE KEY", key.expose_secret()).into_bytes())
}

/// A key (PKCS#8 DER) from PEM.
///
/// # Errors
/// [`PemError::Key`] when there is none.
pub fn key_from_pem(pem: &SecretBytes) -> Result<SecretBytes, PemError> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose_secret()).map_err(|_| PemError::Key)?;
    Ok(SecretBytes::new(der.secret_pkcs8_der().to_vec()))
}

fn block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
            for at in 0..4 {
                let sextet = usize::try_from(bits >> (18 - 6 * at) & 63).unwrap_or(0);
                let padding = at > group.len();
                text.push(if padding { '=' } else { char::from(ALPHABET[sextet]) });
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path) -> CertificateFiles {
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        CertificateFiles { name: "x".to_owned(), certificate_path: path("x.crt"), key_path: path("x.key") }
    }

    #[test]
    fn pem_round_trips_for_every_length() {
        for length in 1..200 {
            let der = SecretBytes::new((0..length).collect());
            assert_eq!(key_from_pem(&key_to_pem(&der)).as_ref(), Ok(&der));
        }
        let chain = vec![vec![1, 2, 3], vec![4; 100]];
        assert_eq!(chain_from_pem(&chain_to_pem(&chain)), Ok(chain));
        assert_eq!(chain_from_pem("nothing"), Err(PemError::Certificate));
    }

    #[test]
    fn a_pair_is_held_and_a_foreign_one_refused() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        let missing = |why: &str| Some(CertificateSeen::Missing { why: why.to_owned() });
        assert_eq!(look_at(&files), missing("it is not there"));
        let (key, request) = make_key().unwrap();
        assert!(!request.is_empty());
        let certificate =
            CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key.pair).unwrap();
        let chain = vec![certificate.der().to_vec()];
        let validity = install(&files, &chain, &key).unwrap();
        assert_eq!(look_at(&files), Some(CertificateSeen::Held(validity)));
        let (other, _) = make_key().unwrap();
        assert!(install(&files, &chain, &other).unwrap_err().chain().ends_with("it is for another key"));
        std::fs::write(&files.key_path, other.pair.serialize_pem()).unwrap();
        assert_eq!(look_at(&files), missing("its key belongs to another certificate"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_missing_and_a_want_of_descriptors_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        std::fs::create_dir_all(Path::new(&files.certificate_path).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&files.certificate_path, &files.certificate_path).unwrap();
        let Some(CertificateSeen::Missing { why }) = look_at(&files) else { panic!("it is held") };
        assert!(why.starts_with("it is not there: Too many levels"), "{why}");
        let of = |errno: Errno| says_nothing(&std::io::Error::from(errno));
        assert!(of(Errno::EMFILE) && of(Errno::ENFILE) && !of(Errno::EIO) && !of(Errno::ENOENT));
    }
}
