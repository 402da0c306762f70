//! Scenarios of one machine, in virtual time.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_agent_core::{Action, Event, LedgerFound};
use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::{EventKind, NodeState, UnitState};
use keelson_protocol::message::{ToAgent, ToCoordinator};
use keelson_protocol::{Generation, MonoTime, WallTime};
use support::*;

fn state_of(world: &World, unit: &str) -> UnitState {
    let units = world.core.status().units;
    units.into_iter().find(|status| status.name == unit).unwrap().state
}

fn position(world: &World, entry: &str) -> usize {
    world
        .log
        .iter()
        .position(|line| line == entry)
        .unwrap_or_else(|| panic!("no {entry} in {:#?}", world.log))
}

#[test]
fn a_fresh_machine_becomes_ready_in_order_and_fast() {
    let (mut world, config) = (world(), worker(1));
    assert_eq!(world.core.state(), NodeState::Idle);
    world.offer(&config);
    let took = world.run_until_ready(60_000);
    world.assert_converged(&config);
    // 150 ms of the oneshot, 300 of the runtime and 900 of the kubelet are the programs' own.
    assert!(took < 1_350 + 1_200, "{took} ms\n{}", world.log.join("\n"));
    let order = [
        "write /var/lib/keelson/kubelet.yaml",
        "reload",
        "start prepare.service",
        "start containerd.service",
    ];
    let positions: Vec<usize> = order.iter().map(|entry| position(&world, entry)).collect();
    assert!(positions.is_sorted(), "{:#?}", world.log);
    assert!(position(&world, "install kubelet") < position(&world, "start kubelet.service"));
    assert_eq!(world.log.iter().filter(|line| *line == "reload").count(), 1, "{:#?}", world.log);
    world.run_for(5_000);
    assert_eq!(world.report().state, NodeState::Ready);
    // The answer takes 3 ms, the question none: half of that is the error of the method.
    assert_eq!(world.report().clock_offset_ms, Some(-499));
    let last = world.heartbeats.last().unwrap();
    assert_eq!(
        (last.state, last.generation, last.report),
        (NodeState::Ready, Generation(1), world.report().sequence)
    );
}

#[test]
fn a_ready_machine_rests() {
    let (mut world, config) = ready();
    world.run_for(3_000);
    let (starts, log) = (world.starts(), world.log.len());
    let ticks = world.ticks;
    world.run_for(600_000);
    assert_eq!((world.starts(), world.log.len()), (starts, log), "{:#?}", world.log);
    world.assert_converged(&config);
    assert!((world.ticks - ticks) / 600 < 12, "{} actions and events a second", (world.ticks - ticks) / 600);
    let reports = world
        .received
        .iter()
        .filter(|message| matches!(message, keelson_protocol::message::ToCoordinator::Health(_)));
    assert!(reports.count() < 30);
}

#[test]
fn a_unit_waits_for_what_it_needs_and_says_so() {
    let (mut world, config) = (world(), worker(1));
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    world.offer(&config);
    world.run_for(30_000);
    let on = "API server at 10.0.0.2:6443: connection refused".to_owned();
    assert_eq!(state_of(&world, "kubelet.service"), UnitState::Waiting { on });
    assert_eq!(world.core.state(), NodeState::Applying);
    world.silent.clear();
    // 200 ms between questions, 900 ms of the kubelet itself, 250 ms between questions for its health.
    assert!(world.run_until_ready(5_000) < 1_700);
}

