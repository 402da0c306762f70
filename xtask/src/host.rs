//! What this machine must have before anything can be built or run: programs, rights, kernel features.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use keelson_providers::local::{missing, preflight};

/// Programs that are needed, and Debian's packages that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("runc", "runc"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("busybox", "busybox-static"),
    ("gcc", "gcc"),
    ("pkg-config", "pkg-config"),
    ("openssl", "openssl"),
];

/// A file that is needed, and Debian's package that has it: headers for runc's system call filter.
const HEADERS: (&str, &str) = ("/usr/include/seccomp.h", "libseccomp-dev");

/// Where the kernel keeps the limit (inotify(7)).
const INOTIFY_INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Room for 60 machines.
const INOTIFY_INSTANCES_WANTED: u32 = 1_024;

/// Installs what is missing, then checks everything else and lists all that is wrong at once.
pub(crate) fn prepare(state_dir: &Path) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("machines need root: run this as root, for example with sudo");
    }
    install_missing()?;
    raise_inotify_instances();
    let findings = preflight(state_dir);
    if let Some(missing) = missing(&findings) {
        bail!(missing);
    }
    for finding in findings.iter().filter(|finding| !finding.ok) {
        eprintln!("note: {}: {}; {}", finding.check, finding.detail, finding.remedy);
    }
    Ok(())
}

/// Raises the kernel's limit of inotify instances until the next boot, where it is lower and may be raised: all machines
/// share one user's, and the usual 128 are used up by the second cluster, whose programs then fail one by one.
fn raise_inotify_instances() {
    let limit = std::fs::read_to_string(INOTIFY_INSTANCES).unwrap_or_default();
    let Ok(before) = limit.trim().parse::<u32>() else { return };
    if before >= INOTIFY_INSTANCES_WANTED {
        return;
    }
    // Where it may not be raised, the preflight list says what that means and what to do.
    if std::fs::write(INOTIFY_INSTANCES, INOTIFY_INSTANCES_WANTED.to_string()).is_ok() {
        eprintln!(
            "raised fs.inotify.max_user_instances from {before} to {INOTIFY_INSTANCES_WANTED} until the next boot"
        );
    }
}

fn install_missing() -> Result<()> {
    let mut packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if !Path::new(HEADERS.0).exists() {
        packages.push(HEADERS.1);
    }
    if packages.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!(
            "these Debian packages, or what your system calls them, must be installed: {}",
            packages.join(" ")
        );
    }
    eprintln!("installing {}", packages.join(" "));
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&packages);
    apt(&install)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o=Dpkg::Use-Pty=0"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.stdin(Stdio::null()).output().context("apt-get could not be started")?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Whether `program` can be found, also where an unprivileged path does not look.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(Into::into));
    folders.iter().any(|folder| folder.join(program).is_file())
}
