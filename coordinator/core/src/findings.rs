//! What a fault was found by, and who mends it, in words for whoever reads the timeline.

use keelson_model::Verdict;
use keelson_protocol::health::{NodeState, UnitHealth, UnitState};

use crate::state::Machine;

/// What a fault was found by: what an agent has given up, or the evidence.
pub(crate) fn found(machine: &Machine) -> String {
    let given_up = |unit: &UnitHealth| match &unit.state {
        UnitState::GivenUp { why } => Some(format!("{}: {why}", unit.name)),
        _ => None,
    };
    let units = machine.health.iter().flat_map(|health| &health.units);
    let units: Vec<String> = units.filter_map(given_up).collect();
    if machine.verdict == Verdict::GivenUp && !units.is_empty() {
        return units.join("; ");
    }
    machine.evidence.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// What is wrong with a machine that is not well and is not given up, and who mends that.
pub(crate) fn ails(machine: &Machine) -> (String, String) {
    let units = machine.health.iter().flat_map(|health| &health.units);
    let unwell: Vec<&UnitHealth> = units.filter(|unit| unit.state != UnitState::Healthy).collect();
    let degraded = machine.health.as_ref().is_some_and(|health| health.state == NodeState::Degraded);
    match unwell.first() {
        // All that it runs is well, and its agent is not.
        None if degraded => (
            "its agent cannot note what it does: its disk is full, read-only, or hangs".to_owned(),
            "a person must look at its disk".to_owned(),
        ),
        Some(first) if unwell.iter().all(|unit| is_check(unit)) => {
            let what = match &first.state {
                UnitState::Unhealthy { why } => format!("fails: {why}"),
                UnitState::Waiting { on } => format!("waits for {on}"),
                _ => "fails: it does not answer".to_owned(),
            };
            let outcome = "its programs work, and nothing is done here: the cause lies elsewhere, or a person must look at it";
            (format!("{} {what}", first.name), outcome.to_owned())
        }
        _ => ("its agent has been mending it for a while".to_owned(), Verdict::Repairing.to_string()),
    }
}

/// Whether it is a question that is asked, and no program: those have the names of their units in systemd.
fn is_check(unit: &UnitHealth) -> bool {
    !unit.name.ends_with(".service")
}
