//! Keys and certificates of one cluster that the coordinator holds.

use std::collections::BTreeMap;

use keelson_protocol::SecretBytes;
use keelson_protocol::config::Issuer;
use serde::{Deserialize, Serialize};

/// A certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// Its certificate (PEM).
    pub certificate: String,
    /// Its key (PEM, PKCS#8).
    pub key: SecretBytes,
}

/// Everything secret that a cluster needs beside the keys that its machines make themselves.
///
/// The keys of [`Self::authorities`] never leave the coordinator. [`Self::signer`] is an authority of its own, so that
/// the controller-manager can serve the Kubernetes certificates API without holding the key that vouches for nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMaterial {
    /// The authorities that sign machines' certificates.
    pub authorities: BTreeMap<Issuer, Authority>,
    /// The authority behind the Kubernetes certificates API; its key goes to masters.
    pub signer: Authority,
    /// Key that signs service account tokens (PEM, PKCS#8, P-256); goes to masters.
    pub service_account_key: SecretBytes,
    /// The public part of it (PEM).
    pub service_account_public_key: String,
    /// Key of the encryption of Secrets at rest (32 bytes in base64); goes to masters.
    pub encryption_key: SecretBytes,
}
