//! The base layer: Debian's packages and our settings of the operating system.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{LayerContent, SOURCE_DATE_EPOCH};
use crate::command::{self, CommandError};
use crate::digest::{Digest, KeyBuilder};
use crate::files::{self, At, FileError};
use crate::manifest::DebianPackage;
use crate::progress::{Progress, ProgressEvent};
use crate::sbom::Component;
use crate::tree;
use crate::upstream::recipe::ARCHITECTURE;

/// The Debian suite of the image.
pub(crate) const SUITE: &str = "bookworm";
/// Changes when the same recipe files give another layer, by a change of this module.
const BASE_RECIPE_VERSION: u32 = 1;
/// How long it takes with a fast package mirror.
pub(crate) const USUAL_TIME: Duration = Duration::from_secs(90);
/// Free bytes needed: packages and their unpacked files, with room for a larger list.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Where the package database is in the image; /var is not part of it.
const DPKG_DIR: &str = "usr/lib/sysimage/dpkg";

/// What nobody reads on a node. Licences (copyright files) stay.
const EXCLUDED_PATHS: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bash-completion/*",
    "path-exclude=/usr/share/zsh/*",
];

/// Directories that are mount points or disks on a machine: there, empty, with their modes.
const EMPTY_DIRS: [(&str, u32); 8] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("root", 0o700),
];

/// Left over from installing, or for tools that the image does not have.
const REMOVED: [&str; 20] = [
    "etc/.pwd.lock",
    "etc/apt",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/group-",
    "etc/gshadow-",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/passwd-",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "etc/rcS.d",
    "etc/shadow-",
    "etc/update-motd.d",
    // The compiled form stays.
    "usr/lib/udev/hwdb.d",
];

/// The base layer cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Making a root file system needs devices, owners and mounts.
    #[error("making the root file system needs root; run the command as root")]
    NotRoot,
    /// Too little room.
    #[error(
        "the root file system needs {needed_bytes} bytes free in the cache, there are {free_bytes}; free some space, or set KEELSON_CACHE_DIR to a directory on a larger disk"
    )]
    NoSpace {
        /// Needed bytes.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
    },
    /// A program is missing or failed.
    #[error("Debian's packages cannot be installed into the root file system")]
    Command(#[from] CommandError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BaseError {
    /// Whether the file system had no room left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            BaseError::NoSpace { .. } => true,
            BaseError::Command(error) => error.is_disk_full(),
            BaseError::File(error) => error.is_disk_full(),
            BaseError::NotRoot => false,
        }
    }
}

/// The key: the package list, our files, and what this module does. Not the versions that Debian has today, so the
/// layer stays until its recipe changes or somebody asks for fresh packages.
pub(crate) fn key(recipes: &Path) -> Result<Digest, FileError> {
    Ok(KeyBuilder::new("base")
        .with("schema", &super::LAYER_SCHEMA.to_le_bytes())
        .with("recipe", &BASE_RECIPE_VERSION.to_le_bytes())
        .with("suite", SUITE.as_bytes())
        .with("architecture", ARCHITECTURE.as_str().as_bytes())
        .with("epoch", &SOURCE_DATE_EPOCH.to_le_bytes())
        .with("excluded", EXCLUDED_PATHS.join("\n").as_bytes())
        .with("packages", package_list(recipes)?.join(",").as_bytes())
        .with("files", tree::recipe_digest(&recipes.join("rootfs").join("base"))?.as_bytes())
        .finish())
}

fn package_list(recipes: &Path) -> Result<Vec<String>, FileError> {
    let text = files::read(&recipes.join("rootfs").join("packages.list"))?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// Fills `root`.
pub(crate) fn make(
    recipes: &Path,
    root: &Path,
    progress: &mut dyn Progress,
) -> Result<LayerContent, BaseError> {
    install_packages(&package_list(recipes)?, root, progress)?;
    clean(root)?;
    tree::overlay(&recipes.join("rootfs").join("base"), root)?;
    // With the times of all files equal, systemd does not take the image for one that was updated since the last boot.
    tree::write_file(root, "etc/.updated", 0o644, b"")?;
    let packages = installed(&files::read(&root.join(DPKG_DIR).join("status"))?);
    let components = packages.iter().map(Component::debian).collect();
    Ok(LayerContent { packages, components, ..LayerContent::default() })
}

/// Checks that this machine can make the layer, in the cache at `path`.
pub(crate) fn check_host(path: &Path) -> Result<(), BaseError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(BaseError::NotRoot);
    }
    command::require("mmdebstrap", "apt-get install mmdebstrap")?;
    command::require("setpriv", "apt-get install util-linux")?;
    command::require("unshare", "apt-get install util-linux")?;
    let free_bytes = files::free_bytes(path)?;
    if free_bytes < FREE_BYTES_MIN {
        return Err(BaseError::NoSpace { needed_bytes: FREE_BYTES_MIN, free_bytes });
    }
    Ok(())
}

/// mmdebstrap mounts /proc, /sys and /dev below the root it makes. It runs in mount and process namespaces of its own,
/// so that these mounts are never seen outside and go away with it, also when this program is killed.
fn install_packages(packages: &[String], root: &Path, progress: &mut dyn Progress) -> Result<(), BaseError> {
    let mut mmdebstrap = command::tied("unshare");
    mmdebstrap
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .args(["mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"])
        .arg(format!("--architectures={}", ARCHITECTURE.as_str()))
        .arg(format!("--include={}", packages.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(EXCLUDED_PATHS.map(|path| format!("--dpkgopt={path}")))
        .arg(SUITE)
        .arg(root)
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.to_string())
        .env("TMPDIR", root.parent().unwrap_or(root));
    let mut note = |line: &str| {
        if let Some(text) = line.strip_prefix("I: ") {
            progress.event(ProgressEvent::Note { text: text.to_owned() });
        }
    };
    Ok(command::run("mmdebstrap", &mut mmdebstrap, &mut note)?)
}

/// Makes an installed tree into an image: nothing of this build, and nothing that belongs to one machine.
fn clean(root: &Path) -> Result<(), FileError> {
    for path in REMOVED {
        files::remove_all(&root.join(path))?;
    }
    let dpkg = root.join(DPKG_DIR);
    tree::make_dir(root, "usr/lib/sysimage", 0o755)?;
    fs::rename(root.join("var/lib/dpkg"), &dpkg).at("rename to", &dpkg)?;
    for path in
        ["status-old", "available", "available-old", "lock", "lock-frontend", "triggers/Lock", "cmethopt"]
    {
        files::remove_all(&dpkg.join(path))?;
    }
    for (path, mode) in EMPTY_DIRS {
        files::remove_all(&root.join(path))?;
        tree::make_dir(root, path, mode)?;
    }
    Ok(())
}

/// The installed packages in dpkg's status file (deb-control paragraphs), by name.
fn installed(status: &[u8]) -> Vec<DebianPackage> {
    let text = String::from_utf8_lossy(status);
    let mut packages: Vec<_> = text.split("\n\n").filter_map(installed_package).collect();
    packages.sort();
    packages
}

fn installed_package(paragraph: &str) -> Option<DebianPackage> {
    let field = |name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    if !field("Status")?.ends_with(" installed") {
        return None;
    }
    Some(DebianPackage {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_file() {
        let status = b"Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\n\
                       Description: x\n Version: 9\n\n\
                       Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                       Package: adduser\nStatus: install ok installed\nArchitecture: all\nVersion: 3.1\n";
        let package = |name: &str, version: &str, architecture: &str| DebianPackage {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: architecture.to_owned(),
        };
        assert_eq!(
            installed(status),
            [package("adduser", "3.1", "all"), package("zlib1g", "1:1.2", "amd64")]
        );
    }

    #[test]
    fn the_package_list_is_sorted_and_without_repeats() {
        let list = package_list(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let mut sorted = list.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(list, sorted);
        assert!(list.iter().any(|package| package == "systemd"));
    }
}
