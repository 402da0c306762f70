//! The two-tier application on the demo cluster, and the proof that it answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_images::DEMO_IMAGE;
use serde_json::{Value, json};

/// NodePort of the frontend.
pub(crate) const NODE_PORT: u16 = 30080;
/// How long the application may take until it answers through its Service.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(250);
/// How long one answer may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Applies the application; applying it again changes nothing.
pub(crate) fn apply(kubectl: &Path, kubeconfig: &Path) -> Result<()> {
    let mut command = Command::new(kubectl);
    command.arg("--kubeconfig").arg(kubeconfig).args([
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        "-",
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("kubectl has no input")?;
    input.write_all(manifest().to_string().as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kubectl apply failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Asks the frontend at `address` until it answers with both tiers on different nodes; returns the two nodes.
pub(crate) fn check(address: SocketAddr) -> Result<(String, String)> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        match ask(address) {
            Ok((frontend, backend)) if frontend != backend => return Ok((frontend, backend)),
            Ok((node, _)) if Instant::now() > deadline => {
                bail!("both tiers run on {node}, not on different workers")
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("the application at http://{address}/ does not answer")));
            }
            _ => std::thread::sleep(POLL),
        }
    }
}

fn ask(address: SocketAddr) -> Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_MAX)?;
    stream.set_read_timeout(Some(REQUEST_MAX))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{}: {body}", head.lines().next().unwrap_or_default());
    let body: Value = serde_json::from_str(body.trim()).context("the answer is no JSON")?;
    let node = |value: &Value| value["node"].as_str().map(str::to_owned);
    let frontend = node(&body).context("the answer names no node")?;
    let backend = node(&body["backend"]).context("the answer holds none of the backend")?;
    Ok((frontend, backend))
}

fn manifest() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "demo" } },
            tier("backend"),
            tier("frontend"),
            service("backend", json!({ "selector": { "app": "backend" }, "ports": [{ "port": 8080 }] })),
            service("frontend", json!({
                "type": "NodePort",
                "selector": { "app": "frontend" },
                "ports": [{ "port": 8080, "nodePort": NODE_PORT }],
            })),
        ],
    })
}

fn service(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "demo" },
        "spec": spec,
    })
}

/// One pod of a tier. The tiers keep apart, so that the check proves traffic between workers.
fn tier(name: &str) -> Value {
    let labels = json!({ "app": name, "tier": "demo" });
    let other = if name == "backend" { "frontend" } else { "backend" };
    let from = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": "demo" },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
                        "labelSelector": { "matchLabels": { "app": other } },
                        "topologyKey": "kubernetes.io/hostname",
                    }] } },
                    "containers": [{
                        "name": name,
                        "image": DEMO_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "args": [name],
                        "env": [
                            { "name": "NODE_NAME", "valueFrom": from("spec.nodeName") },
                            { "name": "POD_NAME", "valueFrom": from("metadata.name") },
                            { "name": "BACKEND_URL", "value": "http://backend.demo.svc.cluster.local:8080/" },
                        ],
                        "ports": [{ "containerPort": 8080 }],
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    })
}
