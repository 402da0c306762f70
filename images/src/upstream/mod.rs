//! Upstream parts: the programs of Kubernetes, etcd and the others, compiled here or downloaded, kept in the cache.

pub(crate) mod archive;
pub(crate) mod buildinfo;
pub(crate) mod download;
pub(crate) mod gobuild;
pub(crate) mod pin;
pub(crate) mod recipe;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::CacheDir;
use crate::command::CommandError;
use crate::digest::Digest;
use crate::files::{self, At, FileError};
use crate::manifest::Origin;
use crate::progress::{Progress, ProgressEvent};
use buildinfo::GoModule;
use download::{DownloadError, Downloader};
use recipe::{Recipe, RecipeError};

/// The version of `origin.json`; part of every key, so that entries of an older program are not taken for new ones.
const ORIGIN_SCHEMA: u32 = 1;

/// How upstream parts are got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceMode {
    /// Build where Go 1.26 or newer is installed, else download.
    #[default]
    Auto,
    /// Compile from Go modules.
    Build,
    /// Fetch the official files.
    Download,
}

/// The name is not one of `auto`, `build`, `download`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a way to get upstream parts; use auto, build or download")]
pub struct InvalidSourceMode(String);

impl std::str::FromStr for SourceMode {
    type Err = InvalidSourceMode;

    fn from_str(text: &str) -> Result<SourceMode, InvalidSourceMode> {
        match text {
            "auto" => Ok(SourceMode::Auto),
            "build" => Ok(SourceMode::Build),
            "download" => Ok(SourceMode::Download),
            other => Err(InvalidSourceMode(other.to_owned())),
        }
    }
}

/// Upstream parts cannot be got.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The recipe cannot be read.
    #[error("the recipe of {project} {version} cannot be used")]
    Recipe {
        /// The upstream project.
        project: String,
        /// Its version.
        version: String,
        /// Why.
        source: RecipeError,
    },
    /// Go is absent or too old and the mode asks for it.
    #[error("building needs Go {minimum} or newer, found {found}; install it, or use `--source download`")]
    NoGo {
        /// The oldest version that will do.
        minimum: &'static str,
        /// What is there.
        found: String,
    },
    /// Too little room for a build.
    #[error("building {project} needs {needed_bytes} bytes free on the disk of {}, there are {free_bytes}; free some space, or set KEELSON_CACHE_DIR or GOCACHE to a directory on a larger disk", path.display())]
    NoSpace {
        /// The upstream project.
        project: String,
        /// Where.
        path: PathBuf,
        /// Needed bytes.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
    },
    /// A program failed.
    #[error("{project} {version} cannot be built")]
    Command {
        /// The upstream project.
        project: String,
        /// Its version.
        version: String,
        /// Which program and why.
        source: CommandError,
    },
    /// A transfer failed.
    #[error("{project} {version} cannot be downloaded")]
    Download {
        /// The upstream project.
        project: String,
        /// Its version.
        version: String,
        /// Why.
        source: Box<DownloadError>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl UpstreamError {
    /// Whether the file system had no room left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            UpstreamError::NoSpace { .. } => true,
            UpstreamError::Command { source, .. } => source.is_disk_full(),
            UpstreamError::Download { source, .. } => source.is_disk_full(),
            UpstreamError::File(error) => error.is_disk_full(),
            UpstreamError::Recipe { .. } | UpstreamError::NoGo { .. } => false,
        }
    }
}

/// `origin.json` of an entry: where its programs are from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamOrigin {
    /// Version of this format; 1.
    pub schema: u32,
    /// The upstream project.
    pub project: String,
    /// Its version.
    pub version: String,
    /// Built or downloaded.
    pub origin: Origin,
    /// Program to its digest.
    pub programs: BTreeMap<String, Digest>,
    /// Files that came with them, by name, to their digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Digest>,
    /// The Go modules that are compiled into the programs.
    pub modules: Vec<GoModule>,
}

/// The programs of one project, in the cache.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where they are from.
    pub origin: UpstreamOrigin,
    /// The input key of the entry.
    pub(crate) key: Digest,
    directory: PathBuf,
}

impl Upstream {
    /// The files that came with the programs, by name, with their paths.
    pub fn files(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.origin.files.keys().map(|name| (name.as_str(), self.program(name)))
    }

    /// The path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }
}

/// How the programs of one project are got, and where they will be.
struct Plan {
    recipe: Recipe,
    origin: Origin,
    key: Digest,
    directory: PathBuf,
}

/// The upstream parts in a cache, and the ways to add to them.
#[derive(Clone, Debug)]
pub struct UpstreamCache {
    cache: CacheDir,
}

impl UpstreamCache {
    /// The upstream parts in `cache`.
    pub fn open(cache: &CacheDir) -> UpstreamCache {
        UpstreamCache { cache: cache.clone() }
    }

