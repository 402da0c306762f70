//! The conditions tree of a cluster, and its plan report in words.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use keelson_api::types::{
    ClusterView, ConditionState, DrainThenView, DrainView, MachineState, MachineSummary, NotWellView,
    PauseView, PlanPreview, PoolStatusView, UnitStateView, VerdictView, VerdictWord, WaitingView,
};
use keelson_protocol::WallTime;

use crate::duration::{ago, short};
use crate::paint::Paint;
use crate::table::one_line;

/// How pods leave unless somebody said otherwise; then it is shown.
const DRAIN_DEFAULT: DrainView = DrainView { timeout_s: 600, then: DrainThenView::Force };

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Only what is not fine is expanded.
    NotFine,
    /// Everything is expanded.
    All,
}

/// One of four states for a machine.
pub(crate) fn machine_condition(state: MachineState) -> ConditionState {
    match state {
        MachineState::Ready => ConditionState::Ok,
        MachineState::Silent => ConditionState::Unknown,
        MachineState::Refused | MachineState::Degraded | MachineState::Failed | MachineState::Off => {
            ConditionState::Bad
        }
        MachineState::Planned
        | MachineState::Creating
        | MachineState::Retrying
        | MachineState::Booting
        | MachineState::Connecting
        | MachineState::Applying
        | MachineState::Deleting => ConditionState::Progressing,
    }
}

/// The tree of a cluster.
pub(crate) fn cluster_tree(cluster: &ClusterView, now: WallTime, paint: Paint, detail: Detail) -> String {
    let (spec, status) = (&cluster.spec, &cluster.status);
    let mut text = String::new();
    let endpoint = status.endpoint.as_deref().unwrap_or("no endpoint yet");
    let _ = writeln!(
        text,
        "{}  {}  plan {}  release {}  {endpoint}",
        paint.bold(&format!("cluster {}", status.name)),
        paint.bold(&status.state.to_string()),
        spec.plan,
        status.release,
    );
    if !spec.labels.is_empty() {
        let _ = writeln!(text, "labels {}", labels(&spec.labels));
    }
    if !status.pools.is_empty() {
        let _ = writeln!(text, "pools {}", pools(&status.pools));
    }
    if spec.drain != DRAIN_DEFAULT || detail == Detail::All {
        let _ = writeln!(text, "drains {}", drain(spec.drain));
    }
    if let Some(pause) = &status.repair_paused {
        paused_lines(&mut text, pause, now, paint);
    }
    for condition in &status.conditions {
        let _ = writeln!(
            text,
            "  {} {:<13} {} {}",
            paint.state(condition.status),
            condition.kind,
            one_line(&condition.message),
            lasts(condition.status, now, condition.since.0),
        );
    }
    for exposed in &status.exposed {
        let _ = writeln!(
            text,
            "service {} is reachable at {}",
            one_line(&exposed.name),
            one_line(&exposed.address)
        );
    }
    let _ = writeln!(text, "machines");
    for group in groups(&status.machines, detail) {
        group_lines(&mut text, &group, now, paint, detail);
    }
    if !status.not_well.is_empty() {
        let _ = writeln!(text, "not well");
        for machine in &status.not_well {
            let _ = writeln!(text, "{}", not_well_line(machine, now));
        }
        let _ = writeln!(text, "  what speaks for it, and what is done: keelson why {}", status.name);
    }
    if let Some(operation) = &status.operation {
        let _ = writeln!(text, "operation {operation} works on it: keelson operation watch {operation}");
    }
    trim_lines(&text)
}

/// Labels as a selector has them: `env=prod,tier=web`.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The state of a machine for tables: what is thought of it where that says more than that it is silent or off.
pub(crate) fn state_word(machine: &MachineSummary) -> String {
    let known = |verdict: &&VerdictView| !matches!(verdict.word, VerdictWord::Well | VerdictWord::Suspected);
    match (machine.state, machine.verdict.as_ref().filter(known)) {
        (MachineState::Silent | MachineState::Off, Some(verdict)) => one_line(&verdict.name),
        _ => machine.state.to_string(),
    }
}

