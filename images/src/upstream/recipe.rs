//! The pinned recipe of one upstream project: `upstream/<project>/<version>/{go.mod,go.sum,build.json,download.json}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::UpstreamError;
use super::download::DownloadError;
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, FileError};
use crate::manifest::Architecture;

/// The architecture that everything is made for.
pub(crate) const ARCHITECTURE: Architecture = Architecture::Amd64;

/// A recipe is absent or wrong.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of it is not in the expected form.
    #[error("{} is not in the expected form", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where it departs.
        source: serde_json::Error,
    },
}

/// `build.json`: what to compile and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildFile {
    /// Whether C code is compiled in.
    pub(crate) cgo: bool,
    /// Go build tags.
    pub(crate) tags: Vec<String>,
    /// Values of string variables set by the linker, `package.name=value`.
    pub(crate) set: Vec<String>,
    pub(crate) binaries: Vec<Binary>,
    /// Files that are copied out of modules.
    #[serde(default)]
    pub(crate) files: Vec<ModuleFile>,
}

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binary {
    /// Its file name.
    pub(crate) binary: String,
    /// The Go package of its `main`; of a test program, the package whose tests it runs.
    pub(crate) package: String,
    /// Whether it is a test program (`go test -c`).
    #[serde(default)]
    pub(crate) test: bool,
}

/// A file of a module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModuleFile {
    /// Its name here.
    pub(crate) file: String,
    /// The module that has it; one of `go.mod`, so that `go.sum` pins its content.
    pub(crate) module: String,
    /// Its path there.
    pub(crate) path: String,
}

/// `download.json`: the official files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DownloadFile {
    /// Version of this format; 1.
    pub(crate) schema: u32,
    pub(crate) files: Vec<OfficialFile>,
}

/// One official file. In addresses, `{version}` and `{arch}` are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfficialFile {
    pub(crate) url: String,
    /// Where its publisher says its digest: lines of `digest  name`, or the digest alone.
    pub(crate) sums_url: String,
    /// The pinned digest; null until an operator has pinned it.
    pub(crate) sha256: Option<Digest>,
    /// A larger file is refused. About twice the size of the file.
    pub(crate) bytes_max: u64,
    /// Program name to the member of the archive (`.tar.gz`) that holds it. Without it, the file is the one program.
    pub(crate) programs: BTreeMap<String, Option<String>>,
}

/// All that is known about a project's version.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) project: String,
    pub(crate) version: String,
    pub(crate) dir: PathBuf,
    pub(crate) build: BuildFile,
    /// `build.json` as it is, for the key.
    build_text: Vec<u8>,
    pub(crate) download: DownloadFile,
    pub(crate) go_mod: Vec<u8>,
    pub(crate) go_sum: Vec<u8>,
}

impl Recipe {
    pub(crate) fn read(recipes: &Path, project: &str, version: &str) -> Result<Recipe, RecipeError> {
        let dir = recipes.join(project).join(version);
        let build_text = files::read(&dir.join("build.json"))?;
        Ok(Recipe {
            project: project.to_owned(),
            version: version.to_owned(),
            build: parse(&dir.join("build.json"), &build_text)?,
            download: parse(&dir.join("download.json"), &files::read(&dir.join("download.json"))?)?,
            go_mod: files::read(&dir.join("go.mod"))?,
            go_sum: files::read(&dir.join("go.sum"))?,
            build_text,
            dir,
        })
    }

    /// The part of the key that both ways have.
    pub(crate) fn common_key(&self, kind: &str, schema: u32) -> KeyBuilder {
        KeyBuilder::new(kind)
            .with("schema", &schema.to_le_bytes())
            .with("project", self.project.as_bytes())
            .with("version", self.version.as_bytes())
            .with("architecture", ARCHITECTURE.as_str().as_bytes())
            .with("build.json", &self.build_text)
    }

    pub(crate) fn download_key(&self, schema: u32) -> Digest {
        let files = serde_json::to_vec(&self.download).expect("a download file has only string keys");
        self.common_key("download", schema).with("files", &files).finish()
    }

    /// How long compiling takes with an empty Go cache, on two cores.
    pub(crate) fn usual_build_time(&self) -> Duration {
        Duration::from_secs(if self.project.starts_with("kubernetes") { 600 } else { 60 })
    }

    pub(crate) fn download_failed(&self, source: DownloadError) -> UpstreamError {
        let (project, version) = (self.project.clone(), self.version.clone());
        UpstreamError::Download { project, version, source: Box::new(source) }
    }

    /// An address of this recipe with its placeholders replaced.
    pub(crate) fn expand(&self, url: &str) -> String {
        url.replace("{version}", &self.version).replace("{arch}", ARCHITECTURE.as_str())
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, RecipeError> {
    serde_json::from_slice(bytes).map_err(|source| RecipeError::Malformed { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::release::Release;

    #[test]
    fn every_part_of_every_release_has_a_sound_recipe() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream");
        for release in Release::all() {
            for (project, version) in &release.components {
                let recipe = Recipe::read(&recipes, project, version).unwrap();
                let built: BTreeSet<_> = recipe.build.binaries.iter().map(|b| b.binary.as_str()).collect();
                let downloaded: BTreeSet<_> = recipe
                    .download
                    .files
                    .iter()
                    .flat_map(|f| f.programs.keys().map(String::as_str))
                    .collect();
                assert_eq!(built, downloaded, "{project} {version}: both ways give the same programs");
                for file in &recipe.download.files {
                    for url in [&file.url, &file.sums_url] {
                        let url = recipe.expand(url);
                        assert!(url.starts_with("https://") && !url.contains('{'), "{url}");
                    }
                }
                let module = String::from_utf8(recipe.go_mod.clone()).unwrap();
                assert!(module.contains(&format!("v{version}")), "{project} {version}");
            }
        }
    }
}
