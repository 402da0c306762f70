//! The certificate of the coordinator's own HTTPS API.

use std::time::Duration;

use keelson_model::Authority;
use keelson_protocol::config::{CertificateSpec, Issuer, Usage};
use keelson_protocol::{SecretBytes, WallTime};

use crate::authority::{PkiError, leaf_params, load_authority, new_authority, new_key, pem_of};

/// Life of the API's certificate; a new one is made at every start, and after half of it.
pub const API_LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Makes the authority that vouches for the API's certificates; clients pin it.
///
/// # Errors
/// [`PkiError::Key`], [`PkiError::Certificate`] or [`PkiError::Entropy`].
pub fn new_api_authority(install: &str, now: WallTime) -> Result<Authority, PkiError> {
    new_authority(&format!("keelson {install} API"), now)
}

/// A server certificate with its key for the API on loopback, as PEM: `(certificate, key)`.
///
/// # Errors
/// [`PkiError::Key`], [`PkiError::Certificate`] or [`PkiError::Stored`].
pub fn api_certificate(authority: &Authority, now: WallTime) -> Result<(String, SecretBytes), PkiError> {
    let spec = CertificateSpec {
        name: "api".to_owned(),
        certificate_path: String::new(),
        key_path: String::new(),
        issuer: Issuer::Kubernetes,
        common_name: "keelson API".to_owned(),
        organizations: Vec::new(),
        dns_names: vec!["localhost".to_owned()],
        addresses: vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()],
        usage: Usage::Server,
        lifetime_s: u32::try_from(API_LEAF_LIFE.as_secs()).unwrap_or(u32::MAX),
    };
    let key = new_key("the API")?;
    let certificate = leaf_params(&spec, now)?
        .signed_by(&key, &load_authority(authority, "API")?)
        .map_err(|source| PkiError::Certificate { subject: "the API".to_owned(), source })?;
    Ok((certificate.pem(), pem_of(&key)))
}