/// How pods leave machines that go, in words.
pub(crate) fn drain(drain: DrainView) -> String {
    let time = short(Duration::from_secs(u64::from(drain.timeout_s)));
    match drain.then {
        DrainThenView::Force => {
            format!("disruption budgets are heeded for {time}, then pods are deleted all the same")
        }
        DrainThenView::Wait => format!("disruption budgets are heeded for {time}, and after that as well"),
    }
}

/// Who has paused repair, since when and why: a line that nobody overlooks, and how it ends.
pub(crate) fn paused_lines(text: &mut String, pause: &PauseView, now: WallTime, paint: Paint) {
    let (of, resume) = match &pause.cluster {
        Some(cluster) => (format!("CLUSTER {cluster}"), format!("keelson repair resume --cluster {cluster}")),
        None => ("EVERYTHING".to_owned(), "keelson repair resume".to_owned()),
    };
    let by = pause.by.as_ref().map_or_else(String::new, |by| format!(" by {}", one_line(by)));
    let why = pause.reason.as_ref().map_or_else(String::new, |reason| format!(": {}", one_line(reason)));
    let since = ago(now, pause.since.0);
    let _ = writeln!(text, "{}", paint.alarm(&format!("REPAIR OF {of} IS PAUSED for {since}{by}{why}")));
    let _ = writeln!(text, "    nothing disruptive is done to machines until somebody resumes it: {resume}");
}

/// A machine that is not well, in short.
pub(crate) fn not_well_line(machine: &NotWellView, now: WallTime) -> String {
    let incident = machine.incident.as_ref().map_or_else(String::new, |incident| {
        format!("  (incident {}, for {})", incident.number, ago(now, incident.opened.0))
    });
    format!("  {}: {}{incident}", machine.machine, one_line(&machine.text))
}

/// Sizes of pools: `etcd=1,worker=2`, and what still leaves.
fn pools(pools: &[PoolStatusView]) -> String {
    let text = |pool: &PoolStatusView| match pool.leaving {
        0 => format!("{}={}", pool.name, pool.machines),
        leaving => format!("{}={} ({leaving} leaving)", pool.name, pool.machines),
    };
    pools.iter().map(text).collect::<Vec<_>>().join(",")
}

fn lasts(state: ConditionState, now: WallTime, then: WallTime) -> String {
    match state {
        ConditionState::Ok => String::new(),
        ConditionState::Progressing | ConditionState::Bad | ConditionState::Unknown => {
            format!("for {}", ago(now, then))
        }
    }
}

/// Machines that look the same to a person stand together.
fn groups(machines: &[MachineSummary], detail: Detail) -> Vec<Vec<&MachineSummary>> {
    if detail == Detail::All {
        return machines.iter().map(|machine| vec![machine]).collect();
    }
    let mut groups: BTreeMap<(ConditionState, MachineState, &str, String), Vec<&MachineSummary>> =
        BTreeMap::new();
    for machine in machines {
        let condition = machine_condition(machine.state);
        // What is fine is one group whatever its role; what is not is told apart by role and reason.
        let (role, why) = match condition {
            ConditionState::Ok => ("", String::new()),
            _ => (machine.role.as_str(), format!("{} {}", state_word(machine), reasons(machine).join("; "))),
        };
        groups.entry((condition, machine.state, role, why)).or_default().push(machine);
    }
    groups.into_values().collect()
}

fn reasons(machine: &MachineSummary) -> Vec<String> {
    let bad = machine.health.iter().filter(|unit| unit.state != UnitStateView::Healthy);
    bad.map(|unit| format!("{} {} {}", unit.unit, unit.state, unit.message).trim_end().to_owned()).collect()
}

