//! State of programs that was damaged, on a real machine: the agent makes room for new state, and all work comes back.

use anyhow::{Result, ensure};
use keelson_e2e::{Installation, wait_for};

const MACHINE: &str = "demo-worker-2";

fn shell(installation: &Installation, script: &str) -> Result<String> {
    installation.on_machine(MACHINE, &["sh", "-c", script])
}

/// Breaks something of a unit, kills its program so that it reads what it finds, and waits until `mended` and until the
/// cluster works again; the agent must have told of it under the name of its remedy.
fn break_and_recover(unit: &str, script: &str, mended: &str, remedy: &str) -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    shell(&installation, script)?;
    installation.kill_unit(MACHINE, unit)?;
    wait_for(&format!("remedy {remedy}"), || shell(&installation, mended).map(|_| ()))?;
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))?;
    wait_for("the repair to be told", || {
        let events = installation.keelson_json(&["events", "--machine", MACHINE])?.to_string();
        ensure!(events.contains("Repaired") && events.contains(remedy), "{events}");
        Ok(())
    })
}

#[test]
fn a_runtime_with_a_damaged_database_gets_an_empty_one_and_its_images_again() -> Result<()> {
    let database = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";
    break_and_recover(
        "containerd.service",
        &format!("head -c 65536 /dev/urandom > {database}"),
        "ls -d /var/lib/containerd.broken-* && systemctl is-active containerd kubelet",
        "containerd-state",
    )
}

#[test]
fn a_kubelet_with_a_damaged_state_file_decides_anew() -> Result<()> {
    let file = "/var/lib/kubelet/cpu_manager_state";
    break_and_recover(
        "kubelet.service",
        &format!("echo damaged > {file}"),
        &format!("! grep -q damaged {file} && systemctl is-active kubelet"),
        "kubelet-files",
    )
}