#[test]
fn a_check_is_told_and_nothing_is_repaired_for_it() {
    let (mut world, mut config) = (world(), worker(1));
    config.units.push(node_check());
    world.silent.insert("node".to_owned());
    world.offer(&config);
    world.run_for(30_000);
    let on = "node: connection refused".to_owned();
    assert_eq!(state_of(&world, "node-ready"), UnitState::Waiting { on });
    assert_eq!(world.core.state(), NodeState::Applying);
    world.silent.clear();
    world.run_until_ready(2_000);
    world.assert_converged(&config);
    let starts = world.starts();
    world.silent.insert("node".to_owned());
    world.run_for(60_000);
    assert_eq!(state_of(&world, "node-ready"), UnitState::Unhealthy { why: "connection refused".to_owned() });
    assert_eq!(world.core.state(), NodeState::Degraded);
    world.stop_by_hand("kubelet.service");
    world.run_for(1_000);
    assert_eq!(state_of(&world, "node-ready"), UnitState::Waiting { on: "kubelet.service".to_owned() });
    world.silent.clear();
    world.run_until_ready(20_000);
    assert_eq!(world.starts(), starts + 1, "only the kubelet was started again");
    world.run_for(5_000);
    let told = world.events_of(EventKind::UnitHealthy);
    assert_eq!(told.iter().filter(|event| event.starts_with("node-ready")).count(), 1, "{told:#?}");
}

/// A ready worker whose node answers, and the config that follows, which has its kubelet start anew.
fn about_to_change() -> (World, NodeConfig) {
    let (mut world, mut config) = (world(), worker(1));
    config.units.push(node_check());
    world.offer(&config);
    world.run_until_ready(60_000);
    config.generation = Generation(2);
    config.files[1] = file("/var/lib/keelson/kubelet.yaml", "a: 2");
    (world, config)
}

#[test]
fn what_waits_for_a_unit_that_starts_anew_for_a_config_is_no_fault() {
    let (mut world, config) = about_to_change();
    let told = world.received.len();
    world.offer(&config);
    world.run_until_ready(60_000);
    world.run_for(2_000);
    let states: Vec<NodeState> = world.received[told..]
        .iter()
        .filter_map(|message| match message {
            ToCoordinator::Health(report) => Some(report.state),
            _ => None,
        })
        .collect();
    assert!(states.contains(&NodeState::Applying), "{states:?}");
    assert!(!states.contains(&NodeState::Degraded), "{states:?}");
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(20_000);
    assert_eq!(world.core.state(), NodeState::Degraded, "the change is over");
}

#[test]
fn a_change_that_does_not_end_hides_no_fault() {
    let (mut world, config) = about_to_change();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.offer(&config);
    world.run_for(290_000);
    assert_eq!(state_of(&world, "node-ready"), UnitState::Waiting { on: "kubelet.service".to_owned() });
    assert_eq!(world.core.state(), NodeState::Applying);
    world.run_for(20_000);
    assert_eq!(world.core.state(), NodeState::Degraded);
}

#[test]
fn no_certificate_no_start() {
    let (mut world, config) = (world(), worker(1));
    world.signing = false;
    world.offer(&config);
    world.run_for(90_000);
    assert_eq!(
        state_of(&world, "kubelet.service"),
        UnitState::Waiting { on: "certificate kubelet".to_owned() }
    );
    world.signing = true;
    world.run_until_ready(40_000);
}

#[test]
fn drift_is_undone_and_told() {
    let (mut world, config) = ready();
    let starts = world.starts();
    world.files.get_mut("/var/lib/keelson/kubelet.yaml").unwrap().0 = b"evil".to_vec();
    world.files.get_mut("/var/lib/keelson/other").unwrap().1 = 0o666;
    world.files.remove("/run/systemd/system/kubelet.service");
    world.routes.clear();
    world.run_for(35_000);
    world.assert_converged(&config);
    assert_eq!(world.starts(), starts, "nothing was restarted for it");
    let mut repaired = world.events_of(EventKind::Repaired);
    repaired.sort();
    assert_eq!(
        repaired,
        [
            "/run/systemd/system/kubelet.service: it was missing -> written again",
            "/var/lib/keelson/kubelet.yaml: its content was changed -> written again",
            "/var/lib/keelson/other: its mode was 666 instead of 600 -> written again",
            "routes: 1 routes were missing or wrong, 0 were too many -> set again",
        ]
    );
}

