//! Building an image: upstream parts, then layers, then the manifest. What the cache has is not done again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::{CacheDir, CacheError};
use crate::digest::Digest;
use crate::files::{self, At, FileError};
use crate::layers::base::{self, BaseError};
use crate::layers::preload::{self, PreloadImage, PreloadSource};
use crate::layers::{self, LayerPlan, LayerRecord, Reuse, SOURCE_DATE_EPOCH, agent, release};
use crate::manifest::{BaseInfo, ImageManifest, LayerName, MANIFEST_SCHEMA};
use crate::progress::Progress;
use crate::release::Release;
use crate::sbom::{self, Component, LockError};
use crate::upstream::recipe::ARCHITECTURE;
use crate::upstream::{SourceMode, Upstream, UpstreamCache, UpstreamError};

/// What to build, from what.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The `images/` directory of the source tree, with `rootfs/` and `upstream/`.
    pub recipes: PathBuf,
    /// Which release is baked in.
    pub release: &'static Release,
    /// How upstream parts are got.
    pub source: SourceMode,
    /// The agent program.
    pub agent: PathBuf,
    /// The static program of the sandbox image.
    pub pause: PathBuf,
    /// Container images beyond those of the release.
    pub preload: Vec<PreloadImage>,
    /// The workspace's Cargo.lock, for the SBOM.
    pub cargo_lock: PathBuf,
    /// Whether the base layer in the cache will do.
    pub base: Reuse,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Digest of its manifest; names it.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its directory in the cache.
    pub directory: PathBuf,
    /// Upstream programs by name, for use on this machine: `kubectl`, `kubeadm`, `etcdctl` and all the others.
    pub tools: BTreeMap<String, PathBuf>,
}

/// An image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Upstream parts cannot be got.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The base layer cannot be made.
    #[error("the base layer cannot be made")]
    Base(#[from] BaseError),
    /// The lock file cannot be used.
    #[error("the list of crates in the image cannot be made")]
    Lock(#[from] LockError),
    /// Layers belong to root.
    #[error("building an image needs root; run the command as root")]
    NotRoot,
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BuildError {
    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            BuildError::Cache(CacheError::File(error)) | BuildError::File(error) => error.is_disk_full(),
            BuildError::Upstream(error) => error.is_disk_full(),
            BuildError::Base(error) => error.is_disk_full(),
            BuildError::Cache(CacheError::NoPlace) | BuildError::Lock(_) | BuildError::NotRoot => false,
        }
    }
}

/// Finds or builds the image of a request.
///
/// # Errors
/// See [`BuildError`]. Whatever happens, also `kill -9`, nothing half-made is ever taken for an entry of the cache.
pub fn build_image(
    cache: &CacheDir,
    request: &BuildRequest,
    progress: &mut dyn Progress,
) -> Result<BuiltImage, BuildError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(BuildError::NotRoot);
    }
    check(cache, request)?;
    let base = base_layer(cache, request, progress)?;
    let upstream = upstream_parts(cache, request, progress)?;
    let release = release_layer(cache, request, &upstream, progress)?;
    let mut records = vec![base, release];
    if !request.preload.is_empty() {
        records.push(preload_layer(cache, request, progress)?);
    }
    let agent = Digest::of_file(&request.agent).at("read", &request.agent)?;
    records.push(agent_layer(cache, request, &agent, progress)?);
    let (digest, manifest) = publish(cache, request, agent, &records)?;
    let tools = upstream
        .values()
        .flat_map(|part| part.origin.programs.keys().map(|program| (program.clone(), part.program(program))));
    Ok(BuiltImage { digest, manifest, directory: cache.image_dir(&digest), tools: tools.collect() })
}

/// Finds what is missing before the first minute is spent.
fn check(cache: &CacheDir, request: &BuildRequest) -> Result<(), BuildError> {
    let base_key = base::key(&request.recipes)?;
    if request.base == Reuse::Never || layers::find(cache, &base_key)?.is_none() {
        base::check_host(cache.root())?;
    }
    let recipes = request.recipes.join("upstream");
    for (project, version) in &request.release.components {
        UpstreamCache::open(cache).check(&recipes, project, version, request.source)?;
    }
    Ok(())
}

fn base_layer(
    cache: &CacheDir,
    request: &BuildRequest,
    progress: &mut dyn Progress,
) -> Result<LayerRecord, BuildError> {
    let key = base::key(&request.recipes)?;
    let usual = Some(base::USUAL_TIME);
    let plan = LayerPlan { name: LayerName::Base, key, usual, reuse: request.base };
    let make = |root: &Path, progress: &mut dyn Progress| base::make(&request.recipes, root, progress);
    Ok(layers::ensure(cache, &plan, progress, make)?)
}

