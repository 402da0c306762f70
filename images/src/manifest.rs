//! What an image consists of, as written to `images/<digest>/manifest.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::release::ReleaseName;

/// The version of the manifest format. A reader refuses a newer one.
pub const MANIFEST_SCHEMA: u32 = 1;

/// The processor architecture of an image, by its Debian and Go name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// x86-64, baseline (v1).
    Amd64,
}

impl Architecture {
    /// `amd64`.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
        }
    }
}

/// What a layer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerName {
    /// The operating system.
    Base,
    /// The upstream parts of one release.
    Release,
    /// Container images beyond those of the release.
    Preload,
    /// The agent with its unit and settings.
    Agent,
}

impl LayerName {
    /// The name as in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            LayerName::Base => "base",
            LayerName::Release => "release",
            LayerName::Preload => "preload",
            LayerName::Agent => "agent",
        }
    }
}

impl std::fmt::Display for LayerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// What it is for.
    pub name: LayerName,
    /// Digest of its canonical tar stream; names its directory in the cache.
    pub digest: Digest,
    /// Sum of the sizes of its files, in bytes.
    pub size_bytes: u64,
    /// Number of its files, links and directories.
    pub entries: u64,
}

/// One upstream project in the release layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentInfo {
    /// Its version, without a leading `v`.
    pub version: String,
    /// How its programs were got.
    pub origin: Origin,
}

/// How the programs of an upstream project were got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Compiled here from Go modules pinned by go.sum.
    Build,
    /// Official files, checked against pinned digests.
    Download,
}

/// A container image that lies on the node's disk, ready to be imported by `ctr images import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// The name pods use.
    pub name: String,
    /// Absolute path on the node.
    pub path: String,
    /// Digest of the file at `path`.
    pub file_digest: Digest,
}

/// The release that is baked in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseInfo {
    /// Its name.
    pub name: ReleaseName,
    /// Absolute directory on the node: `bin/`, `cni/bin/`, `images/`, `release.json`.
    pub directory: String,
    /// Upstream project to version and origin.
    pub components: BTreeMap<String, ComponentInfo>,
    /// Part (`pause`, `coredns`) to its container image.
    pub container_images: BTreeMap<String, ContainerImage>,
}

/// `release.json` in the release layer: what the agent on a node reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseContent {
    /// Version of this format; 1.
    pub schema: u32,
    /// The release.
    #[serde(flatten)]
    pub release: ReleaseInfo,
    /// Path below the release directory to the digest of the file.
    pub files: BTreeMap<String, Digest>,
}

/// An installed Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DebianPackage {
    /// Package name.
    pub name: String,
    /// Version with epoch and revision.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
}

/// The operating system of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseInfo {
    /// Debian suite.
    pub suite: String,
    /// All installed packages, by name.
    pub packages: Vec<DebianPackage>,
}

/// A complete node image: layers, lowest first, whose union is the root file system of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// Processor architecture.
    pub architecture: Architecture,
    /// Every file's modification time, in seconds since 1970.
    pub source_date_epoch: u64,
    /// Lowest first.
    pub layers: Vec<LayerRef>,
    /// The release baked in.
    pub release: ReleaseInfo,
    /// Container images beyond those of the release.
    pub preload: Vec<ContainerImage>,
    /// Digest of the agent program.
    pub agent: Digest,
    /// The operating system.
    pub base: BaseInfo,
    /// Digest of `sbom.cdx.json`.
    pub sbom: Digest,
}

impl ImageManifest {
    /// The bytes that are written and whose digest names the image.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has only string keys");
        bytes.push(b'\n');
        bytes
    }

    /// The layer `name`, when the image has it.
    pub fn layer(&self, name: LayerName) -> Option<&LayerRef> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// Sum of the sizes of all layers, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size_bytes).sum()
    }
}
