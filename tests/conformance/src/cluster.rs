//! The cluster under test, reached as any user reaches it: through `keelson` and `kubectl`.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::Arguments;
use crate::images::Images;

/// Where a machine keeps what belongs to these tests.
const FOLDER: &str = "/var/lib/keelson-conformance";
/// Where its containerd looks for mirrors.
const REGISTRY_HOSTS: &str = "/var/lib/keelson/registry-hosts";
/// The registry that tests name.
const MIRRORED: &str = "registry.k8s.io";
/// Port of the registry on the first worker.
const REGISTRY_PORT: u16 = 5005;
/// Unit of the registry there.
const REGISTRY_UNIT: &str = "keelson-conformance-registry";
/// The label of every namespace that the suite makes.
const NAMESPACES: &str = "e2e-run";
/// How long namespaces may take to go.
const SWEEP_MAX: &str = "180s";
/// What outside a namespace may lead into it, and break the cluster once that is gone.
const REFERRERS: [&str; 3] =
    ["validatingwebhookconfigurations", "mutatingwebhookconfigurations", "apiservices"];
/// Longest wait for a command: the images are loaded in one.
const COMMAND_MAX: Duration = Duration::from_secs(600);
/// Tries until the registry answers, one a second.
const REGISTRY_TRIES: u32 = 20;

/// A cluster.
pub(crate) struct Cluster {
    name: String,
    keelson: PathBuf,
    context: PathBuf,
    kubectl: PathBuf,
    kubeconfig: tempfile::TempDir,
}

impl Cluster {
    /// Gets access to the cluster.
    pub(crate) async fn open(arguments: &Arguments) -> Result<Self> {
        let cluster = Self {
            name: arguments.cluster.clone(),
            keelson: arguments.keelson.clone(),
            context: arguments.context.clone(),
            kubectl: arguments.kubectl.clone(),
            kubeconfig: tempfile::tempdir()?,
        };
        let file = cluster.kubeconfig();
        let mut command = cluster.keelson(&["cluster", "kubeconfig", &cluster.name, "--set-context"]);
        output(command.args(["--ttl", "24h", "--file"]).arg(file)).await?;
        Ok(cluster)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.path().join("kubeconfig")
    }

