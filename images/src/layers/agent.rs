//! The agent layer: the agent, its unit, and what the kernel must be told for Kubernetes. The layer that changes most,
//! so it is on top and small.

use std::path::Path;

use super::{LayerContent, SOURCE_DATE_EPOCH};
use crate::digest::{Digest, KeyBuilder};
use crate::files::FileError;
use crate::sbom::Component;
use crate::tree;

/// Changes when the same inputs give another layer, by a change of this module.
const AGENT_RECIPE_VERSION: u32 = 1;
/// The agent on a node.
const AGENT_PATH: &str = "usr/lib/keelson/keelson-agent";

pub(crate) fn key(recipes: &Path, agent: &Digest, components: &[Component]) -> Result<Digest, FileError> {
    let components = serde_json::to_vec(components).expect("components have only string keys");
    Ok(KeyBuilder::new("agent")
        .with("schema", &super::LAYER_SCHEMA.to_le_bytes())
        .with("recipe", &AGENT_RECIPE_VERSION.to_le_bytes())
        .with("epoch", &SOURCE_DATE_EPOCH.to_le_bytes())
        .with("agent", agent.as_bytes())
        .with("components", &components)
        .with("files", tree::recipe_digest(&recipes.join("rootfs").join("agent"))?.as_bytes())
        .finish())
}

/// Fills `root`.
pub(crate) fn make(
    recipes: &Path,
    agent: &Path,
    components: Vec<Component>,
    root: &Path,
) -> Result<LayerContent, FileError> {
    tree::overlay(&recipes.join("rootfs").join("agent"), root)?;
    tree::copy_file(root, AGENT_PATH, 0o755, agent)?;
    tree::link(root, "usr/bin/keelson-agent", "../lib/keelson/keelson-agent")?;
    Ok(LayerContent { components, ..LayerContent::default() })
}
