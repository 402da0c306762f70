//! The cluster as its users see it through `keelson`, and its machines as somebody with a console sees them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::Arguments;
use crate::fault::Victim;

/// Events that are asked for at a time: more than two faults cause between two looks.
const EVENTS_MAX: &str = "300";

/// An event, as far as it is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) machine: String,
    pub(crate) cause: String,
    pub(crate) outcome: String,
}

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The machines, with their addresses.
    pub(crate) machines: Vec<(Victim, String)>,
    /// States of the machines that are not ready.
    pub(crate) unready: BTreeMap<String, String>,
    /// Why it is not ready; `None` when it is, with every machine.
    pub(crate) waits: Option<String>,
}

/// An installation with the cluster that is broken.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub(crate) state_dir: PathBuf,
    pub(crate) cluster: String,
    plan: String,
    pub(crate) coordinator: PathBuf,
    /// What the coordinator is started with.
    pub(crate) coordinator_arguments: Vec<String>,
    keelson: PathBuf,
}

impl Installation {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let mut coordinator_arguments = vec!["--image".to_owned(), arguments.image.clone()];
        if let Some(bytes) = arguments.fault_disk_bytes {
            coordinator_arguments.extend(["--fault-disk-bytes".to_owned(), bytes.to_string()]);
        }
        Self {
            state_dir: arguments.state_dir.clone(),
            cluster: arguments.cluster.clone(),
            plan: arguments.plan.clone(),
            coordinator: arguments.coordinator.clone(),
            coordinator_arguments,
            keelson: arguments.keelson.clone(),
        }
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.keelson);
        command.arg("--context").arg(self.state_dir.join("context.json")).args(words).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// What `keelson` printed.
    fn said(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let (text, errors) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "keelson {} failed: {}", words.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn document(&self, words: &[&str]) -> Result<Value> {
        let text = self.said(&[words, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("keelson {} printed no JSON", words.join(" ")))
    }

    /// Whether the coordinator answers.
    pub(crate) fn answers(&self) -> bool {
        self.run(&["status"]).is_ok_and(|output| output.status.success())
    }

    /// Makes the cluster and waits until it is ready; says whether it was made now.
    pub(crate) fn ensure_cluster(&self) -> Result<bool> {
        let name = self.cluster.as_str();
        if self.run(&["cluster", "show", name])?.status.success() {
            self.said(&["wait", &format!("cluster/{name}"), "--timeout", "3m"])?;
            return Ok(false);
        }
        self.said(&["cluster", "create", name, "--plan", &self.plan, "--wait"])?;
        Ok(true)
    }

    pub(crate) fn delete_cluster(&self) -> Result<()> {
        self.said(&["cluster", "delete", &self.cluster, "--yes", "--wait"]).map(drop)
    }

    /// Access to the cluster for a day.
    pub(crate) fn kubeconfig(&self) -> Result<String> {
        self.said(&["cluster", "kubeconfig", &self.cluster, "--print", "--ttl", "24h"])
    }

    /// The cluster as it is now.
    pub(crate) fn show(&self) -> Result<Shown> {
        let status = self.document(&["cluster", "show", &self.cluster])?["status"].clone();
        shown(&status)
    }

    /// The newest events of the installation, oldest first.
    pub(crate) fn events(&self) -> Result<Vec<Event>> {
        let list = self.document(&["events", "--limit", EVENTS_MAX])?;
        let items = list["items"].as_array().context("the list of events has no items")?;
        items.iter().map(|item| Ok(Event::deserialize(item)?)).collect()
    }

    /// Which machine of its name this one is: the number grows when it is made anew.
    pub(crate) fn incarnation(&self, machine: &str) -> Result<u64> {
        let shown = self.document(&["machine", "show", machine])?;
        shown["incarnation"].as_u64().context("the machine has no incarnation")
    }

    /// The same for all machines.
    pub(crate) fn incarnations(&self, machines: &[Victim]) -> Result<BTreeMap<String, u64>> {
        machines.iter().map(|victim| Ok((victim.id.clone(), self.incarnation(&victim.id)?))).collect()
    }

    /// Runs a program on a machine, past Keelson.
    pub(crate) fn on(&self, machine: &str, command: &[&str]) -> Result<String> {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.state_dir.join("local/runc")).args(["exec", machine]).args(command);
        let output = runc.stdin(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} on {machine} failed: {}", errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn shown(status: &Value) -> Result<Shown> {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let list = status["machines"].as_array().context("the cluster has no machines")?;
    let machines = list
        .iter()
        .map(|machine| {
            let victim = Victim {
                id: text(machine, "id"),
                role: text(machine, "role"),
                zone: text(machine, "zone"),
                runs_pods: false,
            };
            (victim, text(machine, "address"))
        })
        .collect();
    let state = text(status, "state");
    let unready: BTreeMap<String, String> = list
        .iter()
        .filter(|machine| machine["state"] != "ready")
        .map(|machine| (text(machine, "id"), text(machine, "state")))
        .collect();
    let words: Vec<String> = unready.iter().map(|(id, state)| format!("{id} is {state}")).collect();
    let is_ready = state == "ready" && unready.is_empty();
    let waiting = if status["waiting"].as_array().is_some_and(|list| !list.is_empty()) {
        format!("; waits for {}", status["waiting"])
    } else {
        String::new()
    };
    let waits = (!is_ready).then(|| format!("the cluster is {state}, {}{waiting}", words.join(", ")));
    Ok(Shown { machines, unready, waits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_is_ready_with_all_its_machines() {
        let status = |state: &str, machine: &str| {
            let machine =
                json!({"id": "a", "role": "etcd", "zone": "z", "address": "10.0.0.1", "state": machine});
            shown(&json!({"state": state, "waiting": [], "machines": [machine]})).unwrap()
        };
        assert_eq!(status("ready", "ready").waits, None);
        assert_eq!(status("ready", "silent").waits.unwrap(), "the cluster is ready, a is silent");
        assert!(status("degraded", "ready").waits.is_some());
    }
}
