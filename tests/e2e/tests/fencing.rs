//! A worker that hears nobody any more ends its containers by itself, and begins them again when somebody answers.

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use keelson_providers::local::faults::{Cut, Side, Ways};
use serde_json::Value;

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

fn events(installation: &Installation) -> Result<Vec<Value>> {
    let events = installation.keelson_json(&["events", "--machine", WORKER])?;
    events["items"].as_array().cloned().context("the list of events has no items")
}

/// Number of the worker's newest event.
fn newest(installation: &Installation) -> Result<u64> {
    Ok(events(installation)?.iter().filter_map(|event| event["id"].as_u64()).max().unwrap_or(0))
}

/// Whether an event of the worker's fence was told after this one.
fn told(installation: &Installation, after: u64, reason: &str) -> Result<()> {
    let events = events(installation)?;
    let is_new = |event: &&Value| event["id"].as_u64().is_some_and(|id| id > after);
    ensure!(events.iter().filter(is_new).any(|event| event["reason"] == reason), "no {reason} in {events:?}");
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
    let seen = newest(&installation)?;
    let begun = faults.cut(cut.clone());
    let fenced = wait_for("the worker to end its containers", || {
        let kubelet = installation.on_machine(WORKER, &["systemctl", "is-active", "kubelet"]);
        ensure!(kubelet.is_err(), "its kubelet runs");
        let left = pods(&installation)?;
        ensure!(left == 0, "{left} processes of pods run");
        Ok(())
    });
    // Whatever came of it, nothing stays behind for the tests after this one.
    let mended = faults.mend(&cut);
    let told = wait_for("the fence to be told, and its end", || {
        told(&installation, seen, "Fenced").and_then(|()| told(&installation, seen, "FenceLifted"))
    });
    pause(&installation, &["resume"])?;
    begun?;
    fenced?;
    mended?;
    told?;
    installation.wait_ready("demo")?;
    wait_for("its pods to run", || {
        ensure!(pods(&installation)? > 0, "{WORKER} runs no pod");
        Ok(())
    })?;
    ensure!(incarnation(&installation)? == before, "the machine was made anew");
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}
