//! Container images made of Debian packages, upstream programs and a few files: what a foreign test suite asks for.
//!
//! A set is a data file (`images/containers/<set>.json`) of **stages** that build on each other, and of the **images**
//! made from them. A stage adds a layer of packages and one of everything else; images share the layers of their
//! stages. The whole set is one archive, kept in the cache by all that went into it, except that packages are those
//! that Debian has on the day.

mod busybox;
mod debian;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::CacheDir;
use crate::command::CommandError;
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At, FileError};
use crate::layers::SOURCE_DATE_EPOCH;
use crate::layers::base::SUITE;
use crate::oci::{self, Image, ImageConfig};
use crate::progress::{Progress, ProgressEvent, step};
use crate::tree;
use crate::upstream::recipe::ARCHITECTURE;

/// Changes when the same recipe gives another image.
const RECIPE_VERSION: u32 = 2;
/// The program that stages get with a link for each of its applets.
const BUSYBOX: &str = "busybox";
/// Most stages below one another; more is a circle.
const DEPTH_MAX: usize = 8;
/// What no container needs of Debian's packages.
const EXCLUDED: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "var/lib/apt",
];

/// Images that belong together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    stages: BTreeMap<String, Stage>,
    images: Vec<Recipe>,
}

/// File systems that images are made from.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Stage {
    /// The stage below it.
    from: Option<String>,
    /// Debian packages whose files it has, with those that they depend on. Nothing of them is configured.
    packages: Vec<String>,
    /// A directory for a busybox and links to it by all names that it answers to.
    busybox: Option<String>,
    /// Upstream programs and files, by the path where they go.
    programs: BTreeMap<String, Program>,
    /// Lines of texts, by path.
    files: BTreeMap<String, Vec<String>>,
    /// Symbolic links: path and target.
    links: BTreeMap<String, String>,
    /// Directories that everybody may write.
    directories: Vec<String>,
}

/// One image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// Name with registry and tag.
    name: String,
    stage: String,
    /// How it is run.
    #[serde(default)]
    config: ImageConfig,
}

/// An upstream program, with the mode that its file gets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    program: String,
    #[serde(default = "executable")]
    mode: String,
}

fn executable() -> String {
    "755".to_owned()
}

/// A finished set of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuiltContainers {
    /// Their names, with registry and tag.
    pub names: Vec<String>,
    /// The archive, an OCI image layout in a tar.
    pub archive: PathBuf,
}

