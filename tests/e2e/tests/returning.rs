//! A machine that was replaced comes back with its disk: it is refused, people are told, and it ends by itself.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use serde_json::Value;

/// No other test takes the power of this one: each time within an hour doubles how long a machine is left alone.
const WORKER: &str = "demo-worker-1";

/// Which of the machines of its name the worker is.
fn incarnation(installation: &Installation) -> Result<u64> {
    let shown = installation.keelson_json(&["machine", "show", WORKER])?;
    shown["incarnation"].as_u64().with_context(|| format!("no incarnation: {shown}"))
}

/// Whether the session of an earlier incarnation was refused, with an alarm.
fn was_refused(installation: &Installation, old: u64) -> Result<()> {
    let events = installation.keelson_json(&["events", "--machine", WORKER])?;
    let items = events["items"].as_array().context("the list of events has no items")?;
    let cause = format!("OldIncarnation: {WORKER} was replaced: this is incarnation {old},");
    let told = |event: &Value| {
        event["reason"] == "SessionRefused"
            && event["severity"] == "alarm"
            && event["cause"].as_str().is_some_and(|text| text.starts_with(&cause))
    };
    ensure!(items.iter().any(told), "{events}");
    Ok(())
}

#[test]
fn a_machine_that_was_replaced_and_comes_back_is_refused_and_switches_itself_off() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let (faults, machine) = (installation.faults()?, WORKER.parse()?);
    let disks: PathBuf = installation.state_dir().join("exchanged");
    let old = incarnation(&installation)?;
    faults.exchange_disk(&machine, &disks)?;
    wait_for("a machine that lost its disk to be replaced", || {
        let new = incarnation(&installation)?;
        ensure!(new > old, "it is incarnation {new}");
        Ok(())
    })?;
    installation.wait_ready("demo")?;

    // The host of the first one comes back; nobody has told the provider.
    faults.exchange_disk(&machine, &disks)?;
    wait_for("the old machine to be refused", || was_refused(&installation, old))?;
    wait_for("the old machine to switch itself off", || {
        ensure!(installation.init_pid(WORKER).is_err(), "it runs");
        Ok(())
    })?;

    faults.exchange_disk(&machine, &disks)?;
    let ledger = std::fs::read(disks.join("var/lib/keelson/agent/ledger"))?;
    let reason = b"the machine starts nothing any more and switches itself off";
    ensure!(ledger.windows(reason.len()).any(|bytes| bytes == reason), "its disk does not say why it is off");
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))?;
    std::fs::remove_dir_all(disks)?;
    Ok(())
}
