//! The cluster under test, reached as any user reaches it: through `keelson`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::Arguments;

/// Where a machine keeps notes of the archives that were loaded, by their names, which follow their content.
const LOADED: &str = "/var/lib/keelson-conformance";
/// An image takes up to this many times its archive: the content, its unpacked files, and room for the tests.
const UNPACKED_FACTOR: u64 = 3;

/// An image that tests ask for.
#[derive(Debug, Deserialize)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

/// A cluster.
pub(crate) struct Cluster {
    name: String,
    keelson: PathBuf,
    context: PathBuf,
    kubeconfig: tempfile::TempDir,
}

impl Cluster {
    /// Gets access to the cluster.
    pub(crate) fn open(arguments: &Arguments) -> Result<Self> {
        let cluster = Self {
            name: arguments.cluster.clone(),
            keelson: arguments.keelson.clone(),
            context: arguments.context.clone(),
            kubeconfig: tempfile::tempdir()?,
        };
        let file = cluster.kubeconfig();
        let mut command = cluster.keelson(&["cluster", "kubeconfig", &cluster.name, "--set-context"]);
        output(command.args(["--ttl", "24h", "--file"]).arg(file))?;
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

    fn status(&self) -> Result<Value> {
        let text = output(&mut self.keelson(&["cluster", "show", &self.name, "--output", "json"]))?;
        let document: Value = serde_json::from_str(&text).context("keelson printed no JSON")?;
        Ok(document["status"].clone())
    }

    /// Fails when the cluster is not ready, with what it waits for.
    pub(crate) fn expect_ready(&self) -> Result<()> {
        let state = self.status()?["state"].as_str().unwrap_or_default().to_owned();
        let name = &self.name;
        ensure!(state == "ready", "cluster {name} is {state}; see: keelson cluster show {name} --explain");
        Ok(())
    }

    /// Machines that are not ready, in words; `None` when all are.
    pub(crate) fn unready_machines(&self) -> Result<Option<String>> {
        let status = self.status()?;
        let machines = status["machines"].as_array().cloned().unwrap_or_default();
        let text = |machine: &Value, field: &str| machine[field].as_str().unwrap_or_default().to_owned();
        let unready: Vec<String> = machines
            .iter()
            .filter(|machine| machine["state"] != "ready")
            .map(|machine| format!("{} became {}", text(machine, "id"), text(machine, "state")))
            .collect();
        Ok((!unready.is_empty()).then(|| unready.join(", ")))
    }

    fn workers(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let machines = status["machines"].as_array().context("the cluster has no machines")?;
        let is_worker =
            |machine: &&Value| machine["role"].as_str().is_some_and(|role| role.contains("worker"));
        let ids = machines.iter().filter(is_worker).filter_map(|machine| machine["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// Loads images into every worker that does not have them yet.
    #[expect(clippy::print_stderr, reason = "gigabytes take a minute, and somebody waits")]
    pub(crate) fn load_images(&self, images: &[Image]) -> Result<()> {
        for worker in self.workers()? {
            self.on(&worker, &["mkdir", "-p", LOADED])?;
            let noted = self.on(&worker, &["ls", LOADED])?;
            let ctr = self.ctr()?;
            let there = self.on(&worker, &[&ctr, "--namespace=k8s.io", "images", "ls", "--quiet"])?;
            // A note says which content was loaded; kubelet may have collected it since.
            let has = |text: &str, line: &str| text.lines().any(|known| known == line);
            let is_loaded = |image: &&Image| {
                has(&there, &image.name) && stem(&image.archive).is_some_and(|stem| has(&noted, stem))
            };
            let missing: Vec<&Image> = images.iter().filter(|image| !is_loaded(image)).collect();
            self.expect_room(&worker, &missing)?;
            for image in &missing {
                eprintln!("{worker}: loading {}", image.name);
                self.load(&worker, image)?;
            }
        }
        Ok(())
    }

    /// Fails when a machine has no room for what is to be loaded.
    fn expect_room(&self, worker: &str, images: &[&Image]) -> Result<()> {
        let mut needed = 0;
        for image in images {
            needed += UNPACKED_FACTOR * std::fs::metadata(&image.archive)?.len();
        }
        let free = self.on(worker, &["df", "--block-size=1", "--output=avail", "/var/lib/containerd"])?;
        let free: u64 =
            free.lines().last().unwrap_or_default().trim().parse().context("df printed no number")?;
        ensure!(
            free >= needed,
            "{worker} has {} MiB free on its disk, the images need {} MiB; free some space or use larger disks",
            free >> 20,
            needed >> 20
        );
        Ok(())
    }

    fn load(&self, worker: &str, image: &Image) -> Result<()> {
        let ctr = self.ctr()?;
        let import = [ctr.as_str(), "--namespace=k8s.io", "images", "import", "--local", "-"];
        let mut command = self.keelson(&[&["machine", "shell", worker, "--"], &import[..]].concat());
        command.stdin(File::open(&image.archive)?);
        output(&mut command).with_context(|| format!("{} could not be loaded", image.name))?;
        let note = format!("{LOADED}/{}", stem(&image.archive).unwrap_or_default());
        self.on(worker, &["touch", &note]).map(drop)
    }

    /// The release's own client of containerd, on a machine.
    fn ctr(&self) -> Result<String> {
        let release = self.status()?["release"].as_str().unwrap_or_default().to_owned();
        Ok(format!("/opt/keelson/releases/{release}/bin/ctr"))
    }

    /// Runs a command on a machine and returns what it printed.
    fn on(&self, machine: &str, command: &[&str]) -> Result<String> {
        output(&mut self.keelson(&[&["machine", "shell", machine, "--"], command].concat()))
    }
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
