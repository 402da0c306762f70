//! Metrics in Prometheus' text format (exposition format 0.0.4). Few series: nothing here grows with the fleet.

use std::collections::BTreeMap;
use std::fmt::Write;

use keelson_coordinator_core::{
    AgentRepair, ClusterState, CoordinatorCore, Metrics, Now, RepairOutcome, TIMING_LIMITS_MS, Timing,
};
use keelson_model::{FaultClass, Hold, MachinePhase, RepairAction, Verdict};

/// All metrics as text.
pub(crate) fn render(core: &CoordinatorCore, now: Now) -> String {
    let metrics = core.metrics();
    let mut text = String::new();
    for (name, help, value) in [
        ("heartbeats_total", "Heartbeats that came.", metrics.heartbeats),
        ("heartbeats_lost_total", "Heartbeats missing in their sequences.", metrics.heartbeats_lost),
        ("link_messages_total", "Messages on control streams.", metrics.messages),
        ("sessions_opened_total", "Sessions that were accepted.", metrics.sessions_opened),
        ("sessions_refused_total", "Sessions that were refused.", metrics.sessions_refused),
        ("enrolments_total", "Enrolments that were accepted.", metrics.enrolled),
        ("enrolments_refused_total", "Enrolments that were refused.", metrics.enrol_refused),
        ("certificates_signed_total", "Certificates signed for clusters.", metrics.certificates_signed),
        ("provider_calls_total", "Calls to the provider.", metrics.provider_calls),
        ("provider_failures_total", "Calls to the provider that failed.", metrics.provider_failures),
        ("machines_silent_total", "Times that a machine fell silent.", metrics.machines_silent),
        ("orphans_swept_total", "Machines without an owner that were removed.", metrics.orphans_swept),
    ] {
        write_series(&mut text, name, "counter", help, &[("", value)]);
    }
    write_healing(&mut text, metrics);
    write_not_well(&mut text, core);
    let count = |test: fn(&keelson_coordinator_core::Machine) -> bool| {
        u64::try_from(core.machines().filter(|machine| test(machine)).count()).unwrap_or(u64::MAX)
    };
    let machines = [
        ("{state=\"connected\"}", count(|machine| machine.session.is_some())),
        ("{state=\"silent\"}", count(|machine| machine.silent)),
        ("{state=\"off\"}", count(|machine| matches!(machine.row.phase, MachinePhase::Off { .. }))),
        ("{state=\"all\"}", count(|_| true)),
    ];
    write_series(&mut text, "machines", "gauge", "Machines by state.", &machines);
    let clusters = |state: ClusterState| {
        let of_state = core.clusters().filter(|cluster| core.cluster_state(cluster, now) == state);
        u64::try_from(of_state.count()).unwrap_or(u64::MAX)
    };
    let clusters = [
        ("{state=\"creating\"}", clusters(ClusterState::Creating)),
        ("{state=\"ready\"}", clusters(ClusterState::Ready)),
        ("{state=\"updating\"}", clusters(ClusterState::Updating)),
        ("{state=\"degraded\"}", clusters(ClusterState::Degraded)),
        ("{state=\"deleting\"}", clusters(ClusterState::Deleting)),
        ("{state=\"failed\"}", clusters(ClusterState::Failed)),
    ];
    write_series(&mut text, "clusters", "gauge", "Clusters by state.", &clusters);
    text
}

/// Faults and repairs.
fn write_healing(text: &mut String, metrics: &Metrics) {
    let help = "Time from the last heartbeat, of programs from the first word of it, to a verdict, by class of fault.";
    write_histograms(text, "detection_seconds", help, &metrics.detections);
    let help = "Time from a verdict to a machine that works again, by class of fault.";
    write_histograms(text, "repair_seconds", help, &metrics.mended);
    let own: Vec<(String, u64)> = AgentRepair::ALL
        .iter()
        .map(|repair| {
            let count = metrics.agent_repairs.get(repair).copied().unwrap_or(0);
            (format!("{{outcome=\"{}\"}}", repair.word()), count)
        })
        .collect();
    let own: Vec<(&str, u64)> = own.iter().map(|(label, count)| (label.as_str(), *count)).collect();
    write_series(text, "agent_repairs_total", "counter", "Repairs that agents made by themselves.", &own);
    let acts: Vec<(String, u64)> = RepairAction::ALL
        .iter()
        .map(|action| (format!("{{action=\"{action}\"}}"), metrics.repairs.get(action).copied().unwrap_or(0)))
        .collect();
    let acts: Vec<(&str, u64)> = acts.iter().map(|(label, count)| (label.as_str(), *count)).collect();
    write_series(text, "repairs_total", "counter", "Repairs that were begun.", &acts);
    let classes = FaultClass::ALL.iter().copied().map(Some).chain([None]);
    let outcomes = classes.flat_map(|class| RepairOutcome::ALL.map(|outcome| (class, outcome)));
    let outcomes: Vec<(String, u64)> = outcomes
        .map(|(class, outcome)| {
            let word = class.map_or_else(|| "none".to_owned(), |class| class.to_string());
            let count = metrics.outcomes.get(&(class, outcome)).copied().unwrap_or(0);
            (format!("{{class=\"{word}\",outcome=\"{}\"}}", outcome.word()), count)
        })
        .collect();
    let outcomes: Vec<(&str, u64)> = outcomes.iter().map(|(label, count)| (label.as_str(), *count)).collect();
    write_series(text, "repair_outcomes_total", "counter", "What came of faults and repairs.", &outcomes);
}

