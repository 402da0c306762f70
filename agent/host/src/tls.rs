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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::Arc;

    use keelson_protocol::config::{Expect, ProbeSpec, ProbeTarget};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::probe::Prober;

    type Ca = Issuer<'static, KeyPair>;

    fn make_ca(path: &Path) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
        Issuer::new(params, key)
    }

    fn leaf(ca: &Ca, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, ca).unwrap(), key)
    }

    fn write_pair(files: &ClientFiles, ca: &Ca) {
        let (certificate, key) = leaf(ca, "client");
        std::fs::write(&files.certificate_path, certificate.pem()).unwrap();
        std::fs::write(&files.key_path, key.serialize_pem()).unwrap();
    }

    /// Answers every request with 200, to clients whose certificate comes from `ca`.
    async fn server(ca: &Ca, ca_path: &Path) -> SocketAddr {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca_path).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (certificate, key) = leaf(ca, "server.test");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn https_probes_know_the_server_show_a_certificate_and_notice_a_new_one() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        let ca = make_ca(&root.path().join("ca.crt"));
        let other = make_ca(&root.path().join("other.crt"));
        let client = ClientFiles { certificate_path: path("client.crt"), key_path: path("client.key") };
        let address = server(&ca, &root.path().join("ca.crt")).await;
        let probe = |server_name: &str, ca: &str, client: Option<&ClientFiles>| ProbeSpec {
            name: "it".to_owned(),
            target: ProbeTarget::Https {
                address,
                path: "/readyz".to_owned(),
                server_name: server_name.to_owned(),
                ca_path: path(ca),
                client: client.cloned(),
            },
            expect: Expect::Answer,
            timeout_ms: 5_000,
        };
        let prober = Prober::default();
        let good = probe("server.test", "ca.crt", Some(&client));
        let answer = prober.ask(&good).await.unwrap_err();
        assert!(answer.contains("client.crt cannot be used"), "{answer}");
        write_pair(&client, &ca);
        assert_eq!(prober.ask(&good).await, Ok(()));
        assert_eq!(prober.ask(&good).await, Ok(()));
        for bad in [
            probe("another.test", "ca.crt", Some(&client)),
            probe("server.test", "other.crt", Some(&client)),
            probe("server.test", "ca.crt", None),
        ] {
            assert!(prober.ask(&bad).await.is_err(), "{bad:?}");
        }
        // The connection that is kept would still do; the new certificate must be shown all the same.
        write_pair(&client, &other);
        assert!(prober.ask(&good).await.is_err());
        write_pair(&client, &ca);
        assert_eq!(prober.ask(&good).await, Ok(()));
    }
}
