//! Releases, as far as planning needs them.

use std::collections::BTreeMap;

use keelson_protocol::ReleaseName;
use serde::{Deserialize, Serialize};

/// A named, immutable set of upstream parts and the node image that carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Its name.
    pub name: ReleaseName,
    /// Version of each component, by name (`kubernetes`, `etcd`, ...).
    pub components: BTreeMap<String, String>,
    /// Container images that its machines carry, by purpose (`pause`, `coredns`).
    pub images: BTreeMap<String, String>,
    /// Archives of container images that its machines load at boot, by name: absolute paths on the machine.
    pub archives: BTreeMap<String, String>,
    /// Releases from which an upgrade to this one is allowed.
    pub upgrade_from: Vec<ReleaseName>,
    /// Digest of the node image that carries it; `None` when this installation has none.
    pub image: Option<String>,
}

/// All releases that the installation knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseCatalog {
    /// By name.
    pub releases: BTreeMap<ReleaseName, Release>,
}