#[test]
fn a_crash_is_seen_and_told() {
    let (mut world, config) = ready();
    world.crash("containerd.service");
    world.run_for(500);
    world.run_for(1_500);
    world.run_until_ready(5_000);
    world.run_for(2_000);
    world.assert_converged(&config);
    assert_eq!(
        world.events_of(EventKind::Repaired),
        ["containerd.service: it was killed by signal 9 -> started again by systemd"]
    );
    assert_eq!(world.core.status().units[1].restarts, 1);
}

#[test]
fn a_unit_stopped_by_hand_is_started_again() {
    let (mut world, _) = ready();
    world.stop_by_hand("kubelet.service");
    world.run_for(2_500);
    assert_eq!(world.core.state(), NodeState::Degraded);
    world.run_until_ready(10_000);
    world.run_for(2_000);
    assert_eq!(world.events_of(EventKind::Repaired), ["kubelet.service: it was stopped -> started"]);
}

#[test]
fn a_unit_whose_file_was_removed_gets_it_back_first() {
    let (mut world, config) = ready();
    world.run_for(1_000);
    world.files.remove("/run/systemd/system/kubelet.service");
    world.forget_unit("kubelet.service");
    world.run_for(2_000);
    world.run_until_ready(10_000);
    world.run_for(2_000);
    world.assert_converged(&config);
    assert_eq!(world.events_of(EventKind::ActionFailed), [] as [&str; 0]);
}

#[test]
fn a_crash_loop_is_slowed_down_given_up_and_tried_again() {
    let (mut world, _) = ready();
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = Some(100);
    world.crash("kubelet.service");
    world.run_for(590_000);
    assert_eq!(world.core.state(), NodeState::Failed);
    assert!(matches!(state_of(&world, "kubelet.service"), UnitState::GivenUp { .. }));
    let starts = world.units["kubelet.service"].starts;
    // Ten repairs, and what systemd does by itself in the first seconds.
    assert!((10..=18).contains(&starts), "{starts} starts");
    assert_eq!(world.events_of(EventKind::RepairWithheld).len(), 1);
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = None;
    world.run_until_ready(600_000);
}

#[test]
fn a_given_up_unit_is_tried_when_what_it_needs_comes_back() {
    let (mut world, _) = ready();
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = Some(100);
    world.crash("kubelet.service");
    world.run_for(500_000);
    assert_eq!(world.core.state(), NodeState::Failed);
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    world.run_for(10_000);
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = None;
    world.silent.clear();
    assert!(world.run_until_ready(10_000) < 5_000);
}

#[test]
fn a_program_that_hangs_at_each_start_is_given_up_though_it_is_not_restarted_often() {
    let (mut world, _) = ready();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(580_000);
    assert_eq!(world.core.state(), NodeState::Degraded);
    world.run_for(120_000);
    assert_eq!(world.core.state(), NodeState::Failed);
    let UnitState::GivenUp { why } = state_of(&world, "kubelet.service") else {
        panic!("{:?}", state_of(&world, "kubelet.service"));
    };
    assert_eq!(why, "nothing has helped for 10 minutes: it has not worked for 30 s: no answer");
    let told = world.received.len();
    world.run_for(30_000);
    let reports = world.received[told..].iter().filter(|message| matches!(message, ToCoordinator::Health(_)));
    assert!(reports.count() <= 1, "what does not change is not told again");
    world.behaviours.get_mut("kubelet.service").unwrap().hung = false;
    world.run_until_ready(700_000);
}

/// That the machine explains it hides nothing: only the coordinator can help then.
#[test]
fn a_program_that_hangs_is_given_up_although_its_machine_is_in_its_way() {
    let (mut world, _) = ready();
    world.faults.disk_percent = 99;
    world.run_for(60_000);
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(900_000);
    assert_eq!(world.core.state(), NodeState::Failed, "{:?}", state_of(&world, "kubelet.service"));
}

