//! The releases that this installation offers, read from the node images that it was given.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use keelson_images::{CacheDir, Digest, ImageManifest, ImageStore};
use keelson_model::{Release, ReleaseCatalog};
use keelson_protocol::ReleaseName;
use keelson_providers::ProviderError;
use keelson_providers::call::{ImageLayers, ImageResolver};

/// What the images give.
pub(crate) struct Catalog {
    /// All releases that Keelson knows; those without an image cannot be chosen.
    pub(crate) releases: ReleaseCatalog,
    /// The one that new clusters get.
    pub(crate) default: ReleaseName,
    /// Finds an image's layers.
    pub(crate) resolver: ImageResolver,
}

/// Reads the manifests of `digests`.
pub(crate) fn open(digests: &[String]) -> Result<Catalog> {
    let store = ImageStore::open(&CacheDir::from_environment()?);
    let mut releases = known_releases()?;
    let mut default = None;
    for text in digests {
        let digest: Digest = text.parse().with_context(|| format!("`{text}` is no image digest"))?;
        let image = store.get(&digest)?;
        let release = release_of(&image.manifest, &digest)?;
        default.get_or_insert_with(|| release.name.clone());
        let upgrade_from =
            releases.get(&release.name).map(|known| known.upgrade_from.clone()).unwrap_or_default();
        releases.insert(release.name.clone(), Release { upgrade_from, ..release });
    }
    let Some(default) = default else {
        bail!("no image was given; build one with `cargo xtask image build`")
    };
    let resolver: ImageResolver = Arc::new(move |digest: &str| resolve(&store, digest));
    Ok(Catalog { releases: ReleaseCatalog { releases }, default, resolver })
}

fn known_releases() -> Result<BTreeMap<ReleaseName, Release>> {
    let mut known = BTreeMap::new();
    for release in keelson_images::Release::all() {
        let name = ReleaseName::new(release.name.to_string())?;
        let upgrade_from = release.upgrade_from.iter().map(|from| ReleaseName::new(from.to_string()));
        known.insert(
            name.clone(),
            Release {
                name,
                components: release.components.clone(),
                images: release.container_images.clone(),
                archives: BTreeMap::new(),
                upgrade_from: upgrade_from.collect::<Result<_, _>>()?,
                image: None,
            },
        );
    }
    Ok(known)
}

fn release_of(manifest: &ImageManifest, digest: &Digest) -> Result<Release> {
    let content = &manifest.release;
    let preloaded = manifest.preload.iter().map(|image| {
        let file = image.path.rsplit('/').next().unwrap_or_default();
        (file.strip_suffix(".tar").unwrap_or(file), image)
    });
    let named = content.container_images.iter().map(|(name, image)| (name.as_str(), image));
    // All that machines carry, and can get from nowhere else.
    let carried: Vec<_> = named.chain(preloaded).collect();
    Ok(Release {
        name: ReleaseName::new(content.name.to_string())?,
        components: content
            .components
            .iter()
            .map(|(name, info)| (name.clone(), info.version.clone()))
            .collect(),
        images: carried.iter().map(|(name, image)| ((*name).to_owned(), image.name.clone())).collect(),
        archives: carried.iter().map(|(name, image)| ((*name).to_owned(), image.path.clone())).collect(),
        upgrade_from: Vec::new(),
        image: Some(digest.to_string()),
    })
}

fn resolve(store: &ImageStore, digest: &str) -> Result<ImageLayers, ProviderError> {
    let invalid = |detail: String| ProviderError::Invalid { field: "image", detail };
    let parsed: Digest = digest.parse().map_err(|_| invalid(format!("`{digest}` is no image digest")))?;
    let image = store.get(&parsed).map_err(|error| invalid(error.to_string()))?;
    let layers = image.manifest.layers.iter().map(|layer| store.layer_dir(&layer.digest)).collect();
    Ok(ImageLayers { digest: digest.to_owned(), layers })
}
