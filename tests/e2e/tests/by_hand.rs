//! Repairs that a person asks for, on real machines.

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};

const WORKER: &str = "demo-worker-2";
const ETCD: &str = "demo-etcd-1";
/// A file on the machine's disk that no config knows of.
const MARK: &str = "/var/lib/keelson-e2e-mark";
/// Exit code of a repair that a guard holds.
const HELD: i32 = 7;

/// What tells one boot from another.
fn boot(installation: &Installation, machine: &str) -> Result<String> {
    installation.on_machine(machine, &["cat", "/proc/sys/kernel/random/boot_id"])
}

fn incarnation(installation: &Installation, machine: &str) -> Result<u64> {
    let shown = installation.keelson_json(&["machine", "show", machine])?;
    shown["incarnation"].as_u64().with_context(|| format!("no incarnation: {shown}"))
}

#[test]
fn a_machine_gets_another_shell_around_its_disk() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before = (boot(&installation, WORKER)?, incarnation(&installation, WORKER)?);
    installation.on_machine(WORKER, &["sh", "-c", &format!("echo kept > {MARK}")])?;
    let words = ["machine", "repair", WORKER, "--action", "rebuild"];
    wait_for("a new coordinator to know who works", || {
        let output = installation.keelson(&[&words[..], &["--dry-run"]].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })?;
    let output = installation.keelson(&[&words[..], &["--yes", "--wait"]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the worker was not made anew around its disk: {said}");
    ensure!(boot(&installation, WORKER)? != before.0, "it is the same boot");
    ensure!(incarnation(&installation, WORKER)? == before.1, "it is another machine");
    let mark = installation.on_machine(WORKER, &["cat", MARK])?;
    ensure!(mark.trim() == "kept", "its disk is another one: {mark}");
    installation.on_machine(WORKER, &["rm", MARK])?;
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))?;
    let events = installation.keelson_json(&["events", "--machine", WORKER])?;
    let items = events["items"].as_array().context("the list of events has no items")?;
    for reason in ["RepairBegun", "MachineFenced", "RepairDone"] {
        ensure!(items.iter().any(|event| event["reason"] == reason), "no {reason}: {events}");
    }
    Ok(())
}

#[test]
fn the_only_copy_of_a_clusters_state_is_not_given_up_by_a_slip() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before = (boot(&installation, ETCD)?, incarnation(&installation, ETCD)?);
    let words = ["machine", "repair", ETCD, "--action", "recreate", "--yes"];
    for over in [&[][..], &["--override"]] {
        let output = installation.keelson(&[&words, over].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(HELD), "{over:?}: {:?}: {said}", output.status);
        ensure!(said.contains("--confirm-loss-of demo"), "{over:?}: no way out is named: {said}");
    }
    let wrong = [&words[..], &["--override", "--confirm-loss-of", "another"]].concat();
    let output = installation.keelson(&wrong)?;
    ensure!(!output.status.success(), "the name of another cluster was taken");
    ensure!((boot(&installation, ETCD)?, incarnation(&installation, ETCD)?) == before, "it was touched");
    installation.wait_ready("demo")
}
