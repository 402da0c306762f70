//! Where the time of a new cluster goes: for each machine what happened when.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// For each machine, in order of time: seconds since the beginning, and what happened.
pub(crate) type Timeline = BTreeMap<String, Vec<(f64, String)>>;

/// Reads a timeline out of the events of `cluster`; `began_ms` is milliseconds since 1970.
pub(crate) fn of_events(events: &[Value], cluster: &str, began_ms: i64) -> Timeline {
    let mut timeline = Timeline::new();
    for event in events.iter().filter(|event| event["cluster"] == cluster) {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let (Some(what), Some(at)) = (step(text("reason"), text("cause")), millis(text("at"))) else {
            continue;
        };
        let machine = event["machine"].as_str().unwrap_or("cluster").to_owned();
        timeline.entry(machine).or_default().push(((at - began_ms) as f64 / 1_000.0, what));
    }
    for steps in timeline.values_mut() {
        steps.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    }
    timeline
}

/// The step that an event tells of; `None` for events that are no step.
fn step(reason: &str, cause: &str) -> Option<String> {
    let subject = cause.split(':').next().unwrap_or_default().trim_end_matches(".service");
    match reason {
        "MachineCreated" => Some("booting".to_owned()),
        "MachineEnrolled" => Some("enrolled".to_owned()),
        "ConfigAccepted" => Some("config".to_owned()),
        "UnitStarted" => Some(format!("{subject} started")),
        "UnitHealthy" => Some(format!("{subject} healthy")),
        "OperationEnded" => Some("created".to_owned()),
        _ => None,
    }
}

fn millis(at: &str) -> Option<i64> {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(at, format).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// For people.
pub(crate) fn text(timeline: &Timeline) -> String {
    let mut text = String::new();
    for (machine, steps) in timeline {
        let steps: Vec<String> = steps.iter().map(|(at, what)| format!("{at:.1} {what}")).collect();
        let _ = writeln!(text, "  {machine}: {}", steps.join(", "));
    }
    text
}

/// For programs: for each machine a list of `{at, step}`.
pub(crate) fn json(timeline: &Timeline) -> Value {
    let steps = |steps: &Vec<(f64, String)>| -> Value {
        steps.iter().map(|(at, what)| json!({ "at": at, "step": what })).collect()
    };
    timeline.iter().map(|(machine, of)| (machine.clone(), steps(of))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_steps_of_their_machines() {
        let event = |cluster: &str, machine: &str, at: &str, reason: &str, cause: &str| json!({ "cluster": cluster, "machine": machine, "at": at, "reason": reason, "cause": cause });
        let events = [
            event("a", "a-etcd-1", "1970-01-01T00:00:03.500Z", "UnitHealthy", "etcd.service: it works"),
            event("a", "a-etcd-1", "1970-01-01T00:00:02Z", "MachineCreated", ""),
            event("a", "a-etcd-1", "1970-01-01T00:00:02Z", "ClockStepped", ""),
            event("b", "b-etcd-1", "1970-01-01T00:00:02Z", "MachineCreated", ""),
        ];
        let timeline = of_events(&events, "a", 1_000);
        let steps = vec![(1.0, "booting".to_owned()), (2.5, "etcd healthy".to_owned())];
        assert_eq!(timeline, Timeline::from([("a-etcd-1".to_owned(), steps)]));
        assert_eq!(text(&timeline), "  a-etcd-1: 1.0 booting, 2.5 etcd healthy\n");
    }
}