#[test]
fn a_hung_program_is_restarted() {
    let (mut world, _) = ready();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(20_000);
    assert_eq!(state_of(&world, "kubelet.service"), UnitState::Unhealthy { why: "no answer".to_owned() });
    assert_eq!(world.core.state(), NodeState::Degraded);
    world.run_for(25_000);
    assert!(world.log.contains(&"restart kubelet.service".to_owned()), "{:#?}", world.log);
    world.behaviours.get_mut("kubelet.service").unwrap().hung = false;
    world.run_until_ready(10_000);
    world.run_for(2_000);
    assert_eq!(
        world.events_of(EventKind::Repaired),
        ["kubelet.service: it has not worked for 30 s: no answer -> started"]
    );
}

#[test]
fn a_program_that_waits_for_another_machine_is_not_restarted() {
    let (mut world, _) = ready();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    world.run_for(600_000);
    assert!(!world.log.contains(&"restart kubelet.service".to_owned()));
    assert!(matches!(state_of(&world, "kubelet.service"), UnitState::Unhealthy { .. }));
}

#[test]
fn an_agent_restart_touches_nothing() {
    let (mut world, config) = ready();
    world.run_for(5_000);
    for connected in [true, false] {
        if !connected {
            world.disconnect();
        }
        let (starts, events) = (world.starts(), world.events_of(EventKind::UnitHealthy).len());
        world.log.clear();
        world.kill_agent();
        world.run_until_ready(5_000);
        world.run_for(120_000);
        world.assert_converged(&config);
        assert_eq!(world.starts(), starts);
        assert_eq!(
            world.log,
            ["-- the agent is killed", "balance", "answer peers", "reload"].map(str::to_owned)
        );
        assert_eq!(world.events_of(EventKind::UnitHealthy).len(), events, "what is healthy is no news");
    }
}

#[test]
fn an_agent_that_cannot_read_its_ledger_takes_the_same_config_again() {
    let (mut world, config) = ready();
    world.run_for(5_000);
    let starts = world.starts();
    let why = "the ledger has version 1, this agent reads only 2".to_owned();
    // Numbers of events go on further ahead, which this world's coordinator would call a loss.
    world.stores_events = false;
    world.start_agent(LedgerFound::SetAside { why: why.clone() });
    world.run_for(5_000);
    assert_eq!((world.core.state(), world.core.generation()), (NodeState::Idle, None));
    assert_eq!(world.starts(), starts, "nothing is touched before the config comes");
    world.offer(&config);
    world.run_until_ready(30_000);
    world.run_for(5_000);
    world.assert_converged(&config);
    // What it had started is not known any more, so it starts everything once with what it knows.
    assert_eq!(world.starts(), starts + 3);
    let started = world.events_of(EventKind::AgentStarted);
    assert_eq!(started.last().unwrap(), &format!("keelson-agent 0.1.0: {why} -> waits for a config"));
}

#[test]
fn a_reboot_brings_everything_back_without_a_coordinator() {
    let (mut world, config) = ready();
    world.disconnect();
    world.reboot();
    world.run_until_ready(30_000);
    world.assert_converged(&config);
    assert!(
        !world.log[position(&world, "-- reboot")..].contains(&"start prepare.service".to_owned()),
        "done once"
    );
}

/// What was started is remembered as long as it runs, and is not taken away (seed 4176).
#[test]
fn units_that_a_full_disk_has_no_record_of_are_left_running_when_they_are_as_wanted() {
    let (mut world, config) = ready();
    world.disk_full = true;
    world.reboot();
    world.run_for(30_000);
    world.assert_converged(&config);
    let starts = world.starts();
    world.kill_agent();
    world.run_for(30_000);
    world.assert_converged(&config);
    assert_eq!(world.starts(), starts);
}

/// A reboot forgets what is in memory alone, and gives its numbers to other events.
#[test]
fn no_event_is_sent_of_a_ledger_in_memory() {
    let (mut world, _) = ready();
    world.run_for(5_000);
    let stored = world.stored_events.len();
    world.disk_full = true;
    world.stop_by_hand("kubelet.service");
    world.run_for(15_000);
    world.kill_agent();
    world.run_for(60_000);
    assert_eq!(world.stored_events.len(), stored, "{:#?}", &world.stored_events[stored..]);
    assert!(world.core.status().events_waiting > 2);
    world.disk_full = false;
    world.run_for(20_000);
    assert_eq!(world.events_of(EventKind::Repaired), ["kubelet.service: it was stopped -> started"]);
    assert!(!world.stored_numbers().is_empty());
}

