//! Container images made of Debian packages, upstream programs and a few files: what a foreign test suite asks for.
//!
//! A set is a data file (`images/containers/<set>.json`). Each image has two layers: the packages' files, which images
//! with the same list share, and the rest. Finished archives are kept in the cache by all that went into them, except
//! that packages are those that Debian has on the day.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::CacheDir;
use crate::command::{self, CommandError};
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At, FileError};
use crate::layers::SOURCE_DATE_EPOCH;
use crate::layers::base::SUITE;
use crate::oci::{self, ImageConfig};
use crate::progress::{Progress, ProgressEvent, step};
use crate::tree;
use crate::upstream::recipe::ARCHITECTURE;

/// Changes when the same recipe gives another image.
const RECIPE_VERSION: u32 = 1;
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
    images: Vec<Recipe>,
}

/// One image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Recipe {
    /// Name with registry and tag.
    name: String,
    /// Debian packages whose files it has, with those that they depend on. Nothing of them is configured.
    #[serde(default)]
    packages: Vec<String>,
    /// Upstream programs and files, by the path where they go.
    #[serde(default)]
    programs: BTreeMap<String, Program>,
    /// Texts, by path.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Symbolic links: path and target.
    #[serde(default)]
    links: BTreeMap<String, String>,
    /// Directories that everybody may write.
    #[serde(default)]
    directories: Vec<String>,
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

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuiltContainer {
    /// Name with registry and tag.
    pub name: String,
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
    /// The data file asks for a program that nobody made.
    #[error("image {image} wants the program {program}, which no upstream part has")]
    NoProgram {
        /// The image.
        image: String,
        /// The program.
        program: String,
    },
    /// A mode in the data file is no octal number.
    #[error("image {image}: `{mode}` is no mode of a file")]
    Mode {
        /// The image.
        image: String,
        /// What stands there.
        mode: String,
    },
    /// Debian's packages cannot be fetched.
    #[error("the packages of image {image} cannot be unpacked")]
    Packages {
        /// The image.
        image: String,
        /// Why.
        source: CommandError,
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
) -> Result<Vec<BuiltContainer>, ContainerError> {
    let text = files::read(set)?;
    let set: Set = serde_json::from_slice(&text)
        .map_err(|source| ContainerError::Malformed { path: set.to_owned(), source })?;
    let mut roots = BTreeMap::new();
    let mut built = Vec::new();
    for recipe in &set.images {
        let archive = cache.container_archive(&key(recipe, programs)?);
        if archive.is_file() {
            progress.event(ProgressEvent::Cached { step: recipe.name.clone() });
        } else {
            step(progress, recipe.name.clone(), None, |progress| {
                let bytes = make(cache, recipe, programs, &mut roots, progress)?;
                Ok::<_, ContainerError>(files::write_durably(&archive, &bytes)?)
            })?;
        }
        built.push(BuiltContainer { name: recipe.name.clone(), archive });
    }
    Ok(built)
}

fn key(recipe: &Recipe, programs: &BTreeMap<String, PathBuf>) -> Result<Digest, ContainerError> {
    let mut key = KeyBuilder::new("container")
        .with("recipe", &RECIPE_VERSION.to_le_bytes())
        .with("suite", SUITE.as_bytes())
        .with("text", format!("{recipe:?}").as_bytes());
    for program in recipe.programs.values() {
        let path = find(recipe, &program.program, programs)?;
        key = key.with(&program.program, Digest::of_file(path).at("read", path)?.as_bytes());
    }
    Ok(key.finish())
}

fn find<'a>(
    recipe: &Recipe,
    program: &str,
    programs: &'a BTreeMap<String, PathBuf>,
) -> Result<&'a PathBuf, ContainerError> {
    programs
        .get(program)
        .ok_or_else(|| ContainerError::NoProgram { image: recipe.name.clone(), program: program.to_owned() })
}

/// The bytes of an image. `roots` keeps layers of packages for the next image with the same list.
fn make(
    cache: &CacheDir,
    recipe: &Recipe,
    programs: &BTreeMap<String, PathBuf>,
    roots: &mut BTreeMap<Vec<String>, Vec<u8>>,
    progress: &mut dyn Progress,
) -> Result<Vec<u8>, ContainerError> {
    if !recipe.packages.is_empty() && !roots.contains_key(&recipe.packages) {
        roots.insert(recipe.packages.clone(), packages(cache, recipe, progress)?);
    }
    let temp = cache.temp_dir()?;
    let root = temp.path().join("tree");
    files::create_dir_all(&root)?;
    tree::make_dir(&root, "", 0o755)?;
    fill(recipe, programs, &root)?;
    let own = tree::to_tar(&root, SOURCE_DATE_EPOCH)?;
    let mut layers: Vec<&[u8]> = roots.get(&recipe.packages).map(Vec::as_slice).into_iter().collect();
    layers.push(&own);
    oci::archive(&recipe.name, &layers, &recipe.config, ARCHITECTURE, SOURCE_DATE_EPOCH)
        .at("make the image", Path::new(&recipe.name))
        .map_err(ContainerError::from)
}

/// What is not from packages.
fn fill(recipe: &Recipe, programs: &BTreeMap<String, PathBuf>, root: &Path) -> Result<(), ContainerError> {
    for directory in &recipe.directories {
        tree::make_dir(root, relative(directory), 0o1777)?;
    }
    for (path, Program { program, mode }) in &recipe.programs {
        let mode = u32::from_str_radix(mode, 8)
            .map_err(|_| ContainerError::Mode { image: recipe.name.clone(), mode: mode.clone() })?;
        tree::copy_file(root, relative(path), mode, find(recipe, program, programs)?)?;
    }
    for (path, text) in &recipe.files {
        tree::write_file(root, relative(path), 0o644, text.as_bytes())?;
    }
    for (path, target) in &recipe.links {
        tree::link(root, relative(path), target)?;
    }
    Ok(())
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The files of packages, as a layer.
fn packages(
    cache: &CacheDir,
    recipe: &Recipe,
    progress: &mut dyn Progress,
) -> Result<Vec<u8>, ContainerError> {
    let temp = cache.temp_dir()?;
    let root = temp.path().join("tree");
    let mut mmdebstrap = command::tied("unshare");
    mmdebstrap
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .args(["mmdebstrap", "--mode=root", "--variant=extract", "--format=directory"])
        .arg(format!("--architectures={}", ARCHITECTURE.as_str()))
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(SUITE)
        .arg(&root)
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.to_string())
        .env("TMPDIR", temp.path());
    let mut note = |line: &str| {
        if let Some(text) = line.strip_prefix("I: ") {
            progress.event(ProgressEvent::Note { text: text.to_owned() });
        }
    };
    command::run("mmdebstrap", &mut mmdebstrap, &mut note)
        .map_err(|source| ContainerError::Packages { image: recipe.name.clone(), source })?;
    for path in EXCLUDED {
        files::remove_all(&root.join(path))?;
    }
    for path in ["dev", "proc", "sys", "run", "tmp"] {
        files::remove_all(&root.join(path))?;
        tree::make_dir(&root, path, if path == "tmp" { 0o1777 } else { 0o755 })?;
    }
    Ok(tree::to_tar(&root, SOURCE_DATE_EPOCH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("containers");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let set: Set = serde_json::from_slice(&std::fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for image in set.images {
                let (_, tag) = image.name.rsplit_once(':').unwrap();
                assert!(!tag.is_empty() && !tag.contains('/'), "{}", image.name);
                for program in image.programs.values() {
                    assert!(u32::from_str_radix(&program.mode, 8).is_ok(), "{}", image.name);
                }
            }
        }
    }
}
