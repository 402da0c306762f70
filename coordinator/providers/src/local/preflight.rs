//! What this host must have for the local provider, found by trying: each check does, in namespaces that vanish with
//! it, what the provider will do. All checks are made, so that one look tells everything that is missing.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keelson_protocol::errors::chain;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use super::cgroups;
use super::error::LocalError;
use super::files;
use super::mounts::on_own_thread;

/// Free disk that a demo cluster with its image and release needs, in bytes.
const DISK_BYTES_MIN: u64 = 15 * 1024 * 1024 * 1024;

/// Memory that four machines with Kubernetes need, in bytes: about 1 GiB for the master, less for the others.
const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024 * 1024;

/// inotify instances of one user. All machines' root is the same user to the kernel, and systemd, containerd and
/// kubelet of one worker take 14 (measured with Debian 12 and Kubernetes 1.37): room for eight machines.
const INOTIFY_INSTANCES_MIN: u64 = 128;

/// Open files of one process: a busy containerd or etcd needs some thousand.
const OPEN_FILES_MIN: u64 = 8192;

/// How long one check may take.
const CHECK_WAIT: Duration = Duration::from_secs(10);

/// Controllers without which machines cannot be limited, or kubelet does not start.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "freezer", "memory", "pids"];

/// What follows when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// The local provider does not work.
    Required,
    /// It works for small set-ups, or without one ability.
    Advised,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightFinding {
    /// What was looked at, in a few words.
    pub check: &'static str,
    /// What follows when it is missing.
    pub level: Level,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it is not `ok`.
    pub remedy: &'static str,
}

/// Looks at everything that the local provider needs of this host. `state_dir` need not exist yet.
#[must_use]
pub fn preflight(state_dir: &Path) -> Vec<PreflightFinding> {
    use Level::{Advised, Required};
    let there = nearest_existing(state_dir);
    let finding = |check, level, remedy, result: Result<String, String>| {
        let ok = result.is_ok();
        let (Ok(detail) | Err(detail)) = result;
        PreflightFinding { check, level, ok, detail, remedy }
    };
    vec![
        finding(
            "root",
            Required,
            "run as root: machines are containers with namespaces of their own",
            root(),
        ),
        finding("runc", Required, "install it: apt-get install runc", version_of("runc", "--version")),
        finding("ip", Required, "install it: apt-get install iproute2", version_of("ip", "-Version")),
        finding("nft", Required, "install it: apt-get install nftables", version_of("nft", "--version")),
        finding(
            "state directory",
            Required,
            "choose a state directory without a comma in its path",
            plain(state_dir),
        ),
        finding(
            "mount options of the state directory",
            Advised,
            "choose a state directory on a file system without nosuid, nodev and noexec, or containers lose these",
            free_of_restrictions(&there),
        ),
        finding(
            "overlay file system",
            Required,
            "load it with `modprobe overlay`, and keep the state directory off overlay and network file systems",
            overlay(&there),
        ),
        finding(
            "network namespaces, bridge and veth",
            Required,
            "load them with `modprobe -a bridge veth`, or use a kernel that has them",
            network(),
        ),
        finding(
            "nftables and connection tracking",
            Required,
            "load them with `modprobe -a nf_tables nf_conntrack nft_ct`, or use a kernel that has them",
            nftables("inet", "ct state established accept"),
        ),
        finding(
            "nftables for bridges",
            Advised,
            "needed to cut links in the fault bench: use a kernel with CONFIG_NF_TABLES_BRIDGE",
            nftables("bridge", "iifname \"a\" drop"),
        ),
        finding(
            "control groups",
            Required,
            "boot with these controllers on (`cgroup_enable=memory` on some boards)",
            controllers(),
        ),
        finding("loopback", Required, "bring it up: ip link set lo up", loopback()),
        finding(
            "inotify instances",
            Advised,
            "raise it: sysctl fs.inotify.max_user_instances=1024 (each machine takes about 15)",
            at_least("fs.inotify.max_user_instances", inotify_instances(), INOTIFY_INSTANCES_MIN),
        ),
        finding(
            "open files",
            Advised,
            "raise the hard limit of open files, for example `LimitNOFILE=65536` in the service",
            at_least("hard limit of open files", open_files(), OPEN_FILES_MIN),
        ),
        finding("disk", Advised, "free disk space, or choose a state directory elsewhere", disk(&there)),
        finding("memory", Advised, "end other programs or use a larger host", memory()),
    ]
}