    fn keelson(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.keelson);
        command.arg("--context").arg(&self.context).args(words).stdin(Stdio::null());
        command
    }

    async fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        output(command.arg("--kubeconfig").arg(self.kubeconfig()).args(words)).await
    }

    async fn status(&self) -> Result<Value> {
        let text = output(&mut self.keelson(&["cluster", "show", &self.name, "--output", "json"])).await?;
        let document: Value = serde_json::from_str(&text).context("keelson printed no JSON")?;
        Ok(document["status"].clone())
    }

    /// Fails when the cluster is not ready, with what it waits for.
    pub(crate) async fn expect_ready(&self) -> Result<()> {
        let state = self.status().await?["state"].as_str().unwrap_or_default().to_owned();
        let name = &self.name;
        ensure!(state == "ready", "cluster {name} is {state}; see: keelson cluster show {name} --explain");
        Ok(())
    }

    /// Makes commands that print the cluster's newest events and all that come, as lines of JSON.
    pub(crate) fn events(&self) -> impl Fn() -> Command + 'static {
        let (keelson, context, name) = (self.keelson.clone(), self.context.clone(), self.name.clone());
        move || {
            let mut command = Command::new(&keelson);
            command.arg("--context").arg(&context);
            command.args(["events", "--follow", "--output", "json", "--cluster", &name]);
            command
        }
    }

    /// Ids and addresses of the workers.
    async fn workers(&self) -> Result<Vec<(String, String)>> {
        let status = self.status().await?;
        let machines = status["machines"].as_array().context("the cluster has no machines")?;
        let is_worker =
            |machine: &&Value| machine["role"].as_str().is_some_and(|role| role.contains("worker"));
        let text = |machine: &Value, field: &str| machine[field].as_str().unwrap_or_default().to_owned();
        Ok(machines
            .iter()
            .filter(is_worker)
            .map(|machine| (text(machine, "id"), text(machine, "address")))
            .collect())
    }

    /// Gives the workers what tests need.
    pub(crate) async fn prepare(&self, images: &Images, registry: &Path) -> Result<()> {
        self.load(images).await?;
        self.serve(images, registry).await
    }

    /// Loads images into every worker that does not have them yet.
    #[expect(clippy::print_stderr, reason = "half a gigabyte takes a while, and somebody waits")]
    async fn load(&self, images: &Images) -> Result<()> {
        let ctr = self.ctr().await?;
        for (worker, _) in self.workers().await? {
            self.on(&worker, &["mkdir", "-p", FOLDER]).await?;
            let note = format!("loaded-{}", images.key());
            let noted = self.on(&worker, &["ls", FOLDER]).await?;
            let there = self.on(&worker, &[&ctr, "--namespace=k8s.io", "images", "ls", "--quiet"]).await?;
            let there: BTreeSet<&str> = there.lines().collect();
            // The note says which content was loaded; kubelet may have collected it since.
            let is_noted = noted.lines().any(|line| line == note);
            if is_noted && images.names.iter().all(|name| there.contains(name.as_str())) {
                continue;
            }
            self.expect_room(&worker, images).await?;
            eprintln!("{worker}: loading {} images", images.names.len());
            // From now on notes of other content are wrong.
            self.on(&worker, &["sh", "-c", &format!("rm -f {FOLDER}/loaded-*")]).await?;
            let import = [ctr.as_str(), "--namespace=k8s.io", "images", "import", "--local", "-"];
            self.on_with(&worker, &import, &images.archive)
                .await
                .context("the images could not be loaded")?;
            self.on(&worker, &["touch", &format!("{FOLDER}/{note}")]).await?;
        }
        Ok(())
    }

    /// Fails when a machine has no room for what is to be loaded.
    async fn expect_room(&self, worker: &str, images: &Images) -> Result<()> {
        let df = ["df", "--block-size=1", "--output=avail", "/var/lib/containerd"];
        let free = self.on(worker, &df).await?;
        let free: u64 =
            free.lines().last().unwrap_or_default().trim().parse().context("df printed no number")?;
        let needed = images.bytes_needed;
        ensure!(
            free >= needed,
            "{worker} has {} MiB free on its disk, the images need {} MiB; free some space or use larger disks",
            free >> 20,
            needed >> 20
        );
        Ok(())
    }

    /// Makes the images pullable under their names, for tests that insist on pulling: from a registry on the first
    /// worker, which all workers take for a mirror of the one that tests name.
    async fn serve(&self, images: &Images, registry: &Path) -> Result<()> {
        let (ctr, workers) = (self.ctr().await?, self.workers().await?);
        let (first, address) = workers.first().context("the cluster has no workers")?;
        let program = format!("{FOLDER}/registry");
        let copy = format!("cat >{program}.new && chmod 755 {program}.new && mv {program}.new {program}");
        self.on_with(first, &["sh", "-c", &copy], registry).await?;
        let start = format!(
            "set -e
            printf 'version: 0.1\\nstorage: {{filesystem: {{rootdirectory: {FOLDER}/data}}}}\\nhttp: {{addr: \":{REGISTRY_PORT}\"}}\\n' >{program}.yaml
            systemctl stop {REGISTRY_UNIT} 2>/dev/null || true
            systemd-run --quiet --collect --unit={REGISTRY_UNIT} --property=Restart=always --setenv=OTEL_TRACES_EXPORTER=none {program} serve {program}.yaml"
        );
        self.on(first, &["sh", "-c", &start]).await?;
        let here = format!("127.0.0.1:{REGISTRY_PORT}");
        let mut push = format!(
            "set -e
            for try in $(seq {REGISTRY_TRIES}); do (exec 3<>/dev/tcp/127.0.0.1/{REGISTRY_PORT}) 2>/dev/null && break; sleep 1; done\n"
        );
        for name in &images.names {
            let path =
                name.strip_prefix(MIRRORED).with_context(|| format!("{name} is of another registry"))?;
            push.push_str(&format!(
                "{ctr} --namespace=k8s.io images tag --force {name} {here}{path} >/dev/null
                {ctr} --namespace=k8s.io images push --plain-http {here}{path} >/dev/null
                {ctr} --namespace=k8s.io images rm {here}{path} >/dev/null\n"
            ));
        }
        self.on(first, &["bash", "-c", &push])
            .await
            .context("the images cannot be pushed to the registry")?;
        let hosts = format!(
            "mkdir -p {REGISTRY_HOSTS}/{MIRRORED}
            printf 'server = \"https://{MIRRORED}\"\\n[host.\"http://{address}:{REGISTRY_PORT}\"]\\ncapabilities = [\"pull\", \"resolve\"]\\n' >{REGISTRY_HOSTS}/{MIRRORED}/hosts.toml"
        );
        for (worker, _) in &workers {
            self.on(worker, &["sh", "-c", &hosts]).await?;
        }
        Ok(())
    }

    /// Takes back what [`Cluster::serve`] did, except that loaded images stay.
    pub(crate) async fn unserve(&self) -> Result<()> {
        let stop = format!(
            "systemctl stop {REGISTRY_UNIT} 2>/dev/null
            rm -rf {FOLDER}/data {FOLDER}/registry {FOLDER}/registry.yaml {REGISTRY_HOSTS}/{MIRRORED}"
        );
        let mut result = Ok(());
        for (worker, _) in self.workers().await? {
            result = result.and(self.on(&worker, &["sh", "-c", &stop]).await.map(drop));
        }
        result
    }

    /// Removes what tests left that could not clean up: their taints, their namespaces and what leads into them.
    #[expect(clippy::print_stderr, reason = "it takes a while, and somebody waits")]
    pub(crate) async fn sweep(&self) -> Result<()> {
        let nodes = self.kubectl(&["get", "nodes", "--output", "json"]).await?;
        let nodes: Value = serde_json::from_str(&nodes).context("kubectl printed no JSON")?;
        for (node, taint) in test_taints(&nodes) {
            self.kubectl(&["taint", "nodes", node, &format!("{taint}-")]).await?;
        }
        let list = self.kubectl(&["get", "namespaces", "--selector", NAMESPACES, "--output", "name"]).await?;
        let left: Vec<&str> = list.lines().collect();
        if left.is_empty() {
            return Ok(());
        }
        eprintln!("waiting until {} namespaces of tests are gone", left.len());
        for kind in REFERRERS {
            let list = self.kubectl(&["get", kind, "--output", "json"]).await?;
            let list: Value = serde_json::from_str(&list).context("kubectl printed no JSON")?;
            for item in list["items"].as_array().into_iter().flatten() {
                let into = |name: &&str| left.contains(&format!("namespace/{name}").as_str());
                if let Some(name) = item["metadata"]["name"].as_str()
                    && service_namespaces(item).iter().any(into)
                {
                    self.kubectl(&["delete", kind, name, "--ignore-not-found"]).await?;
                }
            }
        }
        let mut delete = vec!["delete", "--ignore-not-found", "--timeout", SWEEP_MAX];
        delete.extend(left);
        self.kubectl(&delete).await.map(drop)
    }

    /// The release's own client of containerd, on a machine.
    async fn ctr(&self) -> Result<String> {
        let release = self.status().await?["release"].as_str().unwrap_or_default().to_owned();
        Ok(format!("/opt/keelson/releases/{release}/bin/ctr"))
    }

    /// Runs a command on a machine and returns what it printed.
    async fn on(&self, machine: &str, command: &[&str]) -> Result<String> {
        self.on_with(machine, command, Path::new("/dev/null")).await
    }

    /// The same, with a file as its input.
    async fn on_with(&self, machine: &str, command: &[&str], input: &Path) -> Result<String> {
        let mut keelson = self.keelson(&[&["machine", "shell", machine, "--"], command].concat());
        let file = File::open(input).with_context(|| format!("{} cannot be read", input.display()))?;
        output(keelson.stdin(file)).await.with_context(|| format!("on {machine}"))
    }
}