/// A set of images cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The data file is not in the expected form.
    #[error("{} is not in the expected form", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where it departs.
        source: serde_json::Error,
    },
    /// A stage is named that is not there, or stages go round in a circle.
    #[error("{user} is made from the stage {stage}, which does not exist or is above it")]
    NoStage {
        /// The image or stage that names it.
        user: String,
        /// The stage.
        stage: String,
    },
    /// The data file asks for a program that nobody made.
    #[error("stage {stage} wants the program {program}, which no upstream part has")]
    NoProgram {
        /// The stage.
        stage: String,
        /// The program.
        program: String,
    },
    /// A mode in the data file is no octal number.
    #[error("stage {stage}: `{mode}` is no mode of a file")]
    Mode {
        /// The stage.
        stage: String,
        /// What stands there.
        mode: String,
    },
    /// Debian's packages cannot be fetched.
    #[error("the packages of stage {stage} cannot be unpacked")]
    Packages {
        /// The stage.
        stage: String,
        /// Why.
        source: CommandError,
    },
    /// Busybox cannot be compiled.
    #[error("busybox cannot be built")]
    Busybox(#[source] CommandError),
    /// Debian has another source of busybox than the one that is pinned.
    #[error(
        "Debian {suite} no longer has the source of busybox {version} that is pinned (found {found}); pin the newer one in images/src/containers/busybox.rs"
    )]
    BusyboxSource {
        /// The Debian suite.
        suite: &'static str,
        /// The pinned version.
        version: &'static str,
        /// The digest of what was found.
        found: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Finds or makes the images of the set in the data file `set`. `programs` are upstream programs and files by name.
///
/// # Errors
/// See [`ContainerError`]; nothing half-made is left under a final name.
pub fn build_containers(
    cache: &CacheDir,
    set: &Path,
    programs: &BTreeMap<String, PathBuf>,
    progress: &mut dyn Progress,
) -> Result<BuiltContainers, ContainerError> {
    let name = set.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = files::read(set)?;
    let set: Set = serde_json::from_slice(&text)
        .map_err(|source| ContainerError::Malformed { path: set.to_owned(), source })?;
    let mut programs = programs.clone();
    if set.stages.values().any(|stage| stage.busybox.is_some()) {
        programs.insert(BUSYBOX.to_owned(), busybox::ensure(cache, progress)?);
    }
    let archive = cache.container_archive(&key(&text, &set, &programs)?);
    let names = set.images.iter().map(|image| image.name.clone()).collect();
    let what = format!("images of {name}");
    let mut wait = || progress.event(ProgressEvent::Waiting { step: what.clone() });
    let _lock = cache.lock(&format!("containers-{name}"), &mut wait)?;
    if archive.is_file() {
        progress.event(ProgressEvent::Cached { step: what });
    } else {
        step(progress, what, None, |progress| {
            let mut build = Build { cache, set: &set, programs: &programs, layers: BTreeMap::new() };
            let bytes = build.archive(&name, progress)?;
            Ok::<_, ContainerError>(files::write_durably(&archive, &bytes)?)
        })?;
    }
    Ok(BuiltContainers { names, archive })
}

fn key(text: &[u8], set: &Set, programs: &BTreeMap<String, PathBuf>) -> Result<Digest, ContainerError> {
    let mut key = KeyBuilder::new("containers")
        .with("recipe", &RECIPE_VERSION.to_le_bytes())
        .with("suite", SUITE.as_bytes())
        .with("text", text);
    for (name, stage) in &set.stages {
        let own = stage.programs.values().map(|program| program.program.as_str());
        for program in own.chain(stage.busybox.is_some().then_some(BUSYBOX)) {
            let path = find(name, program, programs)?;
            key = key.with(program, Digest::of_file(path).at("read", path)?.as_bytes());
        }
    }
    Ok(key.finish())
}

fn find<'a>(
    stage: &str,
    program: &str,
    programs: &'a BTreeMap<String, PathBuf>,
) -> Result<&'a PathBuf, ContainerError> {
    programs
        .get(program)
        .ok_or_else(|| ContainerError::NoProgram { stage: stage.to_owned(), program: program.to_owned() })
}

