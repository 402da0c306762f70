//! The local provider on this host, with an image made here: a static busybox whose init notes what it sees and waits.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keelson_protocol::{InstallId, MachineId};
use keelson_providers::local::{LocalConfig, LocalProvider, destroy, leftovers};
use keelson_providers::{ImageLayers, MachineRequest, Provider, ProviderError};

use crate::suite::Subject;

/// The image that boots.
pub(crate) const IMAGE: &str = "sha256:good";

/// An image without an init.
pub(crate) const BROKEN_IMAGE: &str = "sha256:broken";

/// What a machine's init does: it counts boots on the disk, notes whether the root is fresh, tells what it was told and
/// how it is placed, and waits for the signal to halt.
const INIT: &str = r#"#!/bin/sh
trap 'echo halted >> /var/log.txt; exit 0' 37
echo "boot of $(hostname)"
echo boot >> /var/boots
echo seen >> /seen
wc -l < /seen > /var/root_boots
cat /run/keelson-metadata/metadata.json > /var/metadata.json
ip -o addr show > /var/addresses
ip route show > /var/routes
cat /proc/1/cgroup > /var/cgroup
echo "$container $container_uuid" > /var/container
mkdir -p /var/mnt && mount -t tmpfs inside /var/mnt && mkdir -p /mnt && mount -t tmpfs inside /mnt
grep -E ' /(var)? ' /proc/self/mountinfo > /var/propagation
(echo 1 > /proc/sys/vm/swappiness) 2> /var/sysctl_vm
echo 7 > /proc/sys/kernel/panic && cat /proc/sys/kernel/panic > /var/sysctl_panic
echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward > /var/sysctl_net
cat /proc/sys/kernel/random/boot_id >> /var/boot_ids
echo up > /var/up
while :; do sleep 1000 & wait; done
"#;

/// One installation with its own state directory; removed when dropped, also by a failing test.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) install: InstallId,
    provider: Option<LocalProvider>,
    var_tmpfs_bytes: Option<u64>,
    /// Instead of the usual value, from the next [`Self::reopen`] on.
    pub(crate) free_bytes_min: Option<u64>,
}

impl Host {
    pub(crate) async fn new() -> Self {
        Self::with(None).await
    }

    pub(crate) async fn with(var_tmpfs_bytes: Option<u64>) -> Self {
        require();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let install = InstallId::new(format!("t{}x{number}", std::process::id())).unwrap();
        // A blank and a colon: each is special to one of the tools below.
        let dir = tempfile::Builder::new().prefix("keelson test:").tempdir().unwrap();
        make_image(dir.path());
        let mut host = Self { dir, install, provider: None, var_tmpfs_bytes, free_bytes_min: None };
        host.reopen().await;
        host
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state dir")
    }

    /// As a new coordinator does.
    pub(crate) async fn reopen(&mut self) {
        let provider = LocalProvider::open(self.config()).await;
        self.provider = Some(provider.unwrap());
    }

    pub(crate) fn config(&self) -> LocalConfig {
        let mut config = config(self.dir.path(), &self.install);
        config.var_tmpfs_bytes = self.var_tmpfs_bytes;
        config.free_bytes_min = self.free_bytes_min.unwrap_or(config.free_bytes_min);
        config
    }

    pub(crate) fn machine_dir(&self, id: &MachineId) -> PathBuf {
        self.state_dir().join("local/machines").join(id.as_str())
    }

    pub(crate) fn netns(&self, id: &MachineId) -> PathBuf {
        self.machine_dir(id).join("netns")
    }

    pub(crate) fn var(&self, id: &MachineId, name: &str) -> Option<String> {
        fs::read_to_string(self.machine_dir(id).join("var").join(name)).ok()
    }

    /// Waits until init has written all its notes of this boot.
    pub(crate) fn wait_up(&self, id: &MachineId, boots: usize) {
        eventually(&format!("boot {boots} of {id}"), || {
            let count = self.var(id, "boots").unwrap_or_default().lines().count();
            (count == boots && self.var(id, "up").is_some()).then_some(())
        });
    }

