//! What changes only with a reboot or a new image.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use keelson_agent_core::Digest;
use keelson_protocol::health::{CgroupVersion, DiskFact, Facts, ReleaseFact};
use keelson_protocol::{BootId, ReleaseName};
use nix::sys::statvfs::statvfs;
use nix::unistd::{SysconfVar, sysconf};
use serde::Deserialize;

use crate::error::HostError;
use crate::files::{Durability, write_atomically};
use crate::meters::{STATE_MOUNT, memory_bytes};

/// In memory, so that a reboot draws a new one. Not the kernel's boot id: containers on one host share that.
const BOOT_ID: &str = "/run/keelson/boot-id";
const RELEASES: &str = "/opt/keelson/releases";
const IMAGE: &str = "/usr/lib/keelson/image.json";
/// Largest of the JSON files of an image, in bytes.
const JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most releases that an image may carry.
const RELEASES_MAX: usize = 16;
/// CAP_SYS_RESOURCE (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

/// The facts of this machine. What cannot be read is left out or told as unknown: facts must not keep an agent from
/// reporting.
#[must_use]
pub fn facts(agent_version: &str, boot: BootId) -> Facts {
    Facts {
        agent_version: agent_version.to_owned(),
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_else(|_| "unknown".to_owned()),
        os: fs::read_to_string("/etc/os-release")
            .ok()
            .and_then(|text| pretty_name(&text))
            .unwrap_or_default(),
        cgroup: cgroup_version(Path::new("/sys/fs/cgroup")),
        may_raise_limits: fs::read_to_string("/proc/self/status")
            .is_ok_and(|text| has_capability(&text, CAP_SYS_RESOURCE)),
        cpus: cpus().unwrap_or(1),
        memory_bytes: memory_bytes("MemTotal").unwrap_or(0),
        disks: disk(STATE_MOUNT).into_iter().collect(),
        image_digest: read_json::<Image>(Path::new(IMAGE)).map(|(image, _)| image.digest),
        releases: releases(Path::new(RELEASES)),
        boot,
    }
}

/// The id of this boot: drawn at the first call of a boot.
///
/// # Errors
/// [`HostError`] when there is no randomness, or when it cannot be kept.
pub fn boot_id() -> Result<BootId, HostError> {
    let path = Path::new(BOOT_ID);
    let known = fs::read_to_string(path).ok().and_then(|text| u128::from_str_radix(text.trim(), 16).ok());
    if let Some(id) = known {
        return Ok(BootId(id));
    }
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    let id = BootId(u128::from_be_bytes(bytes));
    write_atomically(path, 0o644, format!("{id}\n").as_bytes(), Durability::InMemory)?;
    Ok(id)
}

/// A number that nobody can guess: a seed for jitter, or a nonce.
///
/// # Errors
/// [`HostError::Meter`] when there is no randomness.
pub fn random_number() -> Result<u64, HostError> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn random(bytes: &mut [u8]) -> Result<(), HostError> {
    let failed = |source| HostError::Meter { what: "/dev/urandom", source };
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes)).map_err(failed)
}

/// `PRETTY_NAME` of os-release(5).
fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// Version 2 has its file of controllers at the root, and at least one in it; the hybrid layout has neither.
fn cgroup_version(root: &Path) -> CgroupVersion {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if controllers.trim().is_empty() { CgroupVersion::V1 } else { CgroupVersion::V2 }
}

/// Whether a process's bounding set holds a capability (`CapBnd` in proc(5)).
fn has_capability(status: &str, capability: u32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> capability & 1 == 1)
}

/// The CPUs that the kernel runs programs on, as kubelet counts them: what a control group allows of their time is no matter.
fn cpus() -> Option<u32> {
    u32::try_from(sysconf(SysconfVar::_NPROCESSORS_ONLN).ok()??).ok()
}

fn disk(mount: &str) -> Option<DiskFact> {
    let disk = statvfs(mount).ok()?;
    Some(DiskFact { mount: mount.to_owned(), bytes: disk.blocks().saturating_mul(disk.fragment_size()) })
}

#[derive(Deserialize)]
struct Image {
    digest: String,
}

#[derive(Deserialize)]
struct Release {
    name: ReleaseName,
}

/// Releases of the image. The digest of `release.json` stands for the content: it names the digest of every file.
fn releases(root: &Path) -> Vec<ReleaseFact> {
    let Ok(folders) = fs::read_dir(root) else { return Vec::new() };
    let mut releases: Vec<ReleaseFact> = folders
        .flatten()
        .take(RELEASES_MAX)
        .filter_map(|folder| read_json::<Release>(&folder.path().join("release.json")))
        .map(|(release, digest)| ReleaseFact { name: release.name, digest: format!("sha256:{digest}") })
        .collect();
    releases.sort_by(|a, b| a.name.cmp(&b.name));
    releases
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<(T, Digest)> {
    let mut text = Vec::new();
    let read = |file: fs::File| -> io::Result<usize> { file.take(JSON_BYTES_MAX).read_to_end(&mut text) };
    fs::File::open(path).and_then(read).ok()?;
    Some((serde_json::from_slice(&text).ok()?, Digest::of(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounding_set_is_read() {
        assert!(has_capability("Name:\tx\nCapBnd:\t0000000001000000\n", 24));
        assert!(!has_capability("CapBnd:\t0000000000ffffff\n", 24));
        assert!(!has_capability("", 24));
    }

    #[test]
    fn hybrid_control_groups_are_version_1() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_version(root.path()), CgroupVersion::V1);
        fs::write(root.path().join("cgroup.controllers"), "\n").unwrap();
        assert_eq!(cgroup_version(root.path()), CgroupVersion::V1);
        fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(cgroup_version(root.path()), CgroupVersion::V2);
    }

    #[test]
    fn releases_are_found_in_order_and_damaged_ones_left_out() {
        let root = tempfile::tempdir().unwrap();
        for (folder, text) in [("b", r#"{"name":"1.37.2"}"#), ("a", r#"{"name":"1.36.3","x":1}"#), ("c", "{")]
        {
            fs::create_dir(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("release.json"), text).unwrap();
        }
        let names: Vec<String> =
            releases(root.path()).iter().map(|release| release.name.to_string()).collect();
        assert_eq!(names, ["1.36.3", "1.37.2"]);
    }

    #[test]
    fn the_name_of_the_system_is_read() {
        assert_eq!(pretty_name("A=1\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
    }
}