#[test]
fn a_new_config_restarts_exactly_what_it_must() {
    let (mut world, config) = ready();
    let mut next = config.clone();
    next.generation = Generation(2);
    next.files[1] = file("/var/lib/keelson/kubelet.yaml", "a: 2");
    next.files.remove(2);
    world.log.clear();
    world.offer(&next);
    world.run_until_ready(10_000);
    world.run_for(5_000);
    world.assert_converged(&next);
    assert_eq!(
        world.log,
        ["write /var/lib/keelson/kubelet.yaml", "remove /var/lib/keelson/other", "restart kubelet.service"]
            .map(str::to_owned)
    );
}

#[test]
fn a_unit_that_left_the_config_is_stopped_and_removed() {
    let (mut world, config) = ready();
    let mut next = config.clone();
    next.generation = Generation(2);
    next.units.remove(0);
    next.certificates.clear();
    next.routes.clear();
    next.balancer = None;
    world.log.clear();
    world.offer(&next);
    world.run_until_ready(10_000);
    world.run_for(5_000);
    world.assert_converged(&next);
    assert!(!world.files.contains_key("/var/lib/keelson/pki/kubelet.key"));
    assert_eq!(
        world.log.iter().filter(|line| line.contains("kubelet.service")).collect::<Vec<_>>(),
        ["stop kubelet.service", "remove /run/systemd/system/kubelet.service"]
    );
}

#[test]
fn old_foreign_and_contradicting_configs_are_refused() {
    let (mut world, config) = ready();
    let mut foreign = worker(9);
    foreign.incarnation = keelson_protocol::Incarnation(2);
    let mut contradicting = config.clone();
    contradicting.files[0] = file("/var/lib/keelson/containerd.toml", "other");
    let mut next = worker(2);
    next.files[2] = file("/var/lib/keelson/other", "y");
    world.offer(&next);
    world.run_until_ready(10_000);
    contradicting.generation = Generation(2);
    for refused in [&config, &config, &foreign, &contradicting, &next] {
        world.offer(refused);
    }
    world.run_for(5_000);
    world.assert_converged(&next);
    assert_eq!(
        world.events_of(EventKind::ConfigRefused),
        [
            "generation 1: it is older than generation 2, which is applied -> the machine keeps what it has",
            "generation 9: it is for demo-worker-1 incarnation 2, this is demo-worker-1 incarnation 1 -> the machine keeps what it has",
            "generation 2: another config of the same generation is applied -> the machine keeps what it has",
        ]
    );
}

#[test]
fn a_oneshot_runs_once_for_each_input() {
    let (mut world, config) = ready();
    world.run_for(10_000);
    world.kill_agent();
    world.run_for(10_000);
    assert_eq!(world.units["prepare.service"].starts, 1);
    let mut next = config;
    next.generation = Generation(2);
    next.units[2].command.push("--more".to_owned());
    world.offer(&next);
    world.run_for(10_000);
    assert_eq!(world.units["prepare.service"].starts, 2);
}

#[test]
fn certificates_are_renewed_in_place_at_two_thirds() {
    let (mut world, config) = (world(), worker(1));
    world.certificate_life = std::time::Duration::from_secs(300);
    world.offer(&config);
    world.run_until_ready(10_000);
    let (installed, starts) =
        (world.log.iter().filter(|line| *line == "install kubelet").count(), world.starts());
    world.run_for(190_000);
    assert_eq!(world.log.iter().filter(|line| *line == "install kubelet").count(), installed);
    world.run_for(20_000);
    assert_eq!(world.log.iter().filter(|line| *line == "install kubelet").count(), installed + 1);
    assert_eq!(world.starts(), starts, "programs read certificates again by themselves");
    assert_eq!(world.core.state(), NodeState::Ready);
}

