//! Busybox as its authors release it, compiled from the source that Debian's package carries.
//!
//! Tests look at the words of its shell and expect that it hands on variables with unusual names. Debian's own build is
//! patched in both respects, so only its unpatched source archive is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ContainerError, debian};
use crate::cache::CacheDir;
use crate::command::{self, CommandError};
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At};
use crate::progress::{Progress, ProgressEvent, step};
use crate::upstream::recipe::ARCHITECTURE;

/// The version of the source archive.
const VERSION: &str = "1.37.0";
/// The Debian suite whose source package has that version.
const SUITE: &str = "trixie";
/// SHA-256 of the source archive.
const SOURCE_SHA256: &str = "3311dff32e746499f4df0d5df04d7eb396382d7e108bb9250e7b519b837043a4";
/// Changes when the same source gives another program.
const RECIPE_VERSION: u32 = 1;
/// Departures from the default configuration: static; without `tc`, which newer kernel headers no longer allow.
const SETTINGS: [(&str, &str); 2] =
    [("# CONFIG_STATIC is not set", "CONFIG_STATIC=y"), ("CONFIG_TC=y", "# CONFIG_TC is not set")];

/// Finds or compiles the program.
pub(super) fn ensure(cache: &CacheDir, progress: &mut dyn Progress) -> Result<PathBuf, ContainerError> {
    let compiler = command::require("gcc", "apt-get install gcc libc6-dev")
        .and_then(|()| command::require("make", "apt-get install make"))
        .and_then(|()| command::require("bzip2", "apt-get install bzip2"))
        .and_then(|()| command::output("gcc", Command::new("gcc").arg("-dumpfullversion")))
        .map_err(ContainerError::Busybox)?;
    let key = KeyBuilder::new("busybox")
        .with("recipe", &RECIPE_VERSION.to_le_bytes())
        .with("source", SOURCE_SHA256.as_bytes())
        .with("architecture", ARCHITECTURE.as_str().as_bytes())
        .with("settings", format!("{SETTINGS:?}").as_bytes())
        .with("gcc", compiler.as_bytes())
        .finish();
    let directory = cache.upstream_dir("busybox", VERSION, &key);
    let program = directory.join("bin").join("busybox");
    let name = format!("build busybox {VERSION}");
    let mut wait = || progress.event(ProgressEvent::Waiting { step: name.clone() });
    let _lock = cache.lock(&format!("upstream-busybox-{}", key.short()), &mut wait)?;
    if program.is_file() {
        progress.event(ProgressEvent::Cached { step: name });
        return Ok(program);
    }
    step(progress, name, None, |progress| {
        let temp = cache.temp_dir()?;
        let made = compile(temp.path(), progress)?;
        let entry = temp.path().join("entry");
        files::create_dir_all(&entry.join("bin"))?;
        let to = entry.join("bin").join("busybox");
        fs::rename(&made, &to).at("rename to", &to)?;
        cache.publish(&entry, &directory)?;
        Ok::<_, ContainerError>(program)
    })
}

/// The names that a busybox answers to.
pub(super) fn applets(program: &Path) -> Result<Vec<String>, ContainerError> {
    let list =
        command::output("busybox", Command::new(program).arg("--list")).map_err(ContainerError::Busybox)?;
    Ok(list.lines().map(str::to_owned).filter(|name| name != "busybox").collect())
}

fn compile(work: &Path, progress: &mut dyn Progress) -> Result<PathBuf, ContainerError> {
    let archive = debian::source("busybox", SUITE, work, progress)
        .map_err(ContainerError::Busybox)?
        .join(format!("busybox_{VERSION}.orig.tar.bz2"));
    let found = if archive.is_file() {
        Digest::of_file(&archive).at("read", &archive)?.to_string()
    } else {
        "no such file".to_owned()
    };
    if found != SOURCE_SHA256 {
        return Err(ContainerError::BusyboxSource { suite: SUITE, version: VERSION, found });
    }
    let mut note = |line: &str| progress.event(ProgressEvent::Note { text: line.to_owned() });
    let mut run = |program: &str, words: &[&str], directory: &Path| -> Result<(), CommandError> {
        let mut command = command::tied(program);
        // Without a timestamp the same source gives the same bytes.
        command.args(words).current_dir(directory).env("KCONFIG_NOTIMESTAMP", "1");
        command::run(program, &mut command, &mut note)
    };
    let tree = work.join(format!("busybox-{VERSION}"));
    run("tar", &["--extract", "--bzip2", "--file", &archive.display().to_string()], work)
        .and_then(|()| run("make", &["defconfig"], &tree))
        .map_err(ContainerError::Busybox)?;
    let file = tree.join(".config");
    let mut settings = fs::read_to_string(&file).at("read", &file)?;
    for (default, ours) in SETTINGS {
        settings = settings.replace(default, ours);
    }
    fs::write(&file, settings).at("write", &file)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    run("make", &[&format!("--jobs={jobs}"), "busybox"], &tree).map_err(ContainerError::Busybox)?;
    Ok(tree.join("busybox"))
}