    fn tracker(&self, id: &MachineId) -> PathBuf {
        // The freezer of version 1, else the one hierarchy.
        let freezer = Path::new("/sys/fs/cgroup/freezer");
        let root = if freezer.is_dir() { freezer } else { Path::new("/sys/fs/cgroup") };
        root.join(format!("keelson-{}", self.install)).join(id.as_str())
    }

    /// Ids of a machine's processes, one in a line.
    pub(crate) fn tasks(&self, id: &MachineId) -> String {
        fs::read_to_string(self.tracker(id).join("cgroup.procs")).unwrap_or_default()
    }

    /// Moves a machine's processes into a group of its own that is frozen, as a paused container in it would be.
    pub(crate) fn freeze_inside(&self, id: &MachineId) {
        let inner = self.tracker(id).join("inner");
        fs::create_dir_all(&inner).unwrap();
        for task in self.tasks(id).lines() {
            fs::write(inner.join("cgroup.procs"), task).unwrap();
        }
        let (file, word) = match inner.join("freezer.state") {
            file if file.exists() => (file, "FROZEN"),
            _ => (inner.join("cgroup.freeze"), "1"),
        };
        fs::write(file, word).unwrap();
    }

    pub(crate) fn destroy(mut self) {
        self.provider.take().unwrap().destroy().unwrap();
        assert_eq!(leftovers(&self.state_dir(), &self.install), Vec::<String>::new());
    }
}

/// The configuration of a host in `dir`, also for another process.
pub(crate) fn config(dir: &Path, install: &InstallId) -> LocalConfig {
    let images = {
        let dir = dir.to_owned();
        Arc::new(move |digest: &str| layers(&dir, digest))
    };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_keelson-local-forwarder"));
    LocalConfig::new(install.clone(), dir.join("state dir"), images, program)
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = destroy(&self.state_dir()) {
            eprintln!("{error}");
        }
    }
}

impl Subject for Host {
    fn provider(&self) -> &dyn Provider {
        self.provider.as_ref().unwrap()
    }

    fn install(&self) -> InstallId {
        self.install.clone()
    }

    fn image(&self) -> String {
        IMAGE.to_owned()
    }

    fn break_creation(&self, request: &mut MachineRequest) {
        request.image = BROKEN_IMAGE.to_owned();
    }

    fn write_disk(&self, machine: &MachineId, text: &str) {
        fs::write(self.machine_dir(machine).join("var/contract"), text).unwrap();
    }

    fn read_disk(&self, machine: &MachineId) -> Option<String> {
        self.var(machine, "contract")
    }
}

/// Fails loudly where these tests cannot run.
fn require() {
    assert!(nix::unistd::geteuid().is_root(), "these tests make machines: run them as root");
    for (file, package) in
        [("/bin/busybox", "busybox-static"), ("/usr/sbin/runc", "runc"), ("/usr/sbin/nft", "nftables")]
    {
        assert!(Path::new(file).exists(), "{file} is missing: apt-get install {package}");
    }
}

/// Two layers, so that their order is tested: the lower one has an init that must not run.
fn make_image(dir: &Path) {
    let (base, top) = (dir.join("base:1"), dir.join("top,2"));
    for dir in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "var", "etc"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    fs::create_dir_all(top.join("sbin")).unwrap();
    fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
    for tool in ["sh", "hostname", "wc", "cat", "ip", "mkdir", "mount", "grep", "sleep"] {
        symlink("busybox", base.join("bin").join(tool)).unwrap();
    }
    for (layer, text) in [(&base, "#!/bin/sh\nexit 1\n"), (&top, INIT)] {
        let init = layer.join("sbin/init");
        fs::write(&init, text).unwrap();
        fs::set_permissions(&init, Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all(dir.join("broken")).unwrap();
}

fn layers(dir: &Path, digest: &str) -> Result<ImageLayers, ProviderError> {
    let names: &[&str] = match digest {
        IMAGE => &["base:1", "top,2"],
        BROKEN_IMAGE => &["broken"],
        other => return Err(ProviderError::NotFound { what: format!("image {other}") }),
    };
    Ok(ImageLayers { digest: digest.to_owned(), layers: names.iter().map(|name| dir.join(name)).collect() })
}

/// Looks until there is a value; fails with `what` when there is none in time.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < until, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}
