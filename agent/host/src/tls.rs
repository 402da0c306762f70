//! TLS for probes: our CA file, and where the server wants it our client certificate.

use std::sync::Arc;

use keelson_protocol::config::ClientFiles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::files::Stamp;

/// What a TLS configuration was made from, to see when it must be made again.
pub(crate) type Stamps = [Option<Stamp>; 3];

/// The stamps of the files now.
pub(crate) fn stamps(ca_path: &str, client: Option<&ClientFiles>) -> Stamps {
    let certificate = client.and_then(|client| Stamp::of_path(&client.certificate_path));
    let key = client.and_then(|client| Stamp::of_path(&client.key_path));
    [Stamp::of_path(ca_path), certificate, key]
}

/// Reads the files and makes a configuration.
pub(crate) fn client_config(
    ca_path: &str,
    client: Option<&ClientFiles>,
) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let mut added = 0;
    for certificate in CertificateDer::pem_file_iter(ca_path).map_err(|error| unreadable(ca_path, &error))? {
        let certificate = certificate.map_err(|error| unreadable(ca_path, &error))?;
        roots.add(certificate).map_err(|error| unreadable(ca_path, &error))?;
        added += 1;
    }
    if added == 0 {
        return Err(format!("{ca_path} holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots);
    let Some(client) = client else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&client.certificate_path)
        .map_err(|error| unreadable(&client.certificate_path, &error))?
        .collect();
    let chain = chain.map_err(|error| unreadable(&client.certificate_path, &error))?;
    let key = PrivateKeyDer::from_pem_file(&client.key_path)
        .map_err(|error| unreadable(&client.key_path, &error))?;
    let config = builder.with_client_auth_cert(chain, key);
    config.map(Arc::new).map_err(|error| unreadable(&client.certificate_path, &error))
}

/// Errors of readers name what is wrong, never content.
fn unreadable(path: &str, error: &dyn std::fmt::Display) -> String {
    format!("{path} cannot be used: {error}")
}