/// The namespaces of the services that a webhook configuration or an API service leads to.
fn service_namespaces(item: &Value) -> Vec<&str> {
    let webhooks = item["webhooks"].as_array().into_iter().flatten();
    let services = webhooks.map(|webhook| &webhook["clientConfig"]["service"]);
    services.chain([&item["spec"]["service"]]).filter_map(|service| service["namespace"].as_str()).collect()
}

/// Taints that tests gave nodes: node and key. The suite's own have `e2e` in their names.
fn test_taints(nodes: &Value) -> Vec<(&str, &str)> {
    let nodes = nodes["items"].as_array().into_iter().flatten();
    nodes
        .flat_map(|node| {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            taints.filter_map(move |taint| Some((name, taint["key"].as_str()?)))
        })
        .filter(|(_, key)| key.contains("e2e"))
        .collect()
}

/// What a command printed. It is killed when nobody waits for it any more.
async fn output(command: &mut Command) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(COMMAND_MAX, command.kill_on_drop(true).output());
    let output = output.await.with_context(|| format!("{program} did not end"))?;
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn taints_of_tests() {
        let taints = json!([{"key": "kubernetes.io/e2e-evict-taint-key"}, {"key": "node-role.kubernetes.io/control-plane"}]);
        let nodes = json!({"items": [{"metadata": {"name": "a"}, "spec": {"taints": taints}}, {"metadata": {"name": "b"}, "spec": {}}]});
        assert_eq!(test_taints(&nodes), [("a", "kubernetes.io/e2e-evict-taint-key")]);
    }

    #[test]
    fn references_into_namespaces() {
        let webhooks = json!({"webhooks": [{"clientConfig": {"service": {"namespace": "a"}}}, {"clientConfig": {"url": "x"}}]});
        assert_eq!(service_namespaces(&webhooks), ["a"]);
        assert_eq!(service_namespaces(&json!({"spec": {"service": {"namespace": "b"}}})), ["b"]);
        assert!(service_namespaces(&json!({"spec": {}})).is_empty());
    }
}