/// A set that is being made.
struct Build<'a> {
    cache: &'a CacheDir,
    set: &'a Set,
    programs: &'a BTreeMap<String, PathBuf>,
    /// Layers of each stage, without those of the stages below it.
    layers: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Build<'_> {
    /// The bytes of the archive.
    fn archive(&mut self, name: &str, progress: &mut dyn Progress) -> Result<Vec<u8>, ContainerError> {
        let mut chains = Vec::new();
        for image in &self.set.images {
            let chain = chain(self.set, &image.name, &image.stage)?;
            for (name, stage) in &chain {
                if !self.layers.contains_key(*name) {
                    let layers = self.make(name, stage, progress)?;
                    self.layers.insert((*name).to_owned(), layers);
                }
            }
            chains.push(chain);
        }
        let images: Vec<Image<'_>> = std::iter::zip(&self.set.images, &chains)
            .map(|(image, chain)| Image {
                name: &image.name,
                layers: chain.iter().flat_map(|(name, _)| &self.layers[*name]).map(Vec::as_slice).collect(),
                config: &image.config,
            })
            .collect();
        oci::archive(&images, ARCHITECTURE, SOURCE_DATE_EPOCH)
            .at("make the images of", Path::new(name))
            .map_err(ContainerError::from)
    }

    fn make(
        &self,
        name: &str,
        stage: &Stage,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<u8>>, ContainerError> {
        let mut layers = Vec::new();
        if !stage.packages.is_empty() {
            layers.push(self.packages(name, stage, progress)?);
        }
        let temp = self.cache.temp_dir()?;
        let root = temp.path().join("tree");
        files::create_dir_all(&root)?;
        tree::make_dir(&root, "", 0o755)?;
        self.fill(name, stage, &root)?;
        layers.push(tree::to_tar(&root, SOURCE_DATE_EPOCH)?);
        Ok(layers)
    }

    /// What is not from packages.
    fn fill(&self, name: &str, stage: &Stage, root: &Path) -> Result<(), ContainerError> {
        if let Some(directory) = &stage.busybox {
            let program = find(name, BUSYBOX, self.programs)?;
            tree::copy_file(root, &format!("{}/{BUSYBOX}", relative(directory)), 0o755, program)?;
            for applet in busybox::applets(program)? {
                tree::link(root, &format!("{}/{applet}", relative(directory)), BUSYBOX)?;
            }
        }
        for directory in &stage.directories {
            tree::make_dir(root, relative(directory), 0o1777)?;
        }
        for (path, Program { program, mode }) in &stage.programs {
            let mode = u32::from_str_radix(mode, 8)
                .map_err(|_| ContainerError::Mode { stage: name.to_owned(), mode: mode.clone() })?;
            tree::copy_file(root, relative(path), mode, find(name, program, self.programs)?)?;
        }
        for (path, lines) in &stage.files {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            tree::write_file(root, relative(path), 0o644, text.as_bytes())?;
        }
        for (path, target) in &stage.links {
            tree::link(root, relative(path), target)?;
        }
        Ok(())
    }

    /// The files of packages, as a layer.
    fn packages(
        &self,
        name: &str,
        stage: &Stage,
        progress: &mut dyn Progress,
    ) -> Result<Vec<u8>, ContainerError> {
        let temp = self.cache.temp_dir()?;
        let root = temp.path().join("tree");
        debian::unpack(&stage.packages, &root, temp.path(), progress)
            .map_err(|source| ContainerError::Packages { stage: name.to_owned(), source })?;
        for path in EXCLUDED {
            files::remove_all(&root.join(path))?;
        }
        for path in ["dev", "proc", "sys", "run", "tmp"] {
            files::remove_all(&root.join(path))?;
            tree::make_dir(&root, path, if path == "tmp" { 0o1777 } else { 0o755 })?;
        }
        Ok(tree::to_tar(&root, SOURCE_DATE_EPOCH)?)
    }
}

/// A stage and all below it, lowest first.
fn chain<'a>(
    set: &'a Set,
    user: &'a str,
    stage: &'a str,
) -> Result<Vec<(&'a str, &'a Stage)>, ContainerError> {
    let mut chain = Vec::new();
    let mut next = Some((user, stage));
    while let Some((user, name)) = next {
        let found = set.stages.get(name).filter(|_| chain.len() < DEPTH_MAX);
        let stage =
            found.ok_or_else(|| ContainerError::NoStage { user: user.to_owned(), stage: name.to_owned() })?;
        chain.push((name, stage));
        next = stage.from.as_deref().map(|below| (name, below));
    }
    chain.reverse();
    Ok(chain)
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_sound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("containers");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let set: Set = serde_json::from_slice(&std::fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for image in &set.images {
                let (_, tag) = image.name.rsplit_once(':').unwrap();
                assert!(!tag.is_empty() && !tag.contains('/'), "{}", image.name);
                chain(&set, &image.name, &image.stage).unwrap();
            }
            for program in set.stages.values().flat_map(|stage| stage.programs.values()) {
                assert!(u32::from_str_radix(&program.mode, 8).is_ok(), "{}", program.program);
            }
        }
    }

    #[test]
    fn stages_that_are_not_there_or_go_round_are_refused() {
        let set = |text: &str| serde_json::from_str::<Set>(text).unwrap();
        let round = set(r#"{"stages": {"a": {"from": "b"}, "b": {"from": "a"}}, "images": []}"#);
        let missing = set(r#"{"stages": {"a": {"from": "b"}}, "images": []}"#);
        for set in [round, missing] {
            assert!(matches!(chain(&set, "image", "a"), Err(ContainerError::NoStage { .. })));
        }
    }
}
