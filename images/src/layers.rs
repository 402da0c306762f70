//! Layers: made once for each set of inputs, named by the digest of what came out.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::CacheDir;
use crate::digest::Digest;
use crate::files::{self, FileError};
use crate::manifest::{ContainerImage, DebianPackage, LayerName, LayerRef, ReleaseInfo};
use crate::progress::{self, Progress, ProgressEvent};
use crate::sbom::Component;
use crate::tree;

pub(crate) mod agent;
pub(crate) mod base;
pub(crate) mod preload;
pub(crate) mod release;

/// The version of [`LayerRecord`]; part of every key, so that a layer of an older program is made anew.
pub(crate) const LAYER_SCHEMA: u32 = 1;

/// The modification time of everything in an image: 1 January 2026, UTC. Later than the clock of a machine whose
/// clock was never set, and the same in every build.
pub const SOURCE_DATE_EPOCH: u64 = 1_767_225_600;

/// What a layer contains, beside its files. `layers/<digest>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) schema: u32,
    pub(crate) layer: LayerRef,
    pub(crate) content: LayerContent,
}

/// What the maker of a layer knows about what it put in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LayerContent {
    /// For the SBOM.
    pub(crate) components: Vec<Component>,
    /// Base layer only.
    pub(crate) packages: Vec<DebianPackage>,
    /// Release layer only.
    pub(crate) release: Option<ReleaseInfo>,
    /// Preload layer only.
    pub(crate) images: Vec<ContainerImage>,
}

/// Which layer to make, from what.
pub(crate) struct LayerPlan {
    pub(crate) name: LayerName,
    pub(crate) key: Digest,
    /// How long it usually takes, where that is long.
    pub(crate) usual: Option<Duration>,
    /// Whether a layer that these inputs gave before will do.
    pub(crate) reuse: Reuse,
}

/// Whether an earlier result is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Take what the same inputs gave before.
    #[default]
    Cached,
    /// Make it again, for example to take in Debian's security updates.
    Never,
}

/// Finds or makes a layer. `make` fills an empty tree.
pub(crate) fn ensure<E: From<FileError>>(
    cache: &CacheDir,
    plan: &LayerPlan,
    progress: &mut dyn Progress,
    make: impl FnOnce(&Path, &mut dyn Progress) -> Result<LayerContent, E>,
) -> Result<LayerRecord, E> {
    let step = format!("{} layer", plan.name);
    let mut wait = || progress.event(ProgressEvent::Waiting { step: step.clone() });
    let _lock = cache.lock(&format!("layer-{}", plan.key), &mut wait)?;
    if plan.reuse == Reuse::Cached
        && let Some(record) = find(cache, &plan.key)?
    {
        progress.event(ProgressEvent::Cached { step });
        return Ok(record);
    }
    progress::step(progress, step, plan.usual, |progress| {
        let temp = cache.temp_dir()?;
        let root = temp.path().join("tree");
        files::create_dir_all(&root)?;
        tree::make_dir(&root, "", 0o755)?;
        let content = make(&root, progress)?;
        tree::set_times(&root, SOURCE_DATE_EPOCH)?;
        let summary = tree::summarize(&root, SOURCE_DATE_EPOCH)?;
        let layer = LayerRef {
            name: plan.name,
            digest: summary.digest,
            size_bytes: summary.size_bytes,
            entries: summary.entries,
        };
        let record = LayerRecord { schema: LAYER_SCHEMA, layer, content };
        // The key comes last: whoever finds it finds the rest.
        cache.publish(&root, &cache.layer_dir(&summary.digest))?;
        let text = serde_json::to_vec(&record).expect("a record has only string keys");
        files::write_durably(&cache.layer_record(&summary.digest), &text)?;
        files::write_durably(&cache.key_file(&plan.key), summary.digest.to_string().as_bytes())?;
        Ok(record)
    })
}

/// The layer that these inputs gave, when all of it is still there.
pub(crate) fn find(cache: &CacheDir, key: &Digest) -> Result<Option<LayerRecord>, FileError> {
    let Some(text) = read_existing(&cache.key_file(key))? else { return Ok(None) };
    let Some(digest) = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<Digest>().ok()) else {
        return Ok(None);
    };
    let Some(text) = read_existing(&cache.layer_record(&digest))? else { return Ok(None) };
    let record = serde_json::from_slice::<LayerRecord>(&text).ok();
    let usable = |record: &LayerRecord| {
        record.schema == LAYER_SCHEMA && record.layer.digest == digest && cache.layer_dir(&digest).is_dir()
    };
    Ok(record.filter(usable))
}

fn read_existing(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match files::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::progress::Silent;

    fn plan(key: &[u8], reuse: Reuse) -> LayerPlan {
        LayerPlan { name: LayerName::Agent, key: Digest::of(key), usual: None, reuse }
    }

    fn make(cache: &CacheDir, plan: &LayerPlan, content: &[u8]) -> (LayerRecord, bool) {
        let mut made = false;
        let record = ensure::<FileError>(cache, plan, &mut Silent, |root, _| {
            made = true;
            tree::write_file(root, "usr/lib/f", 0o644, content)?;
            Ok(LayerContent::default())
        });
        (record.unwrap(), made)
    }

    #[test]
    fn made_once_found_afterwards_and_made_again_when_any_part_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheDir::at(dir.path()).unwrap();
        let plan = plan(b"one", Reuse::Cached);
        let (first, made) = make(&cache, &plan, b"x");
        assert!(made);
        let digest = first.layer.digest;
        assert_eq!(fs::read(cache.layer_dir(&digest).join("usr/lib/f")).unwrap(), b"x");
        assert!(!make(&cache, &plan, b"x").1);

        let parts = [cache.layer_dir(&digest), cache.layer_record(&digest), cache.key_file(&plan.key)];
        for part in parts {
            files::remove_all(&part).unwrap();
            let (again, made) = make(&cache, &plan, b"x");
            assert!(made, "{} was gone", part.display());
            assert_eq!(again.layer, first.layer);
        }
        fs::write(cache.key_file(&plan.key), "half a dig").unwrap();
        assert!(make(&cache, &plan, b"x").1);
        fs::write(cache.layer_record(&digest), "{").unwrap();
        assert!(make(&cache, &plan, b"x").1);
    }

    #[test]
    fn inputs_that_give_the_same_tree_share_a_layer() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheDir::at(dir.path()).unwrap();
        let one = make(&cache, &plan(b"one", Reuse::Cached), b"x").0;
        let (other, made) = make(&cache, &plan(b"two", Reuse::Cached), b"x");
        assert!(made);
        assert_eq!(one.layer, other.layer);
        assert!(make(&cache, &plan(b"two", Reuse::Never), b"x").1);
    }

    #[test]
    fn a_failed_maker_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheDir::at(dir.path()).unwrap();
        let result = ensure::<FileError>(&cache, &plan(b"one", Reuse::Cached), &mut Silent, |root, _| {
            tree::write_file(root, "half", 0o644, b"")?;
            Err(FileError {
                action: "write",
                path: root.to_owned(),
                source: std::io::ErrorKind::StorageFull.into(),
            })
        });
        assert!(result.unwrap_err().is_disk_full());
        for name in ["layers", "keys", "tmp"] {
            let left = fs::read_dir(cache.root().join(name)).unwrap().count();
            assert_eq!(left, 0, "{name}");
        }
    }
}