/// Machines by verdict, and repairs that wait. Every verdict and every guard has a series from the beginning, so that a
/// rule of an alarm finds it before it first happens.
fn write_not_well(text: &mut String, core: &CoordinatorCore) {
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    let mut guards: BTreeMap<&str, u64> = BTreeMap::new();
    let mut incidents = 0;
    for machine in core.machines() {
        *verdicts.entry(machine.verdict).or_default() += 1;
        incidents += u64::from(machine.row.incident.is_some());
        if let Some(hold) = CoordinatorCore::hold_of(machine) {
            *guards.entry(hold.guard()).or_default() += 1;
        }
    }
    let verdicts = Verdict::ALL.map(|verdict| {
        let count = verdicts.get(&verdict).copied().unwrap_or(0);
        (format!("{{verdict=\"{}\"}}", verdict.word()), count)
    });
    let verdicts: Vec<(&str, u64)> = verdicts.iter().map(|(label, count)| (label.as_str(), *count)).collect();
    write_series(text, "machines_by_verdict", "gauge", "Machines by what is thought of them.", &verdicts);
    let guards =
        Hold::GUARDS.map(|guard| (format!("{{guard=\"{guard}\"}}"), guards.get(guard).copied().unwrap_or(0)));
    let guards: Vec<(&str, u64)> = guards.iter().map(|(label, count)| (label.as_str(), *count)).collect();
    write_series(text, "repairs_held", "gauge", "Repairs that are due and held, by guard.", &guards);
    write_series(text, "incidents_open", "gauge", "Faults that are not mended yet.", &[("", incidents)]);
    let paused = [
        ("{scope=\"fleet\"}", u64::from(core.repair_paused().is_some())),
        ("{scope=\"cluster\"}", core.clusters().filter(|c| c.row.repair_paused.is_some()).count() as u64),
    ];
    write_series(text, "repair_paused", "gauge", "Where somebody has paused repair.", &paused);
}

fn write_histograms(text: &mut String, name: &str, help: &str, timings: &BTreeMap<FaultClass, Timing>) {
    let seconds = |ms: u64| ms as f64 / 1_000.0;
    let mut lines = format!("# HELP keelson_{name} {help}\n# TYPE keelson_{name} histogram\n");
    for class in FaultClass::ALL {
        let timing = timings.get(&class).copied().unwrap_or_default();
        for (limit, within) in TIMING_LIMITS_MS.into_iter().zip(timing.within) {
            let le = seconds(limit);
            lines += &format!("keelson_{name}_bucket{{class=\"{class}\",le=\"{le}\"}} {within}\n");
        }
        let Timing { count, sum_ms, .. } = timing;
        lines += &format!("keelson_{name}_bucket{{class=\"{class}\",le=\"+Inf\"}} {count}\n");
        lines += &format!("keelson_{name}_sum{{class=\"{class}\"}} {}\n", seconds(sum_ms));
        lines += &format!("keelson_{name}_count{{class=\"{class}\"}} {count}\n");
    }
    text.push_str(&lines);
}

fn write_series(text: &mut String, name: &str, kind: &str, help: &str, values: &[(&str, u64)]) {
    let written =
        writeln!(text, "# HELP keelson_{name} {help}\n# TYPE keelson_{name} {kind}").and_then(|()| {
            values.iter().try_for_each(|(labels, value)| writeln!(text, "keelson_{name}{labels} {value}"))
        });
    written.expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use keelson_coordinator_core::Saved;
    use keelson_protocol::{MonoTime, WallTime};

    use super::*;
    use crate::fleet::tests::settings;

    #[test]
    fn every_series_is_there_from_the_beginning_and_described_once() {
        let now = Now { mono: MonoTime::default(), wall: WallTime(1) };
        let text = render(&CoordinatorCore::restore(settings(), Saved::default(), now), now);
        for series in [
            "keelson_machines_by_verdict{verdict=\"hung\"} 0",
            "keelson_machines_by_verdict{verdict=\"cut off\"} 0",
            "keelson_repairs_held{guard=\"meltdown\"} 0",
            "keelson_incidents_open 0",
            "keelson_repair_paused{scope=\"fleet\"} 0",
            "keelson_detection_seconds_count{class=\"os\"} 0",
            "keelson_detection_seconds_bucket{class=\"os\",le=\"3\"} 0",
            "keelson_repair_seconds_bucket{class=\"machine\",le=\"0.5\"} 0",
            "keelson_agent_repairs_total{outcome=\"withheld\"} 0",
            "keelson_repairs_total{action=\"power-cycle\"} 0",
            "keelson_repair_outcomes_total{class=\"none\",outcome=\"mended\"} 0",
            "keelson_repair_outcomes_total{class=\"os\",outcome=\"not-enough\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series} is not in\n{text}");
        }
        let described: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(described.len(), described.iter().collect::<BTreeSet<_>>().len());
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series.len(), series.iter().collect::<BTreeSet<_>>().len());
    }
}