fn upstream_parts(
    cache: &CacheDir,
    request: &BuildRequest,
    progress: &mut dyn Progress,
) -> Result<BTreeMap<String, Upstream>, BuildError> {
    let recipes = request.recipes.join("upstream");
    let upstream = UpstreamCache::open(cache);
    let mut parts = BTreeMap::new();
    for (project, version) in &request.release.components {
        let part = upstream.ensure(&recipes, project, version, request.source, progress)?;
        parts.insert(project.clone(), part);
    }
    Ok(parts)
}

fn release_layer(
    cache: &CacheDir,
    request: &BuildRequest,
    upstream: &BTreeMap<String, Upstream>,
    progress: &mut dyn Progress,
) -> Result<LayerRecord, BuildError> {
    let pause = files::read(&request.pause)?;
    let pause_components = crates(request, "keelson-pause")?;
    let inputs = release::Inputs {
        release: request.release,
        upstream,
        pause: &pause,
        pause_components: &pause_components,
    };
    let plan = cached(LayerName::Release, inputs.key());
    Ok(layers::ensure(cache, &plan, progress, |root, _| inputs.make(root))?)
}

fn preload_layer(
    cache: &CacheDir,
    request: &BuildRequest,
    progress: &mut dyn Progress,
) -> Result<LayerRecord, BuildError> {
    let mut components = Vec::new();
    for image in &request.preload {
        if let PreloadSource::Program { package, .. } = &image.source {
            components.extend(crates(request, package)?);
        }
    }
    let plan = cached(LayerName::Preload, preload::key(&request.preload)?);
    let make = |root: &Path, _: &mut dyn Progress| preload::make(&request.preload, components, root);
    Ok(layers::ensure(cache, &plan, progress, make)?)
}

fn agent_layer(
    cache: &CacheDir,
    request: &BuildRequest,
    digest: &Digest,
    progress: &mut dyn Progress,
) -> Result<LayerRecord, BuildError> {
    let components = crates(request, "keelson-agent")?;
    let plan = cached(LayerName::Agent, agent::key(&request.recipes, digest, &components)?);
    let make =
        |root: &Path, _: &mut dyn Progress| agent::make(&request.recipes, &request.agent, components, root);
    Ok(layers::ensure(cache, &plan, progress, make)?)
}

fn cached(name: LayerName, key: Digest) -> LayerPlan {
    LayerPlan { name, key, usual: None, reuse: Reuse::Cached }
}

fn crates(request: &BuildRequest, package: &str) -> Result<Vec<Component>, BuildError> {
    let lock = files::read(&request.cargo_lock)?;
    Ok(sbom::cargo_components(&String::from_utf8_lossy(&lock), package)?)
}

/// Writes manifest and SBOM, or marks those that are there as used.
fn publish(
    cache: &CacheDir,
    request: &BuildRequest,
    agent: Digest,
    records: &[LayerRecord],
) -> Result<(Digest, ImageManifest), FileError> {
    let sbom = sbom::document(&request.release.name, records);
    let contents = || records.iter().map(|record| &record.content);
    let manifest = ImageManifest {
        schema: MANIFEST_SCHEMA,
        architecture: ARCHITECTURE,
        source_date_epoch: SOURCE_DATE_EPOCH,
        layers: records.iter().map(|record| record.layer.clone()).collect(),
        release: contents()
            .find_map(|content| content.release.clone())
            .expect("the release layer records its release"),
        preload: contents().flat_map(|content| content.images.clone()).collect(),
        agent,
        base: BaseInfo {
            suite: base::SUITE.to_owned(),
            packages: contents().flat_map(|content| content.packages.clone()).collect(),
        },
        sbom: Digest::of(&sbom),
    };
    let bytes = manifest.to_bytes();
    let digest = Digest::of(&bytes);
    let to = cache.image_dir(&digest);
    if !to.join("manifest.json").exists() {
        let temp = cache.temp_dir()?;
        let entry = temp.path().join("image");
        files::create_dir_all(&entry)?;
        files::write_durably(&entry.join("sbom.cdx.json"), &sbom)?;
        files::write_durably(&entry.join("manifest.json"), &bytes)?;
        cache.publish(&entry, &to)?;
    }
    let path = to.join("manifest.json");
    let file = std::fs::File::options().append(true).open(&path).at("open", &path)?;
    file.set_modified(SystemTime::now()).at("set the time of", &path)?;
    Ok((digest, manifest))
}
