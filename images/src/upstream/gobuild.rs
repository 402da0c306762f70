//! Compiling upstream programs from Go modules.

use std::path::Path;
use std::process::Command;

use super::UpstreamError;
use super::recipe::{ARCHITECTURE, Binary, Recipe};
use crate::command::{self, CommandError};
use crate::digest::Digest;
use crate::files::{self, At};
use crate::progress::Progress;

/// The oldest Go that builds all recipes, as (major, minor).
const GO_MINIMUM: (u32, u32) = (1, 26);
/// The same as text.
const GO_MINIMUM_TEXT: &str = "1.26";
/// Changes when the same recipe gives other programs, for example by a new flag.
const BUILD_RECIPE_VERSION: u32 = 1;
/// Free bytes needed for a build. An empty Go cache grows by 3.1 GB for Kubernetes, its programs have 0.6 GB.
const BUILD_FREE_BYTES_MIN: u64 = 4 * 1024 * 1024 * 1024;

/// Checks that a new enough Go is installed.
pub(crate) fn check_go() -> Result<(), UpstreamError> {
    let no_go = |found: &str| UpstreamError::NoGo { minimum: GO_MINIMUM_TEXT, found: found.to_owned() };
    if command::find_program("go").is_none() {
        return Err(no_go("none"));
    }
    let version = command::output("go", Command::new("go").args(["env", "GOVERSION"]))
        .map_err(|error| no_go(&format!("one that does not work ({error})")))?;
    if is_new_enough(version.trim()) { Ok(()) } else { Err(no_go(version.trim())) }
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.trim_start_matches("go").split(['.', 'r', 'b', '-', ' ']);
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    matches!((number(), number()), (Some(major), Some(minor)) if (major, minor) >= GO_MINIMUM)
}

/// The key of a build: every file and tool version that goes into it.
pub(crate) fn key(recipe: &Recipe, schema: u32) -> Result<Digest, UpstreamError> {
    let failed = |source| failed(recipe, source);
    // Asked in the recipe's directory, as its go.mod may select another toolchain.
    let version = command::output("go", &mut go(recipe, &["env", "GOVERSION"])).map_err(failed)?;
    let mut key = recipe
        .common_key("build", schema)
        .with("recipe", &BUILD_RECIPE_VERSION.to_le_bytes())
        .with("go", version.trim().as_bytes())
        .with("go.mod", &recipe.go_mod)
        .with("go.sum", &recipe.go_sum);
    if recipe.build.cgo {
        check_c_tools().map_err(failed)?;
        let compiler = command::output("gcc", Command::new("gcc").arg("-dumpfullversion")).map_err(failed)?;
        let mut pkg_config = Command::new("pkg-config");
        let library = command::output("pkg-config", pkg_config.args(["--modversion", "libseccomp"]));
        key = key.with("gcc", compiler.as_bytes()).with("libseccomp", library.map_err(failed)?.as_bytes());
    }
    Ok(key.finish())
}

fn check_c_tools() -> Result<(), CommandError> {
    command::require("gcc", "apt-get install gcc libc6-dev")?;
    command::require("pkg-config", "apt-get install pkg-config")?;
    let mut pkg_config = Command::new("pkg-config");
    command::output("pkg-config", pkg_config.args(["--exists", "libseccomp"])).map(drop).map_err(|_| {
        CommandError::Missing {
            program: "libseccomp with its header files".to_owned(),
            remedy: "apt-get install libseccomp-dev".to_owned(),
        }
    })
}

/// Compiles all programs of a recipe into `bin`, and copies its files there.
pub(crate) fn build(recipe: &Recipe, bin: &Path, progress: &mut dyn Progress) -> Result<(), UpstreamError> {
    check_space(recipe, bin)?;
    let (tests, programs): (Vec<&Binary>, Vec<&Binary>) =
        recipe.build.binaries.iter().partition(|binary| binary.test);
    let mut note = |line: &str| {
        progress.event(crate::progress::ProgressEvent::Note { text: line.to_owned() });
    };
    let mut build = compile(recipe, &["build"]);
    build.arg("-o").arg(bin.join("")).args(programs.iter().map(|program| &program.package));
    command::run("go", &mut build, &mut note).map_err(|source| failed(recipe, source))?;
    for program in programs {
        let made = bin.join(default_name(&program.package));
        let wanted = bin.join(&program.binary);
        if made != wanted {
            std::fs::rename(&made, &wanted).at("rename to", &wanted)?;
        }
    }
    for test in tests {
        let mut build = compile(recipe, &["test", "-c"]);
        build.arg("-o").arg(bin.join(&test.binary)).arg(&test.package);
        command::run("go", &mut build, &mut note).map_err(|source| failed(recipe, source))?;
    }
    copy_files(recipe, bin)
}

