//! The peer: `kubeadm init` on one machine of the same node image.
//!
//! What a user prepares beforehand is not measured: the machine is booted, containerd runs, the images are loaded.
//! kube-proxy is left out, because its image would need nftables inside; that is in the peer's favour, and so is that
//! its control plane carries no taint, so that the first pod may run there.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_images::{Architecture, CacheDir, Digest, ImageStore, OciImage, PAUSE_IMAGE, SOURCE_DATE_EPOCH};
use keelson_protocol::{Incarnation, InstallId};
use keelson_providers::call::{
    Answer, Call, ImageLayers, ImageResolver, MachineRequest, Metadata, ObjectKey, SecretText,
};
use keelson_providers::local::{self, LocalConfig, LocalProvider};
use keelson_providers::{Provider, ProviderError};
use serde_json::json;

use crate::Arguments;
use crate::pod::{self, Seconds};
use crate::process::{output, wait_for};

/// How long the provider may take for one call.
const CALL_MAX: Duration = Duration::from_secs(60);
/// Where a machine finds what the peer needs; the host writes it to the machine's disk.
const FOLDER: &str = "/var/peer";
/// Programs of the control plane, each an image of its own.
const CONTROL_PLANE: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// What every machine of the peer is made from.
pub(crate) struct Peer<'a> {
    arguments: &'a Arguments,
    runtime: tokio::runtime::Runtime,
    provider: LocalProvider,
    install: InstallId,
    state_dir: PathBuf,
    archives: PathBuf,
}

impl<'a> Peer<'a> {
    /// Makes the installation and the image archives.
    pub(crate) fn prepare(arguments: &'a Arguments) -> Result<Self> {
        let install: InstallId = format!("peer{}", std::process::id()).parse()?;
        let state_dir = arguments.scratch.join("kubeadm");
        let archives = arguments.scratch.join("images");
        std::fs::create_dir_all(&state_dir)?;
        std::fs::create_dir_all(&archives)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let resolver = resolver(ImageStore::open(&CacheDir::from_environment()?));
        let program = arguments.coordinator.clone();
        let config = LocalConfig::new(install.clone(), state_dir.clone(), resolver, program);
        let provider = runtime.block_on(LocalProvider::open(config))?;
        let peer = Self { arguments, runtime, provider, install, state_dir, archives };
        peer.write_archives()?;
        Ok(peer)
    }

    /// One cluster from `kubeadm init` to its first pod, on a machine that is made for it and removed afterwards.
    pub(crate) fn round(&self, number: u32) -> Result<Seconds> {
        let machine = Machine::boot(self, number)?;
        machine.prepare()?;
        let began = Instant::now();
        let config = format!("{FOLDER}/init.json");
        let init = ["kubeadm", "init", "--ignore-preflight-errors=all", "--config", &config];
        let said = output(machine.command().args(init));
        let said = said.with_context(|| machine.journal())?;
        ensure!(said.contains("initialized successfully"), "kubeadm said:\n{said}");
        let command = began.elapsed().as_secs_f64();
        pod::run_first(|| {
            let mut kubectl = machine.command();
            kubectl.args(["kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"]);
            kubectl
        })?;
        Ok(Seconds { command, first_pod: began.elapsed().as_secs_f64() })
    }

    /// Writes one archive for each image that kubeadm asks for, under exactly the names that it uses.
    fn write_archives(&self) -> Result<()> {
        let version = format!("v{}", self.arguments.release);
        let list = ["config", "images", "list", "--kubernetes-version", &version];
        let names = output(Command::new(&self.arguments.kubeadm).args(list))?;
        for name in names.lines() {
            let Some(program) = self.program_of(name) else { continue };
            let file = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
            let image = OciImage {
                name,
                entrypoint: &format!("/usr/local/bin/{file}"),
                program: &std::fs::read(&program).with_context(|| program.display().to_string())?,
                ports: &[],
                architecture: Architecture::Amd64,
                epoch: SOURCE_DATE_EPOCH,
            };
            std::fs::write(self.archives.join(format!("{file}.tar")), image.to_bytes()?)?;
        }
        Ok(())
    }

    /// The program that an image consists of; none for kube-proxy and for the sandbox, which machines have.
    fn program_of(&self, image: &str) -> Option<PathBuf> {
        let name = image.rsplit('/').next()?.split(':').next()?;
        match name {
            "etcd" => Some(self.arguments.etcd.clone()),
            "coredns" => Some(self.arguments.coredns.clone()),
            name if CONTROL_PLANE.contains(&name) => Some(self.arguments.kubeadm.with_file_name(name)),
            _ => None,
        }
    }

