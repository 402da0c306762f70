//! The preload layer: container images that are on a node before anything could be fetched.

use std::path::{Path, PathBuf};

use super::release::write_image;
use super::{LayerContent, SOURCE_DATE_EPOCH};
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At, FileError};
use crate::manifest::ContainerImage;
use crate::oci::OciImage;
use crate::sbom::Component;
use crate::tree;
use crate::upstream::recipe::ARCHITECTURE;

/// Changes when the same inputs give another layer, by a change of this module or of the image writer.
const PRELOAD_RECIPE_VERSION: u32 = 2;

/// A container image to lay onto the node.
#[derive(Clone, Debug)]
pub struct PreloadImage {
    /// The name pods use, with registry and tag.
    pub name: String,
    /// File name on the node, without `.tar`: letters, digits, `-` and `.`.
    pub file: String,
    /// Where its content is from.
    pub source: PreloadSource,
}

/// Where a container image is from.
#[derive(Clone, Debug)]
pub enum PreloadSource {
    /// A static program, to be wrapped into an image.
    Program {
        /// Path of the program.
        binary: PathBuf,
        /// Its crate in the lock file, for the SBOM.
        package: String,
        /// TCP ports that it listens on.
        ports: Vec<u16>,
    },
    /// A finished OCI image or docker archive.
    Archive {
        /// Path of the file.
        path: PathBuf,
    },
}

impl PreloadImage {
    fn input(&self) -> &Path {
        match &self.source {
            PreloadSource::Program { binary, .. } => binary,
            PreloadSource::Archive { path } => path,
        }
    }
}

pub(crate) fn key(images: &[PreloadImage]) -> Result<Digest, FileError> {
    let mut key = KeyBuilder::new("preload")
        .with("schema", &super::LAYER_SCHEMA.to_le_bytes())
        .with("recipe", &PRELOAD_RECIPE_VERSION.to_le_bytes())
        .with("epoch", &SOURCE_DATE_EPOCH.to_le_bytes());
    for image in images {
        let (kind, ports) = match &image.source {
            PreloadSource::Program { ports, .. } => ("program", ports.as_slice()),
            PreloadSource::Archive { .. } => ("archive", &[][..]),
        };
        let content = Digest::of_file(image.input()).at("read", image.input())?;
        key = key
            .with("name", image.name.as_bytes())
            .with("file", image.file.as_bytes())
            .with(kind, content.as_bytes())
            .with("ports", format!("{ports:?}").as_bytes());
    }
    Ok(key.finish())
}

/// Fills `root`.
pub(crate) fn make(
    images: &[PreloadImage],
    components: Vec<Component>,
    root: &Path,
) -> Result<LayerContent, FileError> {
    let mut made = Vec::new();
    for image in images {
        let path = format!("opt/keelson/preload/{}.tar", image.file);
        made.push(match &image.source {
            PreloadSource::Program { binary, ports, .. } => {
                let program = files::read(binary)?;
                let entrypoint = format!("/{}", image.file);
                let oci = OciImage {
                    name: &image.name,
                    entrypoint: &entrypoint,
                    program: &program,
                    ports,
                    architecture: ARCHITECTURE,
                    epoch: SOURCE_DATE_EPOCH,
                };
                write_image(root, &path, &oci)?
            }
            PreloadSource::Archive { path: from } => {
                tree::copy_file(root, &path, 0o644, from)?;
                let file_digest = Digest::of_file(from).at("read", from)?;
                ContainerImage { name: image.name.clone(), path: format!("/{path}"), file_digest }
            }
        });
    }
    Ok(LayerContent { components, images: made, ..LayerContent::default() })
}
