//! `cargo xtask up`: from nothing to a running demo cluster with an application on it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use keelson_images::{BuiltImage, CacheDir, SourceMode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::coordinator::Coordinator;
use crate::demo;
use crate::host;
use crate::image;
use crate::programs::{compile, workspace_root};
use crate::state::StateArgs;

/// The cluster that `up` makes.
pub(crate) const CLUSTER: &str = "demo";

/// Folder of the state directory with the programs that a user needs.
const PROGRAMS: &str = "bin";

/// What an installation was made with, below its state directory; the local provider writes it.
const INSTALL_RECORD: &str = "local/install.json";

/// How long a cluster that is there already may take to be ready.
const READY_MAX: Duration = Duration::from_secs(180);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(500);

/// What to set up.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// How upstream parts are got: auto builds where Go 1.26 is installed, else downloads.
    #[arg(long, default_value = "auto")]
    pub(crate) source: SourceMode,
    /// For fault drills: machines get disks in memory of so many bytes, which can be filled. Only for a new installation;
    /// one that is there keeps what it was made with.
    #[arg(long, value_name = "BYTES")]
    pub(crate) fault_disk_bytes: Option<u64>,
    /// Form of the result on standard output; progress goes to standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

impl UpArgs {
    /// As without any flag, somewhere.
    pub(crate) fn usual(state: StateArgs) -> Self {
        Self { state, source: SourceMode::Auto, fault_disk_bytes: None, output: Output::Text }
    }
}

/// Forms of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One JSON object on the last line.
    Json,
}

/// What `up` leaves: everything that a user needs to go on.
pub(crate) struct Installation {
    pub(crate) state_dir: PathBuf,
    pub(crate) coordinator: PathBuf,
    pub(crate) keelson: PathBuf,
    pub(crate) image: String,
    pub(crate) kubectl: PathBuf,
    /// Programs of a control plane, for tests that run one without machines.
    pub(crate) kube_apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) web: SocketAddr,
    pub(crate) steps: Vec<(&'static str, f64)>,
    /// How `down` is told which installation: empty for the usual one.
    state_flag: String,
}

impl Installation {
    /// What tests need, as environment variables.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("KEELSON_E2E_STATE_DIR", text(&self.state_dir)),
            ("KEELSON_E2E_COORDINATOR", text(&self.coordinator)),
            ("KEELSON_E2E_KEELSON", text(&self.keelson)),
            ("KEELSON_E2E_KUBECTL", text(&self.kubectl)),
            ("KEELSON_E2E_KUBE_APISERVER", text(&self.kube_apiserver)),
            ("KEELSON_E2E_ETCD", text(&self.etcd)),
            ("KEELSON_E2E_KUBECONFIG", text(&self.kubeconfig)),
            ("KEELSON_E2E_IMAGE", self.image.clone()),
            ("KEELSON_E2E_WEB", self.web.to_string()),
        ]
    }
}

/// Runs `cargo xtask up`.
pub(crate) fn run(args: &UpArgs) -> Result<()> {
    let installation = up(args)?;
    match args.output {
        Output::Text => print_text(&installation),
        Output::Json => print_json(&installation),
    }
    Ok(())
}

/// Sets up an installation, or finds what is there.
pub(crate) fn up(args: &UpArgs) -> Result<Installation> {
    let mut steps = Steps::default();
    let Started { state_dir, programs, image, kubectl, keelson, .. } = start(args, &mut steps)?;
    steps.run("cluster", || keelson.create_cluster())?;
    let kubeconfig = state_dir.join(format!("{CLUSTER}.kubeconfig"));
    let status = steps.run("kubeconfig", || keelson.kubeconfig(&kubeconfig))?;
    steps.run("application", || demo::apply(&kubectl, &kubeconfig))?;
    let web = exposed(&status, "web")?;
    let (frontend, backend) = steps.run("check over HTTP", || demo::check(web))?;
    let tool = |name: &str| {
        image.tools.get(name).cloned().with_context(|| format!("the image has no {name} for this machine"))
    };
    eprintln!("the frontend on {frontend} and the backend on {backend} answer at http://{web}/");
    Ok(Installation {
        endpoint: status["endpoint"].as_str().unwrap_or_default().to_owned(),
        coordinator: programs.coordinator,
        keelson: keelson.program,
        image: image.digest.to_string(),
        kube_apiserver: tool("kube-apiserver")?,
        etcd: tool("etcd")?,
        state_dir,
        kubectl,
        kubeconfig,
        web,
        steps: steps.done,
        state_flag: args.state.flag(),
    })
}

