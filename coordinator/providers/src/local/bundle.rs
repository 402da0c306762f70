//! The OCI bundle of a machine: what runc must do so that systemd boots as on a real machine.
//!
//! Format: OCI runtime specification 1.0.2, config.md and config-linux.md.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cgroups::Cgroups;
use super::error::LocalError;
use super::files;
use super::paths::MachinePaths;
use super::record::MachineRecord;
use crate::ObjectKey;

/// Where a machine finds what it is told at boot.
pub const METADATA_DIR: &str = "/run/keelson-metadata";

/// File in [`METADATA_DIR`]: [`crate::Metadata`] as JSON.
pub const METADATA_FILE: &str = "metadata.json";

/// Most processes of one machine. A worker with 110 pods has a few thousand threads; a fork bomb stops here and leaves
/// the host alive.
const PROCESSES_MAX: u32 = 32_768;

/// Size limits of the memory file systems of a machine, as tmpfs options. They count against its memory.
const DEV_SIZE: &str = "size=65536k";
const RUN_SIZE: &str = "size=512m";
const TMP_SIZE: &str = "size=1g";

/// Period in which the CPU limit is accounted, in microseconds (the kernel's and Kubernetes' default).
const CPU_PERIOD_US: u64 = 100_000;

/// Kernel settings that are not of a namespace but of the host. A machine must not change its host, so it sees them
/// read-only; `/proc/sys/net` is the machine's own.
const HOST_SETTINGS: [&str; 6] = [
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/proc/sys/fs",
    "/proc/sys/dev",
    "/proc/sys/debug",
    "/proc/sysrq-trigger",
];

/// Runs inside the machine, before its init.
///
/// kubelet insists on six of the host's settings, and ends when it may not write them. It finds them as it wants them,
/// in files of the machine that it may also write: the kernel's own stay as they are.
///
/// The kernel has one boot id for the host; a machine gets its own for each power-on, because its journal, kubelet and
/// agent tell boots apart by it.
///
/// Then all mounts become shared, as systemd makes them on a machine of its own and not in a container: kubelet needs
/// mounts that reach into containers. The peer groups are the machine's own.
const BEFORE_INIT: &str = "\
set -e
cd /proc/sys
own=/run/keelson-settings
mkdir $own
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  name=${setting%=*}
  file=$own/${name##*/}
  echo ${setting#*=} > $file
  mount --bind $file $name
done
cat kernel/random/uuid > $own/boot_id
mount --bind $own/boot_id kernel/random/boot_id
mount --make-rshared /
";

/// Capabilities by number (capability.h of Linux 6.1; newer ones do not matter to runc 1.1).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Capabilities that no machine gets: they act on the host's kernel and clock, which no namespace separates.
const NEVER: [&str; 3] = ["CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_SYS_BOOT"];

/// Writes the machine's `config.json`.
pub(crate) fn write(
    machine: &MachinePaths,
    record: &MachineRecord,
    cgroups: &Cgroups,
) -> Result<(), LocalError> {
    let dir = machine.bundle();
    files::make_dir(&dir)?;
    let status = Path::new("/proc/self/status");
    let status = fs::read_to_string(status).map_err(LocalError::file("read", status))?;
    let config = config(machine, record, &cgroups.path(record.id()), &capabilities(&status));
    // Not synced: it is written anew at each power-on.
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).map_err(LocalError::file("write", path))
}

fn config(machine: &MachinePaths, record: &MachineRecord, cgroup: &str, capabilities: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "hostname": record.id(),
        "root": { "path": machine.root(), "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/sbin/init"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                // systemd(1): who runs the machine, and the id to use when the image has none.
                "container=runc",
                format!("container_uuid={}", machine_uuid(&record.key)),
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": false,
        },
        "mounts": mounts(machine),
        "hooks": { "startContainer": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", BEFORE_INIT],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        }] },
        "linux": {
            "namespaces": [
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "cgroup" },
                { "type": "network", "path": machine.netns() },
            ],
            "cgroupsPath": cgroup,
            "resources": resources(record),
            // kubelet ends when it cannot open the kernel's log.
            "devices": [{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600 }],
            // Nothing that is mounted outside shows inside, and the other way round.
            "rootfsPropagation": "rprivate",
            "readonlyPaths": HOST_SETTINGS,
        },
    })
}

fn mounts(machine: &MachinePaths) -> Value {
    let plain = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |at: &str, source: &Path, options: &[&str]| {
        let options: Vec<_> = ["bind", "private"].iter().chain(options).collect();
        json!({ "destination": at, "type": "bind", "source": source, "options": options })
    };
    json!([
        plain("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        plain("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", DEV_SIZE]),
        plain(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        plain("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
        plain("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        plain("/sys", "sysfs", &["nosuid", "noexec", "nodev", "rw"]),
        plain("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "rw"]),
        plain("/run", "tmpfs", &["nosuid", "nodev", "mode=755", RUN_SIZE]),
        plain("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", TMP_SIZE]),
        bind("/var", &machine.var(), &["rw"]),
        // After /run, which would hide it.
        bind(METADATA_DIR, &machine.metadata(), &["ro", "nosuid", "nodev", "noexec"]),
    ])
}

fn resources(record: &MachineRecord) -> Value {
    let mut resources = json!({
        "devices": [{ "allow": true, "access": "rwm" }],
        "pids": { "limit": PROCESSES_MAX },
    });
    if let Some(bytes) = record.memory_bytes_max {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(millis) = record.cpu_millis_max {
        let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD_US });
    }
    resources
}

/// What the caller may hand on, from the text of `/proc/self/status`: asking runc for more fails.
fn capabilities(status: &str) -> Vec<&'static str> {
    let mask = |field: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        u64::from_str_radix(text.trim(), 16).unwrap_or(0)
    };
    let have = mask("CapEff:") & mask("CapPrm:") & mask("CapBnd:");
    let named = CAPABILITIES.iter().enumerate();
    named.filter(|(bit, name)| have >> bit & 1 == 1 && !NEVER.contains(name)).map(|(_, name)| *name).collect()
}

/// The machine's id in systemd's sense (machine-id(5)): the same after each power-on, another for each incarnation.
fn machine_uuid(key: &ObjectKey) -> String {
    let text = format!("{}/{}/{}/{}", key.install, key.cluster, key.machine, key.incarnation);
    let hash = Sha256::digest(text.as_bytes());
    let mut id = [0_u8; 16];
    id.copy_from_slice(&hash[..16]);
    // Version 4 and variant bits, as machine-id(5) asks for.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capabilities_that_the_caller_has_are_asked_for() {
        let status =
            "CapInh:\t0\nCapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\n";
        let got = capabilities(status);
        assert!(!got.contains(&"CAP_SYS_RESOURCE"), "{got:?}");
        assert!(!got.contains(&"CAP_SYS_TIME"), "{got:?}");
        assert_eq!(got.len(), 41 - 1 - NEVER.len());
        assert!(capabilities("").is_empty());
    }
}
