//! The archive of images that tests ask for.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// An image takes up to this many times its archive: the content, its unpacked files, the copy that the registry
/// serves, and room for the tests.
const UNPACKED_FACTOR: u64 = 4;

/// The index of an OCI image layout, as far as it is read.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Manifest>,
}

#[derive(Deserialize)]
struct Manifest {
    annotations: std::collections::BTreeMap<String, String>,
}

/// An archive and what is in it.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) archive: PathBuf,
    /// With registry and tag.
    pub(crate) names: Vec<String>,
    pub(crate) bytes_needed: u64,
}

impl Images {
    pub(crate) fn open(archive: &Path) -> Result<Self> {
        let file = File::open(archive).with_context(|| format!("{} cannot be read", archive.display()))?;
        let bytes_needed = UNPACKED_FACTOR * file.metadata()?.len();
        let mut tar = tar::Archive::new(file);
        for entry in tar.entries_with_seek()? {
            let entry = entry?;
            if entry.path()? == Path::new("index.json") {
                let index: Index =
                    serde_json::from_reader(entry).context("the archive has a damaged index")?;
                let names = index
                    .manifests
                    .into_iter()
                    .filter_map(|mut manifest| manifest.annotations.remove("io.containerd.image.name"));
                return Ok(Self { archive: archive.to_owned(), names: names.collect(), bytes_needed });
            }
        }
        anyhow::bail!("{} is no archive of images", archive.display())
    }

    /// A name for this content: that of the archive, which follows from all that went into it.
    pub(crate) fn key(&self) -> &str {
        self.archive.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }
}
