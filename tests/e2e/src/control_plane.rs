//! An API server with its etcd and nothing else: no kubelet ends pods, no controller counts, so that a test decides on
//! every step itself.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use keelson_kube::{Access, KubeClient};
use keelson_pki::{admin_certificate, new_cluster_material};
use keelson_protocol::config::Issuer;
use keelson_protocol::{ClusterName, WallTime};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{variable, wait_for};

/// Life of the certificates, beyond that of any test.
const LIFE: Duration = Duration::from_secs(3_600);
/// The group that Kubernetes gives every right without a binding; there is nobody here to make bindings.
const MASTERS: &str = "system:masters";

/// A control plane that runs. It ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    // Before the folder: fields are dropped in their order, and the programs write into it.
    api_server: Option<Program>,
    _etcd: Program,
    folder: TempDir,
    kubectl: PathBuf,
    access: Access,
}

/// A program that is killed when this value goes.
#[derive(Debug)]
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ControlPlane {
    /// Starts the release's own etcd and API server and waits until they serve.
    ///
    /// # Errors
    /// When they do not, and without the programs that `cargo xtask test` builds.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("keelson-control-plane-").tempdir()?;
        let [client, peer, api] = free_ports()?;
        let mut etcd = Command::new(variable("ETCD")?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        etcd.arg("--data-dir").arg(folder.path().join("etcd")).args([
            "--unsafe-no-fsync",
            &format!("--listen-client-urls={}", url(client)),
            &format!("--advertise-client-urls={}", url(client)),
            &format!("--listen-peer-urls={}", url(peer)),
            &format!("--initial-advertise-peer-urls={}", url(peer)),
            &format!("--initial-cluster=default={}", url(peer)),
        ]);
        let etcd = run(etcd, folder.path(), "etcd")?;
        let mut access = identity(folder.path())?;
        access.endpoint = format!("https://127.0.0.1:{api}");
        let api_server = run(api_server(folder.path(), client, api)?, folder.path(), "kube-apiserver")?;
        let mut plane = Self {
            api_server: Some(api_server),
            _etcd: etcd,
            folder,
            kubectl: variable("KUBECTL")?.into(),
            access,
        };
        plane.wait_until_it_serves()?;
        Ok(plane)
    }

    /// A connection with every right. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When none can be made.
    pub fn client(&self) -> Result<KubeClient> {
        Ok(KubeClient::new(&self.access)?)
    }

    /// How it is reached.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Kills the API server.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Runs kubectl, which is not ours, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.folder.path().join("kubeconfig")).args(arguments);
        let output = command.stdin(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {} failed: {errors}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object as kubectl prints it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Makes objects.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn make(&self, objects: &[Value]) -> Result<()> {
        let path = self.folder.path().join("objects.json");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        std::fs::write(&path, list.to_string())?;
        self.kubectl(&["create", "--filename", path.to_str().context("the path is no text")?]).map(|_| ())
    }

    /// Sets the status of an object, as its controller or kubelet would.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn set_status(&self, object: &[&str], status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let patch = ["patch", "--subresource=status", "--type=merge", "--patch", &patch];
        self.kubectl(&[&patch, object].concat()).map(|_| ())
    }

    fn wait_until_it_serves(&mut self) -> Result<()> {
        let certificate = self.folder.path().join("certificates/apiserver.crt");
        wait_for("the API server's certificate", || {
            self.access.authority = std::fs::read_to_string(&certificate)?;
            ensure!(self.access.authority.contains("CERTIFICATE"), "it is not written yet");
            Ok(())
        })?;
        let path = |name: &str| self.folder.path().join(name);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": {
                "server": self.access.endpoint, "certificate-authority": certificate,
            }}],
            "users": [{ "name": "u", "user": {
                "client-certificate": path("user.crt"), "client-key": path("user.key"),
            }}],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "c",
        });
        std::fs::write(path("kubeconfig"), config.to_string())?;
        wait_for("the API server", || self.kubectl(&["get", "--raw", "/readyz"]).map(|_| ()))
            .with_context(|| std::fs::read_to_string(path("kube-apiserver.log")).unwrap_or_default())
    }
}

/// Makes the authority that the API server trusts, and a user with every right, as the coordinator makes them. The
/// authority of the API server's own certificate is known only when that runs.
fn identity(folder: &Path) -> Result<Access> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = WallTime(i64::try_from(since.as_millis())?);
    let material = new_cluster_material(&ClusterName::new("plane")?, now)?;
    let (certificate, key) = admin_certificate(&material, "keelson:test", MASTERS, now, LIFE)?;
    let authority = &material.authorities[&Issuer::Kubernetes].certificate;
    let files = [
        ("clients.crt", authority.as_bytes()),
        ("user.crt", certificate.as_bytes()),
        ("user.key", key.expose_secret()),
        ("accounts.key", material.service_account_key.expose_secret()),
        ("accounts.pub", material.service_account_public_key.as_bytes()),
    ];
    for (name, content) in files {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(Access { endpoint: String::new(), authority: String::new(), certificate, key })
}

fn api_server(folder: &Path, etcd_port: u16, port: u16) -> Result<Command> {
    let mut command = Command::new(variable("KUBE_APISERVER")?);
    let file = |name: &str| folder.join(name).display().to_string();
    command.args([
        "--bind-address=127.0.0.1".to_owned(),
        // It makes a certificate for this address, signed by an authority of its own.
        format!("--cert-dir={}", file("certificates")),
        format!("--secure-port={port}"),
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--client-ca-file={}", file("clients.crt")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--service-account-key-file={}", file("accounts.pub")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        // Nobody makes service accounts here, and pods would wait for theirs.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ]);
    Ok(command)
}

fn run(mut command: Command, folder: &Path, name: &str) -> Result<Program> {
    let log = File::create(folder.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Program(command.spawn().with_context(|| format!("{name} cannot be started"))?))
}

/// Ports that nobody listens on. They are all held until all are found, so that they differ.
fn free_ports() -> Result<[u16; 3]> {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 3];
    for (port, socket) in ports.iter_mut().zip(held) {
        *port = socket?.local_addr()?.port();
    }
    Ok(ports)
}
