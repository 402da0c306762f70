//! The installation that end-to-end tests run against, and ways to use it, break it and wait for it.
//!
//! `cargo xtask test` makes the installation and says where it is through `KEELSON_E2E_*`; a test without one fails and
//! says so. Tests share the `demo` cluster and run one after the other; each leaves it ready.

mod control_plane;
mod lone;

use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_providers::local::faults::FaultBench;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use control_plane::ControlPlane;
pub use lone::{Lone, Running};

/// How long anything may take to come back.
const BACK_MAX: Duration = Duration::from_secs(180);
/// How often something is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(200);
/// How long one HTTP answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Largest HTTP answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Where `cargo xtask test` has put something.
fn variable(name: &str) -> Result<String> {
    let name = format!("KEELSON_E2E_{name}");
    env::var(&name).with_context(|| format!("{name} is not set: run these tests with `cargo xtask test`"))
}

/// An installation with a ready cluster `demo`.
#[derive(Debug)]
pub struct Installation {
    state_dir: PathBuf,
    coordinator: PathBuf,
    keelson: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    image: String,
    web: SocketAddr,
}

impl Installation {
    /// The installation that `cargo xtask test` made.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self> {
        Ok(Self {
            state_dir: variable("STATE_DIR")?.into(),
            coordinator: variable("COORDINATOR")?.into(),
            keelson: variable("KEELSON")?.into(),
            kubectl: variable("KUBECTL")?.into(),
            kubeconfig: variable("KUBECONFIG")?.into(),
            image: variable("IMAGE")?,
            web: variable("WEB")?.parse()?,
        })
    }

    /// The command that runs `keelson` against this installation, its output kept for the caller.
    #[must_use]
    pub fn keelson_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.keelson);
        command.arg("--context").arg(self.state_dir.join("context.json")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `keelson`, whatever its exit code is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keelson(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.keelson_command(arguments).output()?)
    }

    /// Runs `keelson ... --output json` and returns its document.
    ///
    /// # Errors
    /// When it fails or prints anything else.
    pub fn keelson_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.keelson(&[arguments, &["--output", "json"]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "keelson {} failed: {text}", arguments.join(" "));
        serde_json::from_str(&text)
            .with_context(|| format!("keelson {} printed no JSON", arguments.join(" ")))
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        let output = command.stdin(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {} failed: {errors}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program on a machine, past Keelson, as somebody with a console would.
    ///
    /// # Errors
    /// When it fails.
    pub fn on_machine(&self, machine: &str, command: &[&str]) -> Result<String> {
        self.runc(&[&["exec", machine], command].concat())
    }

    /// Process id of a machine's init, as this host counts.
    ///
    /// # Errors
    /// When the machine does not run.
    pub fn init_pid(&self, machine: &str) -> Result<i64> {
        let state: Value = serde_json::from_str(&self.runc(&["state", machine])?)?;
        state["pid"].as_i64().filter(|pid| *pid > 0).with_context(|| format!("{machine} does not run"))
    }

    fn runc(&self, arguments: &[&str]) -> Result<String> {
        let root = self.state_dir.join("local/runc");
        let output = Command::new("runc").arg("--root").arg(root).args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "runc {arguments:?} failed: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where the installation keeps what it has.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The fault bench of this installation.
    ///
    /// # Errors
    /// When there is no installation.
    pub fn faults(&self) -> Result<FaultBench> {
        Ok(FaultBench::open(&self.state_dir)?)
    }

    /// State of a machine in one word, as `keelson machine show` says it.
    ///
    /// # Errors
    /// When it cannot be shown.
    pub fn machine_state(&self, machine: &str) -> Result<String> {
        let shown = self.keelson_json(&["machine", "show", machine])?;
        Ok(shown["state"].as_str().context("the machine has no state")?.to_owned())
    }

    /// Takes a machine's power away, past Keelson: nobody asked for it, nobody is told.
    ///
    /// # Errors
    /// When the machine does not run.
    pub fn cut_power(&self, machine: &str) -> Result<()> {
        Ok(self.faults()?.kill(&machine.parse()?)?)
    }

    /// Kills the main process of a unit with signal 9.
    ///
    /// # Errors
    /// When the unit does not run.
    pub fn kill_unit(&self, machine: &str, unit: &str) -> Result<()> {
        self.on_machine(machine, &["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit])
            .map(|_| ())
    }

    /// One answer of the application.
    ///
    /// # Errors
    /// When it does not answer with status 200.
    pub fn ask_web(&self) -> Result<Value> {
        let mut stream = TcpStream::connect_timeout(&self.web, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(serde_json::from_str(body.trim())?)
    }

    /// The cluster's document.
    ///
    /// # Errors
    /// When it cannot be shown.
    pub fn show(&self, cluster: &str) -> Result<Value> {
        self.keelson_json(&["cluster", "show", cluster])
    }

    /// Waits until a cluster is ready and every node of it is Ready for Kubernetes.
    ///
    /// # Errors
    /// When that takes too long; says what it waits for.
    pub fn wait_ready(&self, cluster: &str) -> Result<()> {
        wait_for(&format!("cluster {cluster} to be ready"), || {
            let status = self.show(cluster)?["status"].clone();
            ensure!(status["state"] == "ready", "{} waits for {}", status["state"], status["waiting"]);
            Ok(())
        })
    }

    /// Process id of the coordinator.
    ///
    /// # Errors
    /// When there is none.
    pub fn coordinator_pid(&self) -> Result<Pid> {
        let text = std::fs::read_to_string(self.state_dir.join("coordinator.pid"))?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }

    /// Kills the coordinator with signal 9 and waits until it is gone.
    ///
    /// # Errors
    /// When it did not run.
    pub fn kill_coordinator(&self) -> Result<()> {
        let pid = self.coordinator_pid()?;
        kill(pid, Signal::SIGKILL)?;
        wait_for("the coordinator to be gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let gone =
                stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z'));
            ensure!(gone, "it still runs");
            Ok(())
        })
    }

    /// The command that runs a coordinator on this installation's state.
    #[must_use]
    pub fn coordinator_command(&self) -> Command {
        let mut command = Command::new(&self.coordinator);
        command.arg("serve").arg("--state-dir").arg(&self.state_dir).args(["--image", &self.image]);
        command.stdin(Stdio::null());
        command
    }

    /// Starts the coordinator and waits until its API answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_coordinator(&self) -> Result<Child> {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.state_dir.join("coordinator.log"))?;
        let child = self.coordinator_command().stdout(log.try_clone()?).stderr(log).spawn()?;
        std::fs::write(self.state_dir.join("coordinator.pid"), child.id().to_string())?;
        wait_for("the coordinator to answer", || {
            ensure!(self.keelson(&["status"])?.status.success(), "it does not answer yet");
            Ok(())
        })?;
        Ok(child)
    }

    /// All text that the installation has written for people: logs of the coordinator, and events.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn written(&self) -> Result<String> {
        let log = std::fs::read_to_string(self.state_dir.join("coordinator.log"))?;
        let events = self.keelson(&["events", "--output", "json"])?;
        Ok(log + &String::from_utf8_lossy(&events.stdout))
    }

    /// Secrets of the installation that nothing may show.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn secrets(&self) -> Result<Vec<String>> {
        let admin = std::fs::read_to_string(self.state_dir.join("keys/admin.token"))?;
        let mut secrets = vec![admin.trim().to_owned()];
        for machine in ["demo-etcd-1", "demo-master-1", "demo-worker-1"] {
            let metadata = self.on_machine(machine, &["cat", "/run/keelson-metadata/metadata.json"])?;
            let metadata: Value = serde_json::from_str(&metadata)?;
            secrets.push(metadata["token"].as_str().context("no token")?.to_owned());
        }
        Ok(secrets)
    }
}

/// Looks until `look` succeeds.
///
/// # Errors
/// The last error of `look`, when it takes too long.
pub fn wait_for(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + BACK_MAX;
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("waited {} s for {what}: {error:#}", BACK_MAX.as_secs());
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