/// Makes one folder with the programs that a user needs, for the search path.
fn link_programs(state_dir: &Path, programs: [(&str, &Path); 2]) -> Result<()> {
    let folder = state_dir.join(PROGRAMS);
    std::fs::create_dir_all(&folder)?;
    for (name, program) in programs {
        let link = folder.join(name);
        // It may be there, and lead to an older build.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link)
            .with_context(|| format!("could not make {}", link.display()))?;
    }
    Ok(())
}

/// An installation whose coordinator runs; it may have no cluster yet.
pub(crate) struct Started {
    pub(crate) state_dir: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) image: BuiltImage,
    pub(crate) kubectl: PathBuf,
    pub(crate) keelson: Keelson,
    /// How large the machines' disks in memory are, when they have such.
    pub(crate) fault_disk_bytes: Option<u64>,
}

/// Builds everything and starts the coordinator, or finds what is there.
pub(crate) fn start(args: &UpArgs, steps: &mut Steps) -> Result<Started> {
    let state_dir = args.state.directory()?;
    // Asked before anything is changed: a coordinator that is stopped for others would not start again.
    let fault_disk_bytes = fault_disk_bytes(&state_dir, args.fault_disk_bytes)?;
    steps.run("prepare this machine", || host::prepare(&state_dir))?;
    let programs = steps.run("build Keelson", build_programs)?;
    let build = image::BuildArgs::newest(args.source);
    let image = steps
        .run("node image", || image::build(&CacheDir::from_environment()?, &build, &mut image::Lines))?;
    let kubectl = image.tools.get("kubectl").context("the image has no kubectl for this machine")?.clone();
    let keelson = Keelson { program: programs.keelson.clone(), context: state_dir.join("context.json") };
    let coordinator = Coordinator::of(&state_dir);
    steps.run("coordinator", || {
        let mut arguments = vec!["--image".to_owned(), image.digest.to_string()];
        if let Some(bytes) = fault_disk_bytes {
            arguments.extend(["--fault-disk-bytes".to_owned(), bytes.to_string()]);
        }
        coordinator.ensure(&programs.coordinator, &arguments, || keelson.answers())
    })?;
    link_programs(&state_dir, [("keelson", &keelson.program), ("kubectl", &kubectl)])?;
    Ok(Started { state_dir, programs, image, kubectl, keelson, fault_disk_bytes })
}

/// What is read of the record that an installation was made with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InstallRecord {
    var_tmpfs_bytes: Option<u64>,
}

/// How large the disks in memory of an installation's machines are, or shall be; `None` when they have others.
///
/// # Errors
/// When it is there already, with other disks than are asked for.
pub(crate) fn fault_disk_bytes(state_dir: &Path, asked: Option<u64>) -> Result<Option<u64>> {
    let path = state_dir.join(INSTALL_RECORD);
    let made = match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
    };
    agreed_disks(made.as_deref(), asked).with_context(|| format!("{} cannot be used so", state_dir.display()))
}

fn agreed_disks(made: Option<&[u8]>, asked: Option<u64>) -> Result<Option<u64>> {
    let Some(made) = made else { return Ok(asked) };
    let made: InstallRecord = serde_json::from_slice(made).context("its record cannot be read")?;
    let (Some(asked), has) = (asked, made.var_tmpfs_bytes) else { return Ok(made.var_tmpfs_bytes) };
    if has == Some(asked) {
        return Ok(has);
    }
    let has = has.map_or_else(|| "the host's disk".to_owned(), |bytes| format!("disks of {bytes} bytes"));
    bail!(
        "it was made with {has}, which stays so: leave --fault-disk-bytes out, or remove it first with \
         `cargo xtask down`"
    )
}

/// Times steps and says when each begins.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, f64)>,
}

impl Steps {
    pub(crate) fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("==> {name}");
        let began = Instant::now();
        let result = step().with_context(|| format!("step \"{name}\" failed"))?;
        self.done.push((name, began.elapsed().as_secs_f64()));
        Ok(result)
    }
}

/// The programs of an installation.
pub(crate) struct Programs {
    pub(crate) coordinator: PathBuf,
    pub(crate) keelson: PathBuf,
}

/// Compiles them.
pub(crate) fn build_programs() -> Result<Programs> {
    let packages = ["keelson-coordinator", "keelson-cli"];
    let mut built = compile(&workspace_root()?, &packages, &mut image::Lines)?;
    let mut take = |name: &str| built.remove(name).with_context(|| format!("cargo built no program {name}"));
    Ok(Programs { coordinator: take("keelson-coordinator")?, keelson: take("keelson")? })
}

/// The command line program, pointed at one coordinator.
pub(crate) struct Keelson {
    pub(crate) program: PathBuf,
    pub(crate) context: PathBuf,
}