#[test]
fn the_link_certificate_is_renewed_at_two_thirds() {
    let (mut world, _) = ready();
    world.link_validity.not_after = world.link_validity.not_before.plus(std::time::Duration::from_secs(600));
    world.connect();
    world.run_for(390_000);
    assert!(!world.log.contains(&"install link".to_owned()));
    world.run_for(20_000);
    assert_eq!(world.log.iter().filter(|line| *line == "install link").count(), 1);
}

#[test]
fn events_wait_for_the_coordinator_over_kills_of_the_agent() {
    let (mut world, _) = ready();
    world.run_for(5_000);
    world.disconnect();
    world.stop_by_hand("kubelet.service");
    world.run_for(30_000);
    world.kill_agent();
    world.run_for(5_000);
    let stored = world.stored_events.len();
    world.connect();
    world.run_for(5_000);
    assert!(world.stored_events.len() > stored);
    assert!(!world.stored_numbers().is_empty());
    assert_eq!(world.core.status().events_waiting, 0);
}

#[test]
fn a_full_disk_stops_no_repair_and_loses_no_event() {
    let (mut world, config) = ready();
    world.run_for(5_000);
    let stored = world.stored_events.len();
    world.disk_full = true;
    world.stop_by_hand("kubelet.service");
    world.run_for(60_000);
    let sent = &world.stored_events[stored..];
    assert!(sent.is_empty(), "an event that is not on disk is not sent: {sent:#?}");
    assert!(world.units["kubelet.service"].running.is_some());
    // Nothing else tells of it: all that is running runs.
    assert_eq!(world.core.state(), NodeState::Degraded);
    assert_eq!(world.core.status().why.as_deref(), Some("the ledger cannot be written: no room"));
    world.disk_full = false;
    world.run_for(20_000);
    world.assert_converged(&config);
    assert_eq!(world.events_of(EventKind::ActionFailed), ["ledger: no room -> tried again every 10 s"]);
    assert_eq!(world.events_of(EventKind::Repaired), ["kubelet.service: it was stopped -> started"]);
}

#[test]
fn a_certificate_that_is_old_when_it_comes_makes_no_storm() {
    let (mut world, config) = (world(), worker(1));
    // A CA that dates back by more than the life is long, or a clock that is ahead.
    world.dates_back = std::time::Duration::from_secs(86_400);
    world.certificate_life = std::time::Duration::from_secs(3_600);
    world.link_validity.not_before = keelson_protocol::WallTime(0);
    world.offer(&config);
    world.connect();
    world.run_until_ready(10_000);
    world.log.clear();
    world.run_for(100_000);
    let installs = |name: &str| world.log.iter().filter(|line| **line == format!("install {name}")).count();
    assert!((4..=5).contains(&installs("kubelet")), "{}", installs("kubelet"));
    assert!((4..=5).contains(&installs("link")), "{}", installs("link"));
    assert_eq!(world.core.state(), NodeState::Ready);
}

/// The key is made each time, and that is no success: the wait grows, and the reason is told once.
#[test]
fn a_certificate_that_cannot_be_written_is_tried_less_and_less_often() {
    let (mut world, config) = ready();
    world.run_for(5_000);
    world.certificates.remove("kubelet");
    world.disk_full = true;
    world.touch_files();
    world.received.clear();
    world.run_for(120_000);
    let asked = |message: &ToCoordinator| matches!(message, ToCoordinator::SignCertificate { .. });
    let times = world.received.iter().filter(|message| asked(message)).count();
    assert!((4..=10).contains(&times), "asked {times} times in two minutes");
    world.disk_full = false;
    world.run_for(70_000);
    world.assert_converged(&config);
    let told = world.events_of(EventKind::ActionFailed);
    assert_eq!(told.iter().filter(|event| event.starts_with("certificate kubelet")).count(), 1, "{told:#?}");
}

