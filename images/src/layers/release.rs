//! The release layer: the upstream parts of one release, and the container images that every cluster of it needs.

use std::collections::BTreeMap;
use std::path::Path;

use super::{LayerContent, SOURCE_DATE_EPOCH};
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At, FileError};
use crate::manifest::{ComponentInfo, ContainerImage, ReleaseContent, ReleaseInfo};
use crate::oci::OciImage;
use crate::release::Release;
use crate::sbom::Component;
use crate::tree;
use crate::upstream::Upstream;
use crate::upstream::recipe::ARCHITECTURE;

/// Changes when the same inputs give another layer, by a change of this module or of the image writer.
const RELEASE_RECIPE_VERSION: u32 = 2;
/// Programs that are on no node: they are for the host.
const HOST_ONLY: [&str; 1] = ["kubeadm"];
/// The version of `release.json`.
const CONTENT_SCHEMA: u32 = 1;

/// Everything that goes into the layer.
pub(crate) struct Inputs<'a> {
    pub(crate) release: &'a Release,
    pub(crate) upstream: &'a BTreeMap<String, Upstream>,
    /// The static program of the sandbox image.
    pub(crate) pause: &'a [u8],
    pub(crate) pause_components: &'a [Component],
}

impl Inputs<'_> {
    pub(crate) fn key(&self) -> Digest {
        let release = serde_json::to_vec(self.release).expect("a release has only string keys");
        let mut key = KeyBuilder::new("release")
            .with("schema", &super::LAYER_SCHEMA.to_le_bytes())
            .with("recipe", &RELEASE_RECIPE_VERSION.to_le_bytes())
            .with("epoch", &SOURCE_DATE_EPOCH.to_le_bytes())
            .with("release", &release)
            .with("pause", self.pause)
            .with("pause components", &serde_json::to_vec(self.pause_components).expect("plain data"));
        for (project, upstream) in self.upstream {
            key = key.with(project, upstream.key.as_bytes());
        }
        key.finish()
    }

    /// Fills `root`.
    pub(crate) fn make(&self, root: &Path) -> Result<LayerContent, FileError> {
        let directory = format!("opt/keelson/releases/{}", self.release.name);
        for upstream in self.upstream.values() {
            for program in upstream.origin.programs.keys() {
                if let Some(place) = place(&upstream.origin.project, program) {
                    let to = format!("{directory}/{place}/{program}");
                    tree::copy_file(root, &to, 0o755, &upstream.program(program))?;
                }
            }
        }
        let container_images = self.container_images(root, &directory)?;
        let components = self.upstream.iter().map(|(project, upstream)| {
            let version = upstream.origin.version.clone();
            (project.clone(), ComponentInfo { version, origin: upstream.origin.origin })
        });
        let info = ReleaseInfo {
            name: self.release.name.clone(),
            directory: format!("/{directory}"),
            components: components.collect(),
            container_images,
        };
        let content = ReleaseContent {
            schema: CONTENT_SCHEMA,
            release: info.clone(),
            files: digests(&root.join(&directory))?,
        };
        let mut text = serde_json::to_vec_pretty(&content).expect("the content has only string keys");
        text.push(b'\n');
        tree::write_file(root, &format!("{directory}/release.json"), 0o644, &text)?;
        let modules = self.upstream.values().flat_map(|upstream| &upstream.origin.modules);
        let components = modules.map(Component::go).chain(self.pause_components.iter().cloned()).collect();
        Ok(LayerContent { components, release: Some(info), ..LayerContent::default() })
    }

    fn container_images(
        &self,
        root: &Path,
        directory: &str,
    ) -> Result<BTreeMap<String, ContainerImage>, FileError> {
        let coredns = self.upstream.get("coredns").map(|upstream| upstream.program("coredns"));
        let coredns = coredns.map(|path| files::read(&path)).transpose()?.unwrap_or_default();
        let dns_ports = [53, 8080, 8181, 9153];
        let parts: [(&str, &str, &[u8], &[u16]); 2] =
            [("pause", "/pause", self.pause, &[]), ("coredns", "/coredns", &coredns, &dns_ports)];
        let mut images = BTreeMap::new();
        for (part, entrypoint, program, ports) in parts {
            let name = &self.release.container_images[part];
            let image = OciImage {
                name,
                entrypoint,
                program,
                ports,
                architecture: ARCHITECTURE,
                epoch: SOURCE_DATE_EPOCH,
            };
            let path = format!("{directory}/images/{part}.tar");
            images.insert(part.to_owned(), write_image(root, &path, &image)?);
        }
        Ok(images)
    }
}

/// Writes a container image to `path` below `root`.
pub(super) fn write_image(
    root: &Path,
    path: &str,
    image: &OciImage<'_>,
) -> Result<ContainerImage, FileError> {
    let bytes = image.to_bytes().at("make the container image", Path::new(path))?;
    tree::write_file(root, path, 0o644, &bytes)?;
    let file_digest = Digest::of(&bytes);
    Ok(ContainerImage { name: image.name.to_owned(), path: format!("/{path}"), file_digest })
}

/// The directory of a program below that of the release; none when it is on no node by itself.
fn place(project: &str, program: &str) -> Option<&'static str> {
    match project {
        "coredns" => None,
        "cni-plugins" => Some("cni/bin"),
        _ if HOST_ONLY.contains(&program) => None,
        _ => Some("bin"),
    }
}

/// The digests of all files below `dir`, by their path from there.
fn digests(dir: &Path) -> Result<BTreeMap<String, Digest>, FileError> {
    let mut found = BTreeMap::new();
    for place in ["bin", "cni/bin", "images"] {
        let path = dir.join(place);
        for entry in std::fs::read_dir(&path).at("read", &path)? {
            let entry = entry.at("read", &path)?;
            let name = format!("{place}/{}", entry.file_name().to_string_lossy());
            found.insert(name, Digest::of_file(&entry.path()).at("read", &entry.path())?);
        }
    }
    Ok(found)
}