impl Keelson {
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--context").arg(&self.context).args(arguments).stdin(Stdio::null());
        command
    }

    fn answers(&self) -> bool {
        let status = self.command(&["status"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        self.context.exists() && status.is_ok_and(|status| status.success())
    }

    fn create_cluster(&self) -> Result<()> {
        if self.show().is_ok() {
            eprintln!("    cluster {CLUSTER} is there already");
            return self.wait_ready();
        }
        let expose = format!("web={}", demo::NODE_PORT);
        let create = ["cluster", "create", CLUSTER, "--plan", "small", "--expose", &expose, "--wait"];
        let status = self.command(&create).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "keelson {} ended with {status}", create.join(" "));
        Ok(())
    }

    /// Waits until the cluster is ready, for as long as a new one would take.
    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let status = self.show()?["status"].clone();
            if status["state"] == "ready" {
                return Ok(());
            }
            let explain =
                format!("cluster {CLUSTER} is {}; see `keelson cluster show {CLUSTER}`", status["state"]);
            ensure!(Instant::now() < deadline && status["state"] != "deleting", "{explain}");
            std::thread::sleep(POLL);
        }
    }

    /// Writes a kubeconfig and returns the cluster's status.
    fn kubeconfig(&self, path: &Path) -> Result<Value> {
        let text = path.to_str().context("the state directory's path is no text")?;
        let write = ["cluster", "kubeconfig", CLUSTER, "--file", text, "--set-context"];
        let output = self.command(&write).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(self.show()?["status"].clone())
    }

    fn show(&self) -> Result<Value> {
        let output = self.command(&["cluster", "show", CLUSTER, "--output", "json"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).context("keelson printed no JSON")
    }
}

fn exposed(status: &Value, name: &str) -> Result<SocketAddr> {
    let Some(list) = status["exposed"].as_array() else {
        bail!("the cluster's status lists no exposed services")
    };
    let service = list.iter().find(|service| service["name"] == name);
    let address = service.and_then(|service| service["address"].as_str());
    let address = address.with_context(|| format!("service {name} is not reachable from outside"))?;
    address.parse().with_context(|| format!("`{address}` is no address"))
}

#[allow(clippy::print_stdout, reason = "the result of the command goes to standard output")]
fn print_text(done: &Installation) {
    let context = done.state_dir.join("context.json");
    println!();
    for (name, seconds) in &done.steps {
        println!("  {name:<22} {seconds:>7.1} s");
    }
    println!("\nCluster {CLUSTER} is ready: {}", done.endpoint);
    println!("The application answers at http://{}/\n", done.web);
    println!("  export KUBECONFIG={}", done.kubeconfig.display());
    println!("  export KEELSON_CONTEXT={}", context.display());
    println!("  export PATH={}:$PATH\n", done.state_dir.join(PROGRAMS).display());
    println!("Three things to try next:");
    println!("  kubectl get pods --all-namespaces --output wide");
    println!("  keelson cluster show {CLUSTER}");
    println!("  keelson cluster create second --plan tiny --wait");
    println!("\nRemove everything again with: cargo xtask down{}", done.state_flag);
}

#[allow(clippy::print_stdout, reason = "the result of the command goes to standard output")]
fn print_json(done: &Installation) {
    let steps: Vec<Value> =
        done.steps.iter().map(|(name, seconds)| json!({ "name": name, "seconds": seconds })).collect();
    println!(
        "{}",
        json!({
            "kubeconfig": done.kubeconfig,
            "kubectl": done.kubectl,
            "keelson": done.keelson,
            "context": done.state_dir.join("context.json"),
            "endpoint": done.endpoint,
            "web": format!("http://{}/", done.web),
            "steps": steps,
        })
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_the_disks_that_it_was_made_with() {
        let limited: &[u8] = br#"{"version":1,"zones":["zone-a"],"varTmpfsBytes":2048}"#;
        let of_the_host: &[u8] = br#"{"version":1,"zones":["zone-a"],"varTmpfsBytes":null}"#;
        let check = |made: Option<&[u8]>, asked, expected: Option<Option<u64>>| {
            assert_eq!(agreed_disks(made, asked).ok(), expected, "{made:?} {asked:?}");
        };
        check(None, None, Some(None));
        check(None, Some(2048), Some(Some(2048)));
        check(Some(limited), None, Some(Some(2048)));
        check(Some(limited), Some(2048), Some(Some(2048)));
        check(Some(limited), Some(4096), None);
        check(Some(of_the_host), None, Some(None));
        check(Some(of_the_host), Some(2048), None);
        check(Some(b"{"), None, None);
    }
}
