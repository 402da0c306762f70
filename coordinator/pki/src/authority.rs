//! The authorities of one cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keelson_model::{Authority, ClusterMaterial};
use keelson_protocol::config::{CertificateSpec, Issuer as IssuerName, Usage};
use keelson_protocol::{ClusterName, SecretBytes, WallTime};
use keelson_transport::{CaError, requested_key};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::SecureRandom;
use time::OffsetDateTime;

/// Life of a cluster's authorities. Rotation in three stages comes long before its end.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much earlier than `now` a certificate begins, at most by its life: a machine whose clock is an hour behind can use it at
/// once.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 3600);

/// Why a key or certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key could not be made.
    #[error("a key for {subject} could not be made")]
    Key {
        /// For whom.
        subject: String,
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
    /// The signing request is refused.
    #[error("the signing request of {subject} is refused")]
    SigningRequest {
        /// Whose it is.
        subject: String,
        /// Which rule it breaks.
        #[source]
        source: CaError,
    },
    /// The cluster's stored keys cannot be used.
    #[error("the stored {issuer} authority cannot be used: {why}")]
    Stored {
        /// Which authority.
        issuer: String,
        /// What is wrong with it; never holds content of the key.
        why: String,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Entropy,
}

/// Makes all keys of a new cluster.
///
/// # Errors
/// [`PkiError::Key`], [`PkiError::Certificate`] or [`PkiError::Entropy`].
pub fn new_cluster_material(cluster: &ClusterName, now: WallTime) -> Result<ClusterMaterial, PkiError> {
    let mut authorities = BTreeMap::new();
    for (issuer, purpose) in [
        (IssuerName::Kubernetes, "kubernetes"),
        (IssuerName::Etcd, "etcd"),
        (IssuerName::FrontProxy, "front-proxy"),
    ] {
        authorities.insert(issuer, new_authority(&format!("keelson {cluster} {purpose}"), now)?);
    }
    let service_account = new_key("service accounts")?;
    let mut encryption_key = [0_u8; 32];
    fill_random(&mut encryption_key)?;
    Ok(ClusterMaterial {
        authorities,
        signer: new_authority(&format!("keelson {cluster} certificates API"), now)?,
        service_account_key: pem_of(&service_account),
        service_account_public_key: service_account.public_key_pem(),
        encryption_key: SecretBytes::new(BASE64.encode(encryption_key).into_bytes()),
    })
}

/// Signs the key of `signing_request` (DER, untrusted) for the names that `spec` gives; returns the chain in DER, leaf
/// first. Nothing but the key is taken from the request.
///
/// # Errors
/// [`PkiError::SigningRequest`] when the request is malformed or not signed with its own key; [`PkiError::Stored`] when
/// the cluster's authority cannot be read.
pub fn sign_leaf(
    material: &ClusterMaterial,
    spec: &CertificateSpec,
    signing_request: &[u8],
    now: WallTime,
) -> Result<Vec<Vec<u8>>, PkiError> {
    let key = requested_key(signing_request)
        .map_err(|source| PkiError::SigningRequest { subject: spec.common_name.clone(), source })?;
    let issuer = load(material, spec.issuer)?;
    let certificate = leaf_params(spec, now)?
        .signed_by(&key, &issuer)
        .map_err(|source| PkiError::Certificate { subject: spec.common_name.clone(), source })?;
    Ok(vec![certificate.der().to_vec()])
}

/// A client certificate with its key for a person, as PEM: `(certificate, key)`.
///
/// # Errors
/// [`PkiError::Key`], [`PkiError::Certificate`] or [`PkiError::Stored`].
pub fn admin_certificate(
    material: &ClusterMaterial,
    user: &str,
    group: &str,
    now: WallTime,
    life: Duration,
) -> Result<(String, SecretBytes), PkiError> {
    let spec = CertificateSpec {
        name: user.to_owned(),
        certificate_path: String::new(),
        key_path: String::new(),
        issuer: IssuerName::Kubernetes,
        common_name: user.to_owned(),
        organizations: vec![group.to_owned()],
        dns_names: Vec::new(),
        addresses: Vec::new(),
        usage: Usage::Client,
        lifetime_s: u32::try_from(life.as_secs()).unwrap_or(u32::MAX),
    };
    let key = new_key(user)?;
    let certificate = leaf_params(&spec, now)?
        .signed_by(&key, &load(material, spec.issuer)?)
        .map_err(|source| PkiError::Certificate { subject: user.to_owned(), source })?;
    Ok((certificate.pem(), pem_of(&key)))
}

pub(crate) fn new_authority(common_name: &str, now: WallTime) -> Result<Authority, PkiError> {
    let key = new_key(common_name)?;
    let mut params = blank_params(now, AUTHORITY_LIFE)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params
        .self_signed(&key)
        .map_err(|source| PkiError::Certificate { subject: common_name.to_owned(), source })?;
    Ok(Authority { certificate: certificate.pem(), key: pem_of(&key) })
}

fn load(material: &ClusterMaterial, name: IssuerName) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let missing = || PkiError::Stored { issuer: format!("{name:?}"), why: "it is missing".to_owned() };
    load_authority(material.authorities.get(&name).ok_or_else(missing)?, &format!("{name:?}"))
}