/// Everything without which the local provider does not work, as one list with remedies; `None` when nothing is
/// missing.
#[must_use]
pub fn missing(findings: &[PreflightFinding]) -> Option<String> {
    let lines: Vec<String> = findings
        .iter()
        .filter(|finding| !finding.ok && finding.level == Level::Required)
        .map(|finding| format!("  {}: {}\n    {}", finding.check, finding.detail, finding.remedy))
        .collect();
    (!lines.is_empty()).then(|| format!("this host lacks what machines need:\n{}", lines.join("\n")))
}

fn nearest_existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn root() -> Result<String, String> {
    let user = nix::unistd::geteuid();
    if user.is_root() { Ok("running as root".to_owned()) } else { Err(format!("running as user {user}")) }
}

fn version_of(program: &str, option: &str) -> Result<String, String> {
    let output = Command::new(program).arg(option).output().map_err(|e| format!("{program}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("present").trim().to_owned())
}

fn plain(state_dir: &Path) -> Result<String, String> {
    let text = state_dir.display().to_string();
    if text.contains(',') { Err(text) } else { Ok(text) }
}

fn free_of_restrictions(dir: &Path) -> Result<String, String> {
    let flags = statvfs(dir).map_err(|e| format!("{}: {e}", dir.display()))?.flags();
    let bad: Vec<_> =
        [(FsFlags::ST_NOSUID, "nosuid"), (FsFlags::ST_NODEV, "nodev"), (FsFlags::ST_NOEXEC, "noexec")]
            .into_iter()
            .filter(|(flag, _)| flags.contains(*flag))
            .map(|(_, name)| name)
            .collect();
    let at = dir.display();
    if bad.is_empty() { Ok(format!("{at}: none")) } else { Err(format!("{at}: {}", bad.join(", "))) }
}

/// Mounts an overlay in a mount namespace of its own, with its upper directory where machines will have theirs.
fn overlay(dir: &Path) -> Result<String, String> {
    let name: OsString = format!(".keelson-preflight-{}", std::process::id()).into();
    let dir = dir.join(name);
    let attempt = on_own_thread("preflight", || {
        for part in ["l", "upper", "work", "root"] {
            files::make_dir(&dir.join(part))?;
        }
        unshare(CloneFlags::CLONE_NEWNS).map_err(LocalError::kernel("make a mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(LocalError::kernel("separate the mount namespace"))?;
        std::env::set_current_dir(&dir).map_err(LocalError::file("enter", &dir))?;
        let options = "lowerdir=l,upperdir=upper,workdir=work";
        mount(Some("overlay"), "root", Some("overlay"), MsFlags::empty(), Some(options))
            .map_err(LocalError::kernel(format!("mount an overlay below {}", dir.display())))
    });
    let removed = files::remove_tree(&dir);
    attempt.and(removed).map(|()| "works".to_owned()).map_err(|e| chain(&e))
}

/// Runs `work` in a network namespace that ends with it.
fn in_fresh_network(work: impl FnOnce() -> Result<(), LocalError> + Send) -> Result<String, String> {
    let attempt = on_own_thread("preflight", || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LocalError::kernel("make a network namespace"))?;
        work()
    });
    attempt.map(|()| "works".to_owned()).map_err(|e| chain(&e))
}

fn network() -> Result<String, String> {
    let script = "link add name br0 type bridge\nlink add name veth0 type veth peer name veth1\nlink set veth0 master br0\n";
    in_fresh_network(|| {
        files::run(
            "ip -batch",
            Command::new("ip").args(["-batch", "-"]),
            Some(script),
            Instant::now() + CHECK_WAIT,
        )
    })
}

fn nftables(family: &str, rule: &str) -> Result<String, String> {
    let script =
        format!("table {family} t {{ chain c {{ type filter hook forward priority 0; {rule}\n}}\n}}\n");
    in_fresh_network(move || {
        files::run("nft", Command::new("nft").args(["-f", "-"]), Some(&script), Instant::now() + CHECK_WAIT)
    })
}

fn controllers() -> Result<String, String> {
    let found = cgroups::controllers().map_err(|e| chain(&e))?;
    let version = cgroups::version().map_err(|e| chain(&e))?;
    let missing: Vec<_> = CONTROLLERS.into_iter().filter(|name| !found.iter().any(|f| f == name)).collect();
    match version {
        None => Err("none are mounted on /sys/fs/cgroup".to_owned()),
        Some(version) if missing.is_empty() => Ok(format!("{version:?} with {}", CONTROLLERS.join(", "))),
        Some(version) => Err(format!("{version:?} without {}", missing.join(", "))),
    }
}

fn loopback() -> Result<String, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(|_| "works".to_owned()).map_err(|e| e.to_string())
}

fn at_least(what: &str, found: Result<u64, String>, wanted: u64) -> Result<String, String> {
    let found = found?;
    if found >= wanted {
        Ok(format!("{what} is {found}"))
    } else {
        Err(format!("{what} is {found}, {wanted} are advised"))
    }
}

fn inotify_instances() -> Result<u64, String> {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    text.trim().parse().map_err(|e| format!("{path}: {e}"))
}

fn open_files() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/self/limits").map_err(|e| format!("/proc/self/limits: {e}"))?;
    let hard = text.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().nth(1));
    match hard {
        Some("unlimited") => Ok(u64::MAX),
        Some(number) => number.parse().map_err(|e| format!("{number}: {e}")),
        None => Err("/proc/self/limits does not name it".to_owned()),
    }
}