    /// The path of a program for use on this machine, for example `kubectl` of `kubernetes` `1.37.2`, when the cache
    /// has it. Of several entries the one made last counts.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn tool(&self, project: &str, version: &str, program: &str) -> Result<Option<PathBuf>, FileError> {
        let dir = self.cache.root().join("upstream");
        let prefix = format!("{project}-{version}-");
        let mut newest = None;
        for entry in fs::read_dir(&dir).at("read", &dir)? {
            let entry = entry.at("read", &dir)?;
            let path = entry.path().join("bin").join(program);
            if entry.file_name().to_string_lossy().starts_with(&prefix) && path.is_file() {
                let made = entry.metadata().and_then(|meta| meta.modified()).at("read", &path)?;
                newest = newest.max(Some((made, path)));
            }
        }
        Ok(newest.map(|(_, path)| path))
    }

    /// Finds or makes the programs of a project. `recipes` is the `images/upstream` directory.
    ///
    /// # Errors
    /// See [`UpstreamError`]; nothing half-made is left under a final name.
    pub fn ensure(
        &self,
        recipes: &Path,
        project: &str,
        version: &str,
        mode: SourceMode,
        progress: &mut dyn Progress,
    ) -> Result<Upstream, UpstreamError> {
        let Plan { recipe, origin, key, directory } = self.plan(recipes, project, version, mode)?;
        let step =
            format!("{} {project} {version}", if origin == Origin::Build { "build" } else { "download" });
        let lock_name = format!("upstream-{project}-{}", key.short());
        let mut wait = || progress.event(ProgressEvent::Waiting { step: step.clone() });
        let _lock = self.cache.lock(&lock_name, &mut wait)?;
        if let Some(origin) = read_origin(&directory)? {
            progress.event(ProgressEvent::Cached { step });
            return Ok(Upstream { origin, key, directory });
        }
        let usual = (origin == Origin::Build).then(|| recipe.usual_build_time());
        let origin = crate::progress::step(progress, step, usual, |progress| {
            self.make(&recipe, origin, &directory, progress)
        })?;
        Ok(Upstream { origin, key, directory })
    }

    /// Checks in a moment whether [`UpstreamCache::ensure`] has what it needs: tools, a pin.
    pub(crate) fn check(
        &self,
        recipes: &Path,
        project: &str,
        version: &str,
        mode: SourceMode,
    ) -> Result<(), UpstreamError> {
        let plan = self.plan(recipes, project, version, mode)?;
        if plan.origin == Origin::Download && read_origin(&plan.directory)?.is_none() {
            download::check_pinned(&plan.recipe).map_err(|source| plan.recipe.download_failed(source))?;
        }
        Ok(())
    }

    fn plan(
        &self,
        recipes: &Path,
        project: &str,
        version: &str,
        mode: SourceMode,
    ) -> Result<Plan, UpstreamError> {
        let recipe = Recipe::read(recipes, project, version).map_err(|source| UpstreamError::Recipe {
            project: project.to_owned(),
            version: version.to_owned(),
            source,
        })?;
        let origin = choose(mode)?;
        let key = match origin {
            Origin::Build => gobuild::key(&recipe, ORIGIN_SCHEMA)?,
            Origin::Download => recipe.download_key(ORIGIN_SCHEMA),
        };
        let directory = self.cache.upstream_dir(project, version, &key);
        Ok(Plan { recipe, origin, key, directory })
    }

    fn make(
        &self,
        recipe: &Recipe,
        origin: Origin,
        directory: &Path,
        progress: &mut dyn Progress,
    ) -> Result<UpstreamOrigin, UpstreamError> {
        let temp = self.cache.temp_dir()?;
        let entry = temp.path().join("entry");
        let bin = entry.join("bin");
        files::create_dir_all(&bin)?;
        match origin {
            Origin::Build => gobuild::build(recipe, &bin, progress)?,
            Origin::Download => {
                let fetch = |source| recipe.download_failed(source);
                let downloader = Downloader::with_system_roots().map_err(fetch)?;
                download::fetch_programs(&downloader, &self.cache, recipe, &bin, progress).map_err(fetch)?;
            }
        }
        let mut record = UpstreamOrigin {
            schema: ORIGIN_SCHEMA,
            project: recipe.project.clone(),
            version: recipe.version.clone(),
            origin,
            programs: BTreeMap::new(),
            files: BTreeMap::new(),
            modules: Vec::new(),
        };
        for program in &recipe.build.binaries {
            let path = bin.join(&program.binary);
            record.programs.insert(program.binary.clone(), Digest::of_file(&path).at("read", &path)?);
            record.modules.extend(buildinfo::modules(&files::read(&path)?));
        }
        for file in &recipe.build.files {
            let path = bin.join(&file.file);
            record.files.insert(file.file.clone(), Digest::of_file(&path).at("read", &path)?);
        }
        record.modules.sort();
        record.modules.dedup();
        let mut text = serde_json::to_vec_pretty(&record).expect("an origin has only string keys");
        text.push(b'\n');
        files::write_durably(&entry.join("origin.json"), &text)?;
        self.cache.publish(&entry, directory)?;
        Ok(record)
    }
}

/// An entry counts only with an `origin.json` of this version.
fn read_origin(directory: &Path) -> Result<Option<UpstreamOrigin>, FileError> {
    let path = directory.join("origin.json");
    if !path.exists() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&files::read(&path)?).ok())
}

fn choose(mode: SourceMode) -> Result<Origin, UpstreamError> {
    match mode {
        SourceMode::Download => Ok(Origin::Download),
        SourceMode::Auto if gobuild::check_go().is_err() => Ok(Origin::Download),
        SourceMode::Auto => Ok(Origin::Build),
        SourceMode::Build => gobuild::check_go().map(|()| Origin::Build),
    }
}
