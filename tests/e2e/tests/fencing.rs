//! A worker that hears nobody any more ends its containers by itself, and begins them again when somebody answers.

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use keelson_providers::local::faults::{Cut, Side, Ways};

const WORKER: &str = "demo-worker-2";
/// Why repair is paused: the coordinator would switch the machine off long before it fences itself.
const REASON: &str = "drill of a worker that fences itself";

fn incarnation(installation: &Installation) -> Result<u64> {
    let shown = installation.keelson_json(&["machine", "show", WORKER])?;
    shown["incarnation"].as_u64().with_context(|| format!("no incarnation: {shown}"))
}

/// Control groups of pods on the worker in which a process runs.
fn pods(installation: &Installation) -> Result<usize> {
    let script = "find /sys/fs/cgroup -path '*kubepods*' -name cgroup.procs -exec cat {} + | wc -l";
    Ok(installation.on_machine(WORKER, &["sh", "-c", script])?.trim().parse()?)
}

/// Whether an event of the worker's fence was told.
fn told(installation: &Installation, reason: &str) -> Result<()> {
    let events = installation.keelson_json(&["events", "--machine", WORKER])?;
    let items = events["items"].as_array().context("the list of events has no items")?;
    ensure!(items.iter().any(|event| event["reason"] == reason), "no {reason} in {events}");
    Ok(())
}

fn pause(installation: &Installation, words: &[&str]) -> Result<()> {
    let output = installation.keelson(&[&["repair"], words, &["--cluster", "demo"]].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_worker_that_hears_nobody_ends_its_containers_and_begins_them_again() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let faults = installation.faults()?;
    let before = incarnation(&installation)?;
    let cut = Cut { from: Side::Machine(WORKER.parse()?), to: Side::Rest, ways: Ways::Both };
    pause(&installation, &["pause", "--reason", REASON])?;
    ensure!(pods(&installation)? > 0, "{WORKER} runs no pod");
    faults.cut(cut.clone())?;
    let fenced = wait_for("the worker to end its containers", || {
        let kubelet = installation.on_machine(WORKER, &["systemctl", "is-active", "kubelet"]);
        ensure!(kubelet.is_err(), "its kubelet runs");
        let left = pods(&installation)?;
        ensure!(left == 0, "{left} processes of pods run");
        Ok(())
    });
    faults.mend(&cut)?;
    fenced?;
    wait_for("the fence to be told", || told(&installation, "Fenced"))?;
    wait_for("its end to be told", || told(&installation, "FenceLifted"))?;
    pause(&installation, &["resume"])?;
    installation.wait_ready("demo")?;
    wait_for("its pods to run", || {
        ensure!(pods(&installation)? > 0, "{WORKER} runs no pod");
        Ok(())
    })?;
    ensure!(incarnation(&installation)? == before, "the machine was made anew");
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}