fn group_lines(text: &mut String, group: &[&MachineSummary], now: WallTime, paint: Paint, detail: Detail) {
    let Some(first) = group.first() else { return };
    let condition = machine_condition(first.state);
    let names: Vec<&str> = group.iter().map(|machine| machine.id.as_str()).collect();
    let role =
        if group.iter().all(|machine| machine.role == first.role) { first.role.as_str() } else { "mixed" };
    let count = if group.len() > 1 { format!("{} machines  ", group.len()) } else { String::new() };
    let oldest = group.iter().filter_map(|machine| machine.since).min();
    let how_long = oldest.map_or_else(String::new, |then| lasts(condition, now, then.0));
    let _ = writeln!(
        text,
        "  {} {count}{}  {role}  {}  {how_long}",
        paint.state(condition),
        names.join(" "),
        state_word(first)
    );
    if let Some(message) = first.agent.message.as_ref().filter(|_| !first.agent.connected) {
        let _ = writeln!(text, "      agent away: {}", one_line(message));
    }
    for unit in &first.health {
        let fine = unit.state == UnitStateView::Healthy;
        if fine && detail == Detail::NotFine {
            continue;
        }
        let message = one_line(&unit.message);
        let restarts = match unit.restarts {
            0 => String::new(),
            1 => "; 1 restart".to_owned(),
            restarts => format!("; {restarts} restarts"),
        };
        let lasts = format!("for {}", ago(now, unit.since.0));
        let line = format!("      {:<31} {:<10} {lasts}  {message}{restarts}", unit.unit, unit.state);
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// The plan report in words.
pub(crate) fn explain(cluster: &ClusterView, now: WallTime, paint: Paint) -> String {
    let status = &cluster.status;
    let mut text = String::new();
    let generation = cluster.meta.generation;
    let title = format!("cluster {} is {}", status.name, status.state);
    let _ = writeln!(text, "{}, generation {generation} of its blueprint", paint.bold(&title));
    if status.waiting.is_empty() {
        let _ = writeln!(text, "It waits for nothing: everything is as its blueprint says.");
        return text;
    }
    let things = if status.waiting.len() == 1 { "one thing" } else { "these things" };
    let _ = writeln!(text, "It waits for {things}:");
    for wait in &status.waiting {
        waiting_lines(&mut text, wait, now);
    }
    if status.waiting.iter().any(|wait| wait.needs_person) {
        let _ = writeln!(text, "It does not go on by itself: a person must act.");
    } else {
        let _ = writeln!(text, "It goes on by itself when that has come.");
    }
    text
}

/// One wait in words.
pub(crate) fn waiting_lines(text: &mut String, wait: &WaitingView, now: WallTime) {
    let who = wait.machine.as_deref().unwrap_or("the cluster");
    let person = if wait.needs_person { "  (needs a person)" } else { "" };
    let _ = writeln!(text, "  {who}: {}, for {}{person}", one_line(&wait.text), ago(now, wait.since.0));
    let _ = writeln!(text, "      ends when {}   more: keelson explain {}", wait.ends_when, wait.code);
}

/// A preview: one line an object, worst effect first.
pub(crate) fn preview(preview: &PlanPreview, now: WallTime) -> String {
    let generation =
        |generation: Option<u64>| generation.map_or_else(|| "none".to_owned(), |g| g.to_string());
    let mut text = format!(
        "cluster {}  generation {} -> {}\n",
        preview.cluster,
        generation(preview.from_generation),
        generation(preview.to_generation)
    );
    if preview.changes.is_empty() {
        text.push_str("  nothing changes\n");
    }
    for change in &preview.changes {
        let sign = change.effect.sign();
        let _ = writeln!(text, "  {sign:<3} {:<24} {}", change.object, one_line(&change.detail));
    }
    for wait in &preview.waiting {
        waiting_lines(&mut text, wait, now);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut order = Vec::new();
    for change in &preview.changes {
        let word = match change.effect.sign() {
            "+" => "to create",
            "~" => "to update",
            "-/+" => "to replace",
            _ => "to delete",
        };
        if !counts.contains_key(word) {
            order.push(word);
        }
        *counts.entry(word).or_default() += 1;
    }
    let parts: Vec<String> = order.iter().map(|word| format!("{} {word}", counts[word])).collect();
    if !parts.is_empty() {
        let _ = writeln!(text, "{}; nothing was done", parts.join(", "));
    }
    text
}

fn trim_lines(text: &str) -> String {
    text.lines().map(str::trim_end).fold(String::new(), |all, line| all + line + "\n")
}