    fn call(&self, call: &Call) -> Result<Answer> {
        Ok(self.runtime.block_on(self.provider.perform(call, CALL_MAX))?)
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        // What cannot be removed is found by `cargo xtask bench create`, which removes the scratch directory.
        let _ = local::destroy(&self.state_dir);
    }
}

/// A booted machine; removed when this value goes.
struct Machine<'a> {
    peer: &'a Peer<'a>,
    key: ObjectKey,
    address: Ipv4Addr,
}

impl<'a> Machine<'a> {
    fn boot(peer: &'a Peer<'a>, number: u32) -> Result<Self> {
        let machine = format!("peer-{number}").parse()?;
        let key = ObjectKey {
            install: peer.install.clone(),
            cluster: "peer".parse()?,
            machine,
            incarnation: Incarnation(number),
        };
        let capabilities = peer.provider.capabilities();
        // Its agent is switched off below and never dials.
        let metadata = Metadata {
            machine: key.machine.clone(),
            incarnation: key.incarnation,
            coordinators: vec![(Ipv4Addr::LOCALHOST, 9).into()],
            ca_fingerprint: "0".repeat(64),
            token: SecretText("0".repeat(64)),
        };
        let address = capabilities.first_address;
        peer.call(&Call::CreateMachine(Box::new(MachineRequest {
            key: key.clone(),
            image: peer.arguments.image.clone(),
            zone: capabilities.zones.first().context("the provider has no zone")?.clone(),
            address,
            cpu_millis_max: None,
            memory_bytes_max: None,
            disk_bytes: 10 << 30,
            metadata,
        })))?;
        let machine = Self { peer, key, address };
        wait_for("the machine to boot", || {
            let said = output(machine.command().args(["systemctl", "is-system-running"]))?;
            if said.trim() == "running" { Ok(()) } else { bail!("it is {said}") }
        })?;
        output(machine.command().args(["systemctl", "mask", "--now", "keelson-agent.service"]))?;
        Ok(machine)
    }

    /// Runs a program on the machine, with the release's programs on the path.
    fn command(&self) -> Command {
        let mut command = Command::new("runc");
        let path = format!("PATH={}", path(&self.peer.arguments.release));
        command.arg("--root").arg(self.peer.state_dir.join("local/runc")).arg("exec");
        command.args(["--env", &path, "--env", "HOME=/root", self.key.machine.as_str()]);
        command
    }

    /// Puts everything in place that kubeadm's documents ask for beforehand.
    fn prepare(&self) -> Result<()> {
        let disk = self.peer.state_dir.join("local/machines").join(self.key.machine.as_str()).join("var");
        let folder = disk.join("peer");
        std::fs::create_dir_all(folder.join("bin"))?;
        std::fs::copy(&self.peer.arguments.kubeadm, folder.join("bin/kubeadm"))?;
        let write = |name: &str, text: String| -> Result<()> {
            std::fs::write(folder.join(name), text).with_context(|| name.to_owned())
        };
        let v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        write("containerd.toml", containerd_config(&self.peer.arguments.release, v1))?;
        write("10-pods.conflist", pod_network().to_string())?;
        let unit = |command: &str, more: &str| unit(&self.peer.arguments.release, command, more);
        let containerd = format!("containerd --config={FOLDER}/containerd.toml");
        write("containerd.service", unit(&containerd, "Delegate=yes\n"))?;
        write("kubelet.service", unit(KUBELET, KUBELET_ENVIRONMENT))?;
        write("init.json", self.init_config(v1))?;
        std::fs::create_dir_all(folder.join("net.d"))?;
        std::fs::rename(folder.join("10-pods.conflist"), folder.join("net.d/10-pods.conflist"))?;
        let units = ["containerd.service", "kubelet.service"].map(|name| format!("{FOLDER}/{name}"));
        output(self.command().arg("cp").args(units).arg("/run/systemd/system/"))?;
        output(self.command().args(["systemctl", "daemon-reload"]))?;
        output(self.command().args(["systemctl", "start", "containerd.service"]))?;
        self.load_images(&folder)
    }

