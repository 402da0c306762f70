//! The router on top of a fleet, served over real TCP and TLS on a free port.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::auth::AuthConfig;
use crate::fleet::Fleet;
use crate::types::SecretText;

/// The one token that a test server accepts.
pub const TOKEN: &str = "test-token-0123456789abcdef0123456789abcdef";

/// A server that ends when it is dropped.
#[derive(Debug)]
pub struct TestServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate to trust (PEM).
    pub ca_pem: String,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    /// Serves `fleet` on a free port of the loopback interface.
    ///
    /// # Panics
    /// When the machine has no free port: this is for tests.
    pub async fn start(fleet: Arc<dyn Fleet>) -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("the names are valid");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("rcgen makes PKCS#8 keys");
        let tls =
            crate::serve::server_config(vec![cert.der().clone()], key).expect("key and certificate match");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let auth = AuthConfig::new().with_token("admin", &SecretText::new(TOKEN)).expect("it is long enough");
        let (stop, stopped) = oneshot::channel::<()>();
        let router = crate::router(fleet, auth);
        let (_, tls) = tokio::sync::watch::channel(tls);
        let task = tokio::spawn(crate::serve(listener, tls, router, async {
            let _ = stopped.await;
        }));
        Self { address, ca_pem: cert.pem(), stop: Some(stop), task }
    }

    /// Where it is reached.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// A context file for it, as JSON.
    #[must_use]
    pub fn context(&self) -> String {
        let context =
            serde_json::json!({ "server": self.url(), "caCertificate": self.ca_pem, "token": TOKEN });
        context.to_string()
    }

    /// Stops it and waits until it has stopped.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
