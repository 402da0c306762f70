//! What a real machine's agent mends by itself, without a remedy: programs that hang, and files that are not what they
//! shall be.

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use serde_json::Value;

const MASTER: &str = "demo-master-1";
const WORKERS: [&str; 2] = ["demo-worker-1", "demo-worker-2"];

/// Number of a unit's main process.
fn main_process(installation: &Installation, machine: &str, unit: &str) -> Result<String> {
    let pid =
        installation.on_machine(machine, &["systemctl", "show", "--value", "--property=MainPID", unit])?;
    ensure!(pid.trim() != "0", "{unit} has no process");
    Ok(pid)
}

/// Waits until an agent has told that it mended something for this cause.
fn wait_told(installation: &Installation, machine: &str, cause: &str) -> Result<()> {
    wait_for(&format!("{machine} to tell: {cause}"), || {
        let events = installation.keelson_json(&["events", "--machine", machine])?;
        let items = events["items"].as_array().context("the list of events has no items")?;
        let told = |event: &Value| {
            event["reason"] == "Repaired"
                && event["cause"].as_str().is_some_and(|told| told.starts_with(cause))
        };
        ensure!(items.iter().any(told), "{events}");
        Ok(())
    })
}

/// They live, and answer nobody: each is begun anew when it has been silent for 30 s.
#[test]
fn programs_that_hang_are_begun_anew() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let hung = [
        (WORKERS[0], "kubelet.service"),
        (MASTER, "containerd.service"),
        (WORKERS[1], "kube-proxy.service"),
        (MASTER, "kube-apiserver.service"),
    ];
    let mut before = Vec::new();
    for (machine, unit) in hung {
        before.push(main_process(&installation, machine, unit)?);
        let stop = ["systemctl", "kill", "--kill-whom=main", "--signal=STOP", unit];
        installation.on_machine(machine, &stop)?;
    }
    for ((machine, unit), before) in hung.into_iter().zip(before) {
        wait_for(&format!("{unit} of {machine} to run again"), || {
            ensure!(main_process(&installation, machine, unit)? != before, "it is still the one that hangs");
            Ok(())
        })?;
        wait_told(&installation, machine, &format!("{unit}: it has not worked for"))?;
    }
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

/// On some infrastructures who a machine is comes from a disk or a service that may be away.
#[test]
fn an_agent_that_starts_without_its_metadata_finds_its_coordinator() -> Result<()> {
    const AGENT: &str = "keelson-agent.service";
    const METADATA: &str = "/run/keelson-metadata/metadata.json";
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before = main_process(&installation, WORKERS[0], AGENT)?;
    // Told over the link, which is what has to come about.
    let starts = || -> Result<usize> {
        let events = installation.keelson_json(&["events", "--machine", WORKERS[0]])?;
        let items = events["items"].as_array().context("the list of events has no items")?;
        Ok(items.iter().filter(|event| event["reason"] == "AgentStarted").count())
    };
    let told = starts()?;
    installation.on_machine(WORKERS[0], &["mount", "--bind", "/dev/null", METADATA])?;
    installation.on_machine(WORKERS[0], &["systemctl", "restart", "--no-block", AGENT])?;
    wait_for("another agent to speak", || {
        ensure!(main_process(&installation, WORKERS[0], AGENT)? != before, "it is still the one before");
        ensure!(starts()? > told, "it has not spoken");
        Ok(())
    })?;
    ensure!(installation.on_machine(WORKERS[0], &["cat", METADATA])?.is_empty(), "it has its metadata");
    installation.on_machine(WORKERS[0], &["umount", METADATA])?;
    installation.wait_ready("demo")
}

/// Configuration, unit files and the list of CNI plug-ins, changed or gone.
#[test]
fn files_that_were_changed_or_removed_are_written_again() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let (gone, changed) = ("it was missing", "its content was changed");
    for (machine, file, damage, cause) in [
        (WORKERS[0], "/run/systemd/system/kubelet.service", "rm", gone),
        (WORKERS[0], "/var/lib/keelson/cni/net.d/10-pods.conflist", "rm", gone),
        (WORKERS[1], "/var/lib/keelson/cni/net.d/10-pods.conflist", "echo nonsense >", changed),
        (MASTER, "/run/systemd/system/kube-apiserver.service", "echo nonsense >", changed),
    ] {
        let shell = |script: &str| installation.on_machine(machine, &["sh", "-c", script]);
        let before = shell(&format!("cat {file}"))?;
        shell(&format!("{damage} {file}"))?;
        wait_for(&format!("{file} of {machine}"), || {
            ensure!(shell(&format!("cat {file}"))? == before, "it is not as before");
            Ok(())
        })?;
        wait_told(&installation, machine, &format!("{file}: {cause}"))?;
    }
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}