pub(crate) fn load_authority(
    authority: &Authority,
    name: &str,
) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let stored = |why: &str| PkiError::Stored { issuer: name.to_owned(), why: why.to_owned() };
    let key = std::str::from_utf8(authority.key.expose_secret()).map_err(|_| stored("its key is no text"))?;
    let key = KeyPair::from_pem(key).map_err(|_| stored("its key is no PKCS#8 PEM block"))?;
    Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(|_| stored("its certificate is malformed"))
}

pub(crate) fn leaf_params(spec: &CertificateSpec, now: WallTime) -> Result<CertificateParams, PkiError> {
    let mut params = blank_params(now, Duration::from_secs(u64::from(spec.lifetime_s)))?;
    params.distinguished_name.push(DnType::CommonName, spec.common_name.as_str());
    for organization in &spec.organizations {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    for name in &spec.dns_names {
        let name = name.as_str().try_into();
        let name =
            name.map_err(|source| PkiError::Certificate { subject: spec.common_name.clone(), source })?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(spec.addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match spec.usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn blank_params(now: WallTime, life: Duration) -> Result<CertificateParams, PkiError> {
    let moment = |at: i64| {
        OffsetDateTime::from_unix_timestamp(at.div_euclid(1_000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    let skew = i64::try_from(CLOCK_SKEW.min(life).as_millis()).unwrap_or(0);
    let mut serial = [0_u8; 16];
    fill_random(&mut serial)?;
    // A serial number is positive (RFC 5280, section 4.1.2.2) and not zero.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = moment(now.0.saturating_sub(skew));
    params.not_after = moment(now.plus(life).0);
    Ok(params)
}

pub(crate) fn new_key(subject: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Key { subject: subject.to_owned(), source })
}

pub(crate) fn pem_of(key: &KeyPair) -> SecretBytes {
    SecretBytes::new(key.serialize_pem().into_bytes())
}

fn fill_random(bytes: &mut [u8]) -> Result<(), PkiError> {
    ring::rand::SystemRandom::new().fill(bytes).map_err(|_| PkiError::Entropy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_transport::make_key_request;

    const NOW: WallTime = WallTime(1_800_000_000_000);

    fn spec(issuer: IssuerName) -> CertificateSpec {
        CertificateSpec {
            name: "kubelet".to_owned(),
            certificate_path: "/var/lib/keelson/pki/kubelet.crt".to_owned(),
            key_path: "/var/lib/keelson/pki/kubelet.key".to_owned(),
            issuer,
            common_name: "system:node:demo-worker-1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            dns_names: vec!["demo-worker-1".to_owned()],
            addresses: vec![[10, 210, 1, 4].into()],
            usage: Usage::Both,
            lifetime_s: 3_600,
        }
    }

    #[test]
    fn each_issuer_signs_and_the_request_gives_nothing_but_its_key() {
        let material = new_cluster_material(&ClusterName::new("demo").unwrap(), NOW).unwrap();
        for issuer in [IssuerName::Kubernetes, IssuerName::Etcd, IssuerName::FrontProxy] {
            let request = make_key_request().unwrap();
            let chain = sign_leaf(&material, &spec(issuer), &request.signing_request, NOW).unwrap();
            assert_eq!(chain.len(), 1);
            let text = String::from_utf8_lossy(&chain[0]).into_owned();
            assert!(text.contains("system:node:demo-worker-1") && text.contains("system:nodes"));
        }
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let material = new_cluster_material(&ClusterName::new("demo").unwrap(), NOW).unwrap();
        let mut request = make_key_request().unwrap().signing_request;
        let last = request.len() - 1;
        request[last] ^= 1;
        let refused = sign_leaf(&material, &spec(IssuerName::Etcd), &request, NOW);
        assert!(matches!(refused, Err(PkiError::SigningRequest { .. })), "{refused:?}");
    }

    #[test]
    fn debug_output_of_material_shows_no_key() {
        let material = new_cluster_material(&ClusterName::new("demo").unwrap(), NOW).unwrap();
        assert!(!format!("{material:?}").contains("PRIVATE KEY"));
    }
}
