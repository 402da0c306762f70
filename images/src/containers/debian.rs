//! What Debian has: packages unpacked into a tree, and the sources of a package. Both through `mmdebstrap`, which knows
//! where this machine gets packages from and checks their signatures.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, CommandError};
use crate::layers::SOURCE_DATE_EPOCH;
use crate::layers::base::SUITE;
use crate::progress::{Progress, ProgressEvent};
use crate::upstream::recipe::ARCHITECTURE;

/// Unpacks packages, with those that they depend on, into the new directory `root`. Nothing is configured.
pub(super) fn unpack(
    packages: &[String],
    root: &Path,
    temp: &Path,
    progress: &mut dyn Progress,
) -> Result<(), CommandError> {
    let mut mmdebstrap = mmdebstrap(temp);
    mmdebstrap
        .args(["--variant=extract", "--format=directory"])
        .arg(format!("--architectures={}", ARCHITECTURE.as_str()))
        .arg(format!("--include={}", packages.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(SUITE)
        .arg(root);
    run(&mut mmdebstrap, progress)
}

/// Fetches the files of a source package into a directory below `temp`, and returns that.
pub(super) fn source(
    package: &str,
    suite: &str,
    temp: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, CommandError> {
    let to = temp.join("source");
    let mut mmdebstrap = mmdebstrap(temp);
    mmdebstrap
        .args(["--variant=custom", "--format=null"])
        // The source packages of wherever packages come from.
        .arg(
            r#"--setup-hook=sed 's/^deb /deb-src /' "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/src.list""#,
        )
        .arg(
            r#"--customize-hook=mkdir "$TO" && cd "$TO" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get source --download-only "$PACKAGE""#,
        )
        .env("TO", &to)
        .env("PACKAGE", package)
        .arg(suite);
    run(&mut mmdebstrap, progress).map(|()| to)
}

/// In mount and process namespaces of its own, so that what it mounts goes away with it, also when it is killed.
fn mmdebstrap(temp: &Path) -> Command {
    let mut command = command::tied("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--", "mmdebstrap", "--mode=root"])
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.to_string())
        .env("TMPDIR", temp);
    command
}

fn run(mmdebstrap: &mut Command, progress: &mut dyn Progress) -> Result<(), CommandError> {
    let mut note = |line: &str| {
        if let Some(text) = line.strip_prefix("I: ") {
            progress.event(ProgressEvent::Note { text: text.to_owned() });
        }
    };
    command::run("mmdebstrap", mmdebstrap, &mut note)
}