/// A config that wants a file again comes while the one before has it removed.
#[test]
fn what_is_wanted_again_while_it_is_removed_is_still_owned() {
    let (mut world, config) = ready();
    let paths = ["/var/lib/keelson/conf/one", "/var/lib/keelson/conf/two"];
    let with = |generation: u64, which: &[usize]| {
        let mut next = config.clone();
        next.generation = Generation(generation);
        next.files.extend(which.iter().map(|index| file(paths[*index], "text")));
        next
    };
    world.offer(&with(2, &[0, 1]));
    world.run_until_ready(10_000);
    world.offer(&with(3, &[1]));
    while !world.log.iter().any(|line| line.contains(paths[0]) && line.starts_with("remove ")) {
        world.run_ticks(1);
    }
    let last = with(4, &[0]);
    world.offer(&last);
    world.run_until_ready(10_000);
    world.run_for(40_000);
    world.assert_converged(&last);
    assert!(world.files.contains_key(paths[0]) && !world.files.contains_key(paths[1]), "{:#?}", world.log);
}

#[test]
fn a_file_that_cannot_be_read_is_made_anew() {
    let (mut world, config) = ready();
    world.run_for(5_000);
    let path = "/var/lib/keelson/kubelet.yaml";
    world.faults.unreadable.insert(path.to_owned());
    world.touch_files();
    world.run_for(2_000);
    world.run_until_ready(10_000);
    world.assert_converged(&config);
    assert!(world.faults.unreadable.is_empty());
    let told = world.events_of(EventKind::Repaired);
    assert!(
        told.iter().any(|event| event.contains(path) && event.contains("could not be read")),
        "{told:#?}"
    );
}

#[test]
fn a_unit_that_does_not_stop_is_told_to_only_so_often() {
    let (mut world, mut config) = ready();
    world.faults.unstoppable = Some("kubelet.service".to_owned());
    config.generation = Generation(2);
    config.units.retain(|unit| unit.name != "kubelet.service");
    world.log.clear();
    world.offer(&config);
    world.run_for(30_000);
    let stops = world.log.iter().filter(|line| *line == "stop kubelet.service").count();
    assert!((2..=7).contains(&stops), "{stops} times in half a minute\n{}", world.log.join("\n"));
    world.faults.unstoppable = None;
    world.run_until_ready(20_000);
    world.assert_converged(&config);
}

/// What a disk takes long for waits in line: the end of one write says nothing of what a later one holds.
#[test]
fn the_end_of_an_older_write_acknowledges_nothing_newer() {
    let mut core = world().core;
    let mut handle =
        |ms: u64, event| core.handle(MonoTime(ms), WallTime(1_700_000_000_000 + ms as i64), event);
    let writes = |actions: Vec<Action>| actions.iter().any(|action| matches!(action, Action::Persist(_)));
    let events = |actions: Vec<Action>| -> Vec<u64> {
        let sent = actions.into_iter().filter_map(|action| match action {
            Action::Send(ToCoordinator::Events(events)) => Some(events),
            _ => None,
        });
        sent.flatten().map(|event| event.sequence).collect()
    };
    assert!(writes(handle(3_000, Event::Woke)));
    let foreign =
        keelson_protocol::config::NodeConfig { machine: "somebody-else".parse().unwrap(), ..worker(1) };
    let _ = handle(3_100, Event::Message(Box::new(ToAgent::Config(Box::new(foreign)))));
    assert!(writes(handle(5_000, Event::Woke)));
    let first = events(handle(5_100, Event::Persisted(Ok(()))));
    assert_eq!(first.len(), 1);
    assert_eq!(events(handle(5_200, Event::Persisted(Ok(())))), [first[0] + 1]);
}

/// Somebody restarts it by hand, and it waits for others before it says that it has started.
#[test]
fn a_unit_that_was_restarted_and_does_not_come_up_is_not_called_healthy() {
    let (mut world, config) = ready();
    world.behaviours.get_mut("containerd.service").unwrap().settles_after_ms = Some(u64::MAX / 2);
    world.run_for(90_000);
    assert_ne!(world.core.state(), NodeState::Ready);
    world.behaviours.get_mut("containerd.service").unwrap().settles_after_ms = None;
    world.run_until_ready(10_000);
    world.assert_converged(&config);
}
