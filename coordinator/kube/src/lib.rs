//! The coordinator's hands in its clusters: nodes are looked at, marked, drained and removed.
//!
//! Place in the data flow: the core decides on a [`KubeCall`], the shell has it carried out here, and the
//! [`KubeAnswer`] or [`KubeFailure`] goes back to the core. It is the only crate of the coordinator that speaks to
//! Kubernetes.
//!
//! Deliberately does not know: machines, providers, why a node is drained, and how long that may take. Nothing is
//! remembered between two calls, and every call can be made again: what was done already is found done.

mod drain;
mod failure;
mod list;
mod nodes;
mod pods;
mod volumes;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keelson_model::kubernetes::{KubeAnswer, KubeCall, KubeFailure};
use keelson_protocol::SecretBytes;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

/// Longest wait for a connection. Masters are near: what takes longer is down.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Longest silence within one answer, so that a connection that leads nowhere does not stay in the pool.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Under which name Kubernetes keeps what was changed from here.
pub(crate) const FIELD_MANAGER: &str = "keelson";

/// How a cluster is reached, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Where its API servers answer (`https://10.0.0.1:6443`).
    pub endpoint: String,
    /// Certificates of the authorities that may have signed the API server's (PEM).
    pub authority: String,
    /// Certificate of the user that calls are made as (PEM).
    pub certificate: String,
    /// Its key (PEM).
    pub key: SecretBytes,
}

/// Why a connection cannot be made with an [`Access`].
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The endpoint is no URL.
    #[error("`{endpoint}` is no URL of an API server")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The authority is no certificate.
    #[error("the authority of the API server at {endpoint} is no certificate in PEM")]
    Authority {
        /// For which endpoint.
        endpoint: String,
    },
    /// Certificate or key of the user cannot be used.
    #[error("the certificate for the API server at {endpoint} cannot be used")]
    Certificate {
        /// For which endpoint.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// A connection to one cluster: a pool that opens connections when they are needed and closes idle ones, so that it
/// can be kept for a cluster's whole life. Clones share the pool.
#[derive(Clone)]
pub struct KubeClient {
    client: Client,
}

impl std::fmt::Debug for KubeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeClient").finish_non_exhaustive()
    }
}

impl KubeClient {
    /// A connection with these rights. Nothing is sent yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn new(access: &Access) -> Result<Self, AccessError> {
        let endpoint = || access.endpoint.clone();
        let url = access.endpoint.parse().map_err(|_| AccessError::Endpoint { endpoint: endpoint() })?;
        let mut config = Config::new(url);
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(access.authority.as_bytes())
            .map(|c| c.map(|c| c.to_vec()))
            .collect();
        let roots = roots.ok().filter(|roots| !roots.is_empty());
        config.root_cert = Some(roots.ok_or_else(|| AccessError::Authority { endpoint: endpoint() })?);
        config.connect_timeout = Some(CONNECT_MAX);
        config.read_timeout = Some(SILENCE_MAX);
        config.reset_reader_on_write = true;
        // A refused eviction is answered with status 429, which the library would take for a wish to slow down.
        config.default_retry = false;
        config.auth_info = serde_json::from_value(json!({
            "client-certificate-data": BASE64.encode(&access.certificate),
            "client-key-data": BASE64.encode(access.key.expose_secret()),
        }))
        .expect("both fields are texts, as in a kubeconfig");
        let client = Client::try_from(config)
            .map_err(|source| AccessError::Certificate { endpoint: endpoint(), source: Box::new(source) })?;
        Ok(Self { client })
    }

    /// Carries out one call, and gives up when it takes longer than `deadline`. What was done until then stays done.
    ///
    /// # Errors
    /// See [`KubeFailure`].
    pub async fn perform(&self, call: &KubeCall, deadline: Duration) -> Result<KubeAnswer, KubeFailure> {
        let late = |_| KubeFailure::Unreachable {
            why: format!("it was not done within {} ms", deadline.as_millis()),
        };
        tokio::time::timeout(deadline, self.carry_out(call)).await.map_err(late)?
    }

    async fn carry_out(&self, call: &KubeCall) -> Result<KubeAnswer, KubeFailure> {
        let client = &self.client;
        match call {
            KubeCall::Nodes => nodes::all(client).await.map(KubeAnswer::Nodes),
            KubeCall::SetNode { node, wish } => {
                nodes::set(client, node, wish).await.map(|()| KubeAnswer::Done)
            }
            KubeCall::Drain { node, force } => {
                drain::drain(client, node, *force).await.map(KubeAnswer::Drained)
            }
            KubeCall::Evacuate { node } => drain::evacuate(client, node).await.map(KubeAnswer::Drained),
            KubeCall::DeleteNode { node } => nodes::delete(client, node).await.map(|()| KubeAnswer::Done),
        }
    }
}
