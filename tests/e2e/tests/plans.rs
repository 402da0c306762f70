//! A plan of one's own: what it says of a machine is what the machine and its node have.

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use keelson_model::quantity::parse_bytes;
use serde_json::Value;

const CLUSTER: &str = "sized";
const PLAN: &str = "\
apiVersion: keelson/v1
kind: Plan
name: sized
description: One machine with limits
pools:
- name: node
  roles: [etcd, master, worker]
  count: 1
  cpu: 1500m
  memory: 3Gi
  disk: 20Gi
  zones: [zone-b]
  labels: {disk: fast}
  taints:
  - {key: only, value: db, effect: PreferNoSchedule}
";
const CPU_MILLIS: u64 = 1_500;
const MEMORY_BYTES: u64 = 3 << 30;
/// A hundred MiB are kept free, and up to 64 more because of rounding.
const ROOM_BYTES_MIN: u64 = MEMORY_BYTES - (164 << 20);

fn said(installation: &Installation, words: &[&str]) -> Result<String> {
    let output = installation.keelson(words)?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The limits of the machine's own control group: thousandths of a CPU, and bytes.
fn limits(installation: &Installation) -> Result<(u64, u64)> {
    let read = |path: &str| installation.on_machine("sized-node-1", &["cat", path]);
    let numbers = |text: &str| -> Result<Vec<u64>> {
        text.split_whitespace()
            .map(|word| word.parse().with_context(|| format!("`{text}` is no limit")))
            .collect()
    };
    if let Ok(memory) = read("/sys/fs/cgroup/memory.max") {
        let cpu = numbers(&read("/sys/fs/cgroup/cpu.max")?)?;
        return Ok((cpu[0] * 1000 / cpu[1], numbers(&memory)?[0]));
    }
    let memory = numbers(&read("/sys/fs/cgroup/memory/memory.limit_in_bytes")?)?[0];
    let quota = numbers(&read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?)?[0];
    let period = numbers(&read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?)?[0];
    Ok((quota * 1000 / period, memory))
}

fn check(installation: &Installation) -> Result<()> {
    ensure!(limits(installation)? == (CPU_MILLIS, MEMORY_BYTES), "{:?}", limits(installation)?);
    let config = installation.state_dir().join("sized.kubeconfig");
    std::fs::write(&config, said(installation, &["cluster", "kubeconfig", CLUSTER, "--print"])?)?;
    let config = config.to_str().context("the path is no text")?;
    let text =
        installation.kubectl(&["--kubeconfig", config, "get", "node", "sized-node-1", "--output", "json"])?;
    let node: Value = serde_json::from_str(&text)?;
    let labels = &node["metadata"]["labels"];
    ensure!(labels["disk"] == "fast" && labels["topology.kubernetes.io/zone"] == "zone-b", "{labels}");
    let taints = node["spec"]["taints"].as_array().context("the node has no taints")?;
    ensure!(taints.iter().any(|taint| taint["key"] == "only" && taint["value"] == "db"), "{taints:?}");
    let room = &node["status"]["allocatable"];
    let memory = parse_bytes(room["memory"].as_str().unwrap_or_default())?;
    ensure!(room["cpu"] == "1500m" && (ROOM_BYTES_MIN..MEMORY_BYTES).contains(&memory), "{room}");
    Ok(())
}

#[test]
fn machines_and_nodes_have_what_their_plan_says() -> Result<()> {
    let installation = Installation::open()?;
    let file = installation.state_dir().join("sized.yaml");
    std::fs::write(&file, PLAN)?;
    said(&installation, &["plan", "apply", "--file", file.to_str().context("the path is no text")?])?;
    said(&installation, &["cluster", "create", CLUSTER, "--plan", "sized", "--wait"])?;
    let checked = wait_for("the node to have what the plan says", || check(&installation));
    said(&installation, &["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    said(&installation, &["plan", "delete", "sized"])?;
    checked
}