    fn load_images(&self, folder: &Path) -> Result<()> {
        let pause = format!("/opt/keelson/releases/{}/images/pause.tar", self.peer.arguments.release);
        let mut archives = vec![pause];
        for entry in std::fs::read_dir(&self.peer.archives)? {
            let from = entry?.path();
            let name = from.file_name().context("an archive has a name")?.to_string_lossy().into_owned();
            std::fs::copy(&from, folder.join(&name))?;
            archives.push(format!("{FOLDER}/{name}"));
        }
        for archive in archives {
            let import = ["ctr", "--namespace=k8s.io", "images", "import", "--local", &archive];
            wait_for("containerd", || output(self.command().args(import)))?;
        }
        Ok(())
    }

    /// kubeadm's configuration: InitConfiguration, ClusterConfiguration and the kubelet's, version v1beta4.
    fn init_config(&self, v1: bool) -> String {
        let api_version = "kubeadm.k8s.io/v1beta4";
        let limits = !may_raise_limits();
        let mut kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "cgroupDriver": if v1 { "cgroupfs" } else { "systemd" }, "failCgroupV1": false, "failSwapOn": false,
        });
        if limits {
            kubelet["oomScoreAdj"] = json!(0);
            kubelet["featureGates"] = json!({ "KubeletInUserNamespace": true });
        }
        let documents = [
            json!({
                "apiVersion": api_version, "kind": "InitConfiguration",
                "localAPIEndpoint": { "advertiseAddress": self.address, "bindPort": 6443 },
                "skipPhases": ["addon/kube-proxy"],
                "nodeRegistration": {
                    "name": self.key.machine, "taints": [], "imagePullPolicy": "Never",
                    "criSocket": "unix:///run/containerd/containerd.sock",
                    "kubeletExtraArgs": [{ "name": "node-ip", "value": self.address }],
                },
            }),
            json!({
                "apiVersion": api_version, "kind": "ClusterConfiguration",
                "kubernetesVersion": format!("v{}", self.peer.arguments.release),
                "networking": { "podSubnet": "10.244.0.0/16", "serviceSubnet": "10.96.0.0/16" },
            }),
            kubelet,
        ];
        documents.map(|document| document.to_string()).join("\n---\n")
    }

    /// What the machine's programs said last, for an error.
    fn journal(&self) -> String {
        let last = ["journalctl", "--no-pager", "--quiet", "--lines=40"];
        output(self.command().args(last)).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // The whole installation is removed at the end in any case.
        let _ = self.peer.call(&Call::DeleteMachine(self.key.clone()));
    }
}

/// As kubeadm's packages have it.
const KUBELET: &str = "kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
    --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS";
/// As kubeadm's packages have it.
const KUBELET_ENVIRONMENT: &str = "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n";

fn unit(release: &str, command: &str, more: &str) -> String {
    // systemd wants the program's whole path; the shell finds it.
    let path = path(release);
    format!(
        "[Service]\nEnvironment=PATH={path}\nExecStart=/bin/sh -c 'exec {command}'\nRestart=always\n{more}"
    )
}

/// Where a machine's programs are.
fn path(release: &str) -> String {
    format!("{FOLDER}/bin:/opt/keelson/releases/{release}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

fn containerd_config(release: &str, v1: bool) -> String {
    let release = format!("/opt/keelson/releases/{release}");
    format!(
        r#"version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = {}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{release}/bin/runc"
SystemdCgroup = {}
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{release}/cni/bin"]
conf_dir = "{FOLDER}/net.d"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
"#,
        !may_raise_limits(),
        !v1,
    )
}

fn pod_network() -> serde_json::Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.244.0.0/24" }]], "dataDir": "/run/cni" },
    }] })
}

/// Whether processes here may lower their OOM score (CAP_SYS_RESOURCE, bit 24 of the bounding set).
fn may_raise_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & (1 << 24) != 0)
}

fn resolver(store: ImageStore) -> ImageResolver {
    Arc::new(move |text: &str| {
        let invalid = |detail: String| ProviderError::Invalid { field: "image", detail };
        let digest: Digest = text.parse().map_err(|_| invalid(format!("`{text}` is no image digest")))?;
        let image = store.get(&digest).map_err(|error| invalid(error.to_string()))?;
        let layers = image.manifest.layers.iter().map(|layer| store.layer_dir(&layer.digest)).collect();
        Ok(ImageLayers { digest: text.to_owned(), layers })
    })
}
