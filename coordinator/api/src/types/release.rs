//! Releases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A named, immutable set of upstream parts that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Release`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Whether new clusters get it when they do not say.
    pub default: bool,
    /// Version of each component, by name.
    pub components: BTreeMap<String, String>,
    /// Releases from which an upgrade to this one is allowed.
    pub upgrade_from: Vec<String>,
    /// Digest of the node image that carries it; null when this installation has none, so that it cannot be used yet.
    pub image: Option<String>,
}