fn disk(dir: &Path) -> Result<String, String> {
    let free = files::free_bytes(dir).map_err(|e| chain(&e))?;
    enough(&format!("free on {}", dir.display()), free, DISK_BYTES_MIN)
}

fn memory() -> Result<String, String> {
    let text = fs::read_to_string("/proc/meminfo").map_err(|e| format!("/proc/meminfo: {e}"))?;
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    enough("available", kib.unwrap_or(0_u64).saturating_mul(1024), MEMORY_BYTES_MIN)
}

fn enough(what: &str, found: u64, wanted: u64) -> Result<String, String> {
    const MIB: u64 = 1024 * 1024;
    let text = format!("{} MiB {what}", found / MIB);
    if found >= wanted { Ok(text) } else { Err(format!("{text}, {} MiB are advised", wanted / MIB)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_looked_at_and_a_bad_directory_is_named() {
        let findings = preflight(Path::new("/tmp/with,comma/not-there"));
        assert!(findings.len() >= 15);
        let bad = findings.iter().find(|f| f.check == "state directory").unwrap();
        assert!(!bad.ok && bad.level == Level::Required && bad.detail.contains("with,comma"), "{bad:?}");
        assert!(findings.iter().all(|f| !f.detail.is_empty() && !f.remedy.is_empty()), "{findings:?}");
    }

    #[test]
    fn limits_are_compared() {
        assert_eq!(at_least("it", Ok(5), 5), Ok("it is 5".to_owned()));
        assert_eq!(at_least("it", Ok(4), 5), Err("it is 4, 5 are advised".to_owned()));
        assert_eq!(enough("free", 1 << 30, 1 << 31), Err("1024 MiB free, 2048 MiB are advised".to_owned()));
    }
}
