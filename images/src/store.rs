//! Reading finished images. Needs no privilege and no tools.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;

use crate::cache::CacheDir;
use crate::digest::Digest;
use crate::files::{self, At, FileError};
use crate::manifest::{ImageManifest, LayerRef, MANIFEST_SCHEMA};
use crate::tree;

/// Bytes of the largest manifest that is read. Ours have about 20 KB; this leaves room and bounds memory.
const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The images in a cache.
#[derive(Clone, Debug)]
pub struct ImageStore {
    cache: CacheDir,
}

/// An image in the cache.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// When it was last built or found again by a build.
    pub used: SystemTime,
}

/// An image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No image has this digest.
    #[error("there is no image {digest} in the cache; `cargo xtask image build` makes one")]
    NotFound {
        /// What was asked for.
        digest: Digest,
    },
    /// The manifest was changed or cut off.
    #[error("the manifest of image {digest} is damaged (its digest is {actual}); remove {} and build again", path.display())]
    Damaged {
        /// What was asked for.
        digest: Digest,
        /// The digest of what is there.
        actual: Digest,
        /// The manifest.
        path: PathBuf,
    },
    /// The manifest is of a newer program.
    #[error(
        "image {digest} has manifest version {found}, this program reads up to {MANIFEST_SCHEMA}; use a newer keelson"
    )]
    Newer {
        /// Which image.
        digest: Digest,
        /// Its manifest version.
        found: u32,
    },
    /// The manifest is not what this program writes.
    #[error("the manifest of image {digest} cannot be understood; build the image again")]
    Malformed {
        /// Which image.
        digest: Digest,
        /// Where the text departs from the format.
        source: serde_json::Error,
    },
    /// A layer of the image is not in the cache.
    #[error("layer {} ({}) of image {digest} is not in the cache; `cargo xtask image build` makes it again", layer.name, layer.digest)]
    LayerMissing {
        /// Which image.
        digest: Digest,
        /// Which layer.
        layer: Box<LayerRef>,
    },
    /// A layer's content is not what its digest says.
    #[error("layer {} of image {digest} was changed: its digest is now {actual}; remove {} and build again", layer.name, path.display())]
    LayerDamaged {
        /// Which image.
        digest: Digest,
        /// Which layer.
        layer: Box<LayerRef>,
        /// The digest of what is there.
        actual: Digest,
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("the cache cannot be read")]
    File(#[from] FileError),
}

impl ImageStore {
    /// The images in `cache`.
    pub fn open(cache: &CacheDir) -> ImageStore {
        ImageStore { cache: cache.clone() }
    }

    /// All images, the most recently used first.
    ///
    /// # Errors
    /// The directory or a manifest cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let dir = self.cache.images_dir();
        let mut images = Vec::new();
        for entry in fs::read_dir(&dir).at("read", &dir)? {
            let entry = entry.at("read", &dir)?;
            // Only names that are digests are images; an operator may keep notes beside them.
            if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                images.push(self.get(&digest)?);
            }
        }
        images.sort_by_key(|image| (std::cmp::Reverse(image.used), image.digest));
        Ok(images)
    }

    /// The image `digest`, with all its layers present.
    ///
    /// # Errors
    /// It is not there, incomplete, damaged, or of a newer format.
    pub fn get(&self, digest: &Digest) -> Result<StoredImage, StoreError> {
        let path = self.cache.image_dir(digest).join("manifest.json");
        let meta = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound { digest: *digest });
            }
            other => other.at("read", &path)?,
        };
        let bytes = if meta.len() > MANIFEST_BYTES_MAX { Vec::new() } else { files::read(&path)? };
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::Damaged { digest: *digest, actual, path });
        }
        let manifest = parse(digest, &bytes)?;
        if let Some(layer) = manifest.layers.iter().find(|layer| !self.layer_dir(&layer.digest).is_dir()) {
            return Err(StoreError::LayerMissing { digest: *digest, layer: Box::new(layer.clone()) });
        }
        Ok(StoredImage { digest: *digest, manifest, used: meta.modified().at("read", &path)? })
    }

    /// The directory tree of a layer. Mount it read-only; nothing may ever change it.
    pub fn layer_dir(&self, digest: &Digest) -> PathBuf {
        self.cache.layer_dir(digest)
    }

    /// Reads every byte of an image's layers and compares with their digests.
    ///
    /// # Errors
    /// The image cannot be read or a layer is not what its digest says.
    pub fn verify(&self, digest: &Digest) -> Result<StoredImage, StoreError> {
        let image = self.get(digest)?;
        for layer in &image.manifest.layers {
            let path = self.layer_dir(&layer.digest);
            let actual = tree::summarize(&path, image.manifest.source_date_epoch)?.digest;
            if actual != layer.digest {
                return Err(StoreError::LayerDamaged {
                    digest: *digest,
                    layer: Box::new(layer.clone()),
                    actual,
                    path,
                });
            }
        }
        Ok(image)
    }
}

fn parse(digest: &Digest, bytes: &[u8]) -> Result<ImageManifest, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let malformed = |source| StoreError::Malformed { digest: *digest, source };
    let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
    if version.schema > MANIFEST_SCHEMA {
        return Err(StoreError::Newer { digest: *digest, found: version.schema });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}
