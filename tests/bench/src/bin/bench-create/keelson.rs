//! Our side: a coordinator with nothing else to do, and one cluster after the other.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Arguments;
use crate::pod;
use crate::process::{output, wait_for};
use crate::timeline::{self, Timeline};

/// What one round gave.
pub(crate) struct Round {
    pub(crate) command: f64,
    pub(crate) first_pod: f64,
    pub(crate) timeline: Timeline,
}

/// A coordinator of our own. It is ended, and what it made is removed, when this value goes.
pub(crate) struct Installation {
    state_dir: PathBuf,
    keelson: PathBuf,
    kubectl: PathBuf,
    process: Child,
}

impl Installation {
    pub(crate) fn start(arguments: &Arguments) -> Result<Self> {
        let state_dir = arguments.scratch.join("keelson");
        std::fs::create_dir_all(&state_dir)?;
        let log = File::create(state_dir.join("coordinator.log"))?;
        // Ended with this program, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&arguments.coordinator)
            .args(["serve", "--image", &arguments.image, "--state-dir"])
            .arg(&state_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the coordinator cannot be started")?;
        let (keelson, kubectl) = (arguments.keelson.clone(), arguments.kubectl.clone());
        let installation = Self { state_dir, keelson, kubectl, process };
        wait_for("the coordinator", || output(installation.keelson().arg("status")))?;
        Ok(installation)
    }

    /// Makes a cluster and its first pod, and removes it again, which is not measured.
    pub(crate) fn round(&self, name: &str) -> Result<Round> {
        let kubeconfig = self.state_dir.join(format!("{name}.kubeconfig"));
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began = Instant::now();
        output(self.keelson().args(["cluster", "create", name, "--plan", "small", "--wait"]))?;
        let command = began.elapsed().as_secs_f64();
        let write = ["cluster", "kubeconfig", name, "--set-context", "--file"];
        output(self.keelson().args(write).arg(&kubeconfig))?;
        pod::run_first(|| self.kubectl(&kubeconfig))?;
        let first_pod = began.elapsed().as_secs_f64();
        let timeline = timeline::of_events(&self.events()?, name, i64::try_from(since_1970.as_millis())?);
        output(self.keelson().args(["cluster", "delete", name, "--yes", "--wait"]))?;
        Ok(Round { command, first_pod, timeline })
    }

    /// One JSON document a line.
    fn events(&self) -> Result<Vec<Value>> {
        let text = output(self.keelson().args(["events", "--output", "json"]))?;
        let events: Value = serde_json::from_str(&text)?;
        Ok(events["items"].as_array().cloned().unwrap_or_default())
    }

    fn keelson(&self) -> Command {
        let mut command = Command::new(&self.keelson);
        command.arg("--context").arg(self.state_dir.join("context.json"));
        command
    }

    fn kubectl(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig);
        command
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap_or_default());
        // It may have ended already; what it made is removed all the same.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
        let _ = keelson_providers::local::destroy(&self.state_dir);
    }
}