/// A `go` command that compiles, with all flags but what and where to.
fn compile(recipe: &Recipe, verb: &[&str]) -> Command {
    let mut command = go(recipe, verb);
    command.args(["-mod=readonly", "-trimpath", "-buildvcs=false"]);
    if !recipe.build.tags.is_empty() {
        command.arg("-tags").arg(recipe.build.tags.join(","));
    }
    command.arg("-ldflags").arg(linker_flags(recipe));
    command
}

fn copy_files(recipe: &Recipe, bin: &Path) -> Result<(), UpstreamError> {
    for file in &recipe.build.files {
        let mut list = go(recipe, &["list", "-m", "-f", "{{.Dir}}"]);
        let dir = command::output("go", list.arg(&file.module)).map_err(|source| failed(recipe, source))?;
        let content = files::read(&Path::new(dir.trim()).join(&file.path))?;
        let to = bin.join(&file.file);
        std::fs::write(&to, content).at("write", &to)?;
    }
    Ok(())
}

fn check_space(recipe: &Recipe, bin: &Path) -> Result<(), UpstreamError> {
    let go_cache = command::output("go", &mut go(recipe, &["env", "GOCACHE"]))
        .map_err(|source| failed(recipe, source))?;
    for path in [bin, Path::new(go_cache.trim())] {
        // The Go cache may not exist yet; then the nearest parent says which disk it will be on.
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let free_bytes = files::free_bytes(existing)?;
        if free_bytes < BUILD_FREE_BYTES_MIN {
            return Err(UpstreamError::NoSpace {
                project: recipe.project.clone(),
                path: path.to_owned(),
                needed_bytes: BUILD_FREE_BYTES_MIN,
                free_bytes,
            });
        }
    }
    Ok(())
}

/// A `go` command in the recipe's directory, free of the settings of the user that change what comes out. Settings of
/// where things are fetched from and kept stay.
fn go(recipe: &Recipe, words: &[&str]) -> Command {
    let mut command = command::tied("go");
    command
        .args(words)
        .current_dir(&recipe.dir)
        .env("CGO_ENABLED", if recipe.build.cgo { "1" } else { "0" })
        .envs([("GOOS", "linux"), ("GOARCH", ARCHITECTURE.as_str()), ("GOAMD64", "v1")])
        .envs([("GOFLAGS", ""), ("GOWORK", "off"), ("GOEXPERIMENT", "")]);
    command
}

fn linker_flags(recipe: &Recipe) -> String {
    let mut flags = "-s -w".to_owned();
    if recipe.build.cgo {
        // Static, so that the programs do not depend on the libraries of the base layer.
        flags.push_str(" -extldflags -static");
    }
    for value in &recipe.build.set {
        flags.push_str(" -X ");
        flags.push_str(value);
    }
    flags
}

/// The file name that `go build` gives the program of a package: the last part of its path that is not a version.
fn default_name(package: &str) -> &str {
    let is_version = |part: &str| {
        part.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    package.rsplit('/').find(|part| !is_version(part)).unwrap_or(package)
}

fn failed(recipe: &Recipe, source: CommandError) -> UpstreamError {
    UpstreamError::Command { project: recipe.project.clone(), version: recipe.version.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions() {
        for good in ["go1.26.8", "go1.26", "go1.26rc1", "go1.27.0", "go2.0", "go1.26.8 X:nocoverageredesign"]
        {
            assert!(is_new_enough(good), "{good}");
        }
        for bad in ["go1.25.9", "go1.9", "", "go", "devel", "go1"] {
            assert!(!is_new_enough(bad), "{bad}");
        }
    }

    #[test]
    fn names_of_programs() {
        for (package, name) in [
            ("go.etcd.io/etcd/server/v3", "server"),
            ("github.com/opencontainers/runc", "runc"),
            ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
            ("example.com/vet", "vet"),
        ] {
            assert_eq!(default_name(package), name);
        }
    }
}
