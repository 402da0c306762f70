//! Remedies in virtual time: when they begin, what they do, how often, and what a kill of the agent changes (nothing).

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_protocol::Generation;
use keelson_protocol::health::{EventKind, NodeState, UnitState};
use keelson_protocol::remedy::{RemedyAct, Trigger};
use support::repair::*;
use support::*;

const RUNTIME_ACTS: [&str; 3] = [
    "runtime: ended kubepods",
    "runtime: unmounted /var/lib/containerd",
    "runtime: moved /var/lib/containerd",
];

#[test]
fn broken_state_is_moved_aside_and_everything_on_it_is_made_again() {
    let (mut world, config) = remedied_and_ready();
    world.corrupt("containerd.service", "moved /var/lib/containerd");
    world.run_for(120_000);
    world.run_until_ready(10_000);
    world.assert_converged(&config);
    assert_eq!(world.acts(), RUNTIME_ACTS);
    assert_eq!(world.units["prepare.service"].starts, 2, "images are imported again");
    let up_while_acting = |line: &String| line.starts_with("start ") || line.starts_with("restart ");
    let first = world.log.iter().position(|line| line == RUNTIME_ACTS[0]).unwrap();
    let last = world.log.iter().position(|line| line == RUNTIME_ACTS[2]).unwrap();
    assert!(!world.log[first..last].iter().any(up_while_acting), "{:#?}", world.log);
    world.run_for(10_000);
    let told = world.events_of(EventKind::Repaired);
    let told = told.iter().find(|told| told.starts_with("runtime")).unwrap();
    let begin = "runtime: containerd.service fell 5 times without coming up: it ended with exit code 2 -> it helped after ";
    assert!(told.starts_with(begin), "{told}");
    assert!(
        told.ends_with("ended kubepods, unmounted /var/lib/containerd, moved /var/lib/containerd"),
        "{told}"
    );
    // It rests afterwards.
    world.log.clear();
    world.run_for(7_200_000);
    assert_eq!(world.log, [] as [&str; 0]);
}

#[test]
fn a_program_that_does_not_answer_after_restarts_is_mended_too() {
    let (mut world, _) = remedied_and_ready();
    world.faults.cured_by.insert("containerd.service".to_owned(), "moved /var/lib/containerd".to_owned());
    world.behaviours.get_mut("containerd.service").unwrap().hung = true;
    world.run_for(150_000);
    assert_eq!(world.acts(), [] as [&str; 0], "restarts come first: {:#?}", world.log);
    assert!(world.log.contains(&"restart containerd.service".to_owned()));
    world.run_for(120_000);
    assert_eq!(world.acts(), RUNTIME_ACTS);
    world.run_until_ready(20_000);
}

#[test]
fn the_milder_remedy_comes_first_and_the_harsher_one_when_it_does_not_help() {
    let (mut world, config) = remedied_and_ready();
    world.corrupt("kubelet.service", "directory: moved /var/lib/kubelet");
    world.run_for(200_000);
    world.run_until_ready(60_000);
    world.assert_converged(&config);
    assert_eq!(
        world.acts(),
        ["kubelet-files: removed /var/lib/kubelet/state", "kubelet-directory: moved /var/lib/kubelet"]
    );
    world.run_for(10_000);
    let failed = world.events_of(EventKind::RepairFailed);
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0].contains("it did not help: kubelet.service fell 5 times"), "{failed:#?}");
    assert!(world.events_of(EventKind::Repaired).iter().any(|told| told.starts_with("kubelet-directory")));
}

#[test]
fn a_program_that_is_healthy_for_a_moment_of_each_start_is_mended_too() {
    let (mut world, config) = remedied_and_ready();
    world.corrupt_later("kubelet.service", "kubelet-files: removed", 2_000);
    world.run_for(60_000);
    world.run_until_ready(60_000);
    world.assert_converged(&config);
    assert_eq!(world.acts(), ["kubelet-files: removed /var/lib/kubelet/state"]);
    world.run_for(10_000);
    assert!(world.events_of(EventKind::Repaired).iter().any(|told| told.starts_with("kubelet-files")));
}

/// A program that is too big for its machine makes the trouble itself that it is excused for, again and again.
#[test]
fn a_hindrance_that_comes_and_goes_gives_no_budget_back() {
    let (mut world, _) = remedied_and_ready();
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = Some(15_000);
    world.fall("kubelet.service");
    world.log.clear();
    for _ in 0..90 {
        world.faults.disk_percent = 98;
        world.run_for(20_000);
        world.faults.disk_percent = 50;
        world.run_for(20_000);
    }
    let started = world.log.iter().filter(|line| line.ends_with("start kubelet.service")).count();
    assert!(started <= 65, "{started} starts in an hour");
    assert!(!world.events_of(EventKind::RepairWithheld).is_empty(), "{:#?}", world.log);
}

#[test]
fn a_config_whose_program_is_healthy_for_a_moment_costs_no_state() {
    let (mut world, config) = remedied_and_ready();
    let mut next = config;
    next.generation = Generation(2);
    let kubelet = next.units.iter_mut().find(|unit| unit.name == "kubelet.service").unwrap();
    kubelet.command.push("--no-such-flag".to_owned());
    world.behaviours.get_mut("kubelet.service").unwrap().crashes_after_ms = Some(2_000);
    world.offer(&next);
    world.run_for(3_600_000);
    assert_ne!(world.core.state(), NodeState::Ready);
    assert_eq!(world.acts(), [] as [&str; 0]);
}

#[test]
fn the_machine_reboots_when_nothing_else_helps_and_then_no_more_than_it_may() {
    let (mut world, config) = remedied_and_ready();
    world.corrupt("kubelet.service", "reboot");
    let mut waited = 0;
    while world.boot == 1 && waited < 3_600 {
        world.run_for(1_000);
        waited += 1;
    }
    assert!(waited < 3_600, "{:#?}", world.core.status());
    world.run_until_ready(60_000);
    world.assert_converged(&config);
    world.run_for(10_000);
    assert_eq!(world.acts().last().unwrap(), &"reboot: reboot");
    let told = world.events_of(EventKind::Repaired);
    let told: Vec<&String> = told.iter().filter(|told| told.starts_with("reboot")).collect();
    assert!(told[0].contains("was started again 2") && told[0].ends_with("the machine is being rebooted"));
    assert!(told[1].contains("-> it helped after "), "{told:#?}");
    // Nothing helps any more: twice a day, at least an hour apart, and then somebody is called.
    world.corrupt("kubelet.service", "nothing");
    world.run_for(7_200_000);
    assert_eq!(world.boot, 3, "{:#?}", world.core.status());
    let withheld = world.events_of(EventKind::RepairWithheld);
    assert!(withheld.iter().any(
        |told| told.starts_with("reboot") && told.contains("2 within a day is the limit, made again in ")
    ));
    // A day is counted by the wall clock; this one passes in a moment.
    world.faults.passed_ms = 86_400_000;
    world.run_for(2_400_000);
    assert_eq!(world.boot, 4, "the next day it may again");
}

#[test]
fn nothing_is_destroyed_that_could_not_be_noted() {
    let (mut world, _) = remedied_and_ready();
    world.disk_full = true;
    world.faults.disk_percent = 91;
    world.corrupt("containerd.service", "moved /var/lib/containerd");
    world.corrupt("kubelet.service", "reboot");
    world.run_for(3_000_000);
    assert_eq!(
        world.acts(),
        ["disk: removed old files of /var/log", "disk: removed copies of /var/lib/containerd"],
        "room is made all the same: the ledger may wait for just that"
    );
    assert_eq!(world.boot, 1);
    world.disk_full = false;
    world.faults.disk_percent = 50;
    world.run_for(300_000);
    assert_eq!(moved(&world), 1);
}

#[test]
fn a_ledger_that_cannot_be_written_any_more_ends_a_remedy() {
    for killed in [false, true] {
        let (mut world, _) = remedied_and_ready();
        world.corrupt("containerd.service", "nothing");
        while world.core.status().remedy.is_none() {
            world.run_for(1);
        }
        world.disk_full = true;
        while world.acts().is_empty() {
            world.run_for(1);
        }
        world.run_for(1_000);
        if killed {
            world.kill_agent();
        }
        world.run_for(400_000);
        assert_eq!(world.core.status().remedy, None, "what it held down runs again");
        assert_eq!(world.acts(), RUNTIME_ACTS[..1]);
    }
}

#[test]
fn who_is_killed_by_others_keeps_its_state() {
    let (mut world, _) = remedied_and_ready();
    for _ in 0..60 {
        for unit in ["containerd.service", "kubelet.service"] {
            if world.units[unit].running.is_some() {
                world.crash(unit);
            }
        }
        world.run_for(4_000);
    }
    assert_eq!(world.acts(), [] as [&str; 0], "{:#?}", world.log);
}

/// `systemctl restart`, which nobody sees but by another process.
#[test]
fn who_is_restarted_by_a_person_keeps_its_state() {
    let (mut world, _) = remedied_and_ready();
    for _ in 0..20 {
        world.restart_by_hand("containerd.service");
        world.run_for(4_000);
    }
    assert_eq!(world.acts(), [] as [&str; 0], "{:#?}", world.log);
}

/// One fall from before the disk was full, and the whole budget of starts on the full disk.
#[test]
fn what_was_given_up_on_a_full_disk_is_started_with_room_before_anything_is_thrown_away() {
    for minutes in [6, 7, 8, 9] {
        let (mut world, _) = remedied_and_ready();
        world.corrupt("containerd.service", "nothing");
        world.run_for(4_000);
        world.faults.disk_percent = 99;
        world.run_for(minutes * 60_000);
        world.faults.disk_percent = 50;
        world.behaviours.get_mut("containerd.service").unwrap().crashes_after_ms = None;
        world.run_for(400_000);
        let thrown = world.acts().into_iter().filter(|act| act.starts_with("runtime")).count();
        assert_eq!(thrown, 0, "after {minutes} minutes: {:#?}", world.acts());
        assert!(world.units["containerd.service"].running.is_some());
    }
}

/// More than an hour without room is no hour in vain.
#[test]
fn a_machine_that_had_no_room_for_hours_is_not_rebooted_for_that() {
    let (mut world, _) = remedied_and_ready();
    world.corrupt("containerd.service", "nothing");
    world.run_for(4_000);
    world.faults.disk_percent = 99;
    world.run_for(2 * 3_600_000);
    world.faults.disk_percent = 50;
    world.run_for(60_000);
    world.behaviours.get_mut("containerd.service").unwrap().crashes_after_ms = None;
    world.run_for(600_000);
    assert_eq!(world.boot, 1, "{:#?}", world.acts());
}

#[test]
fn a_machine_that_does_not_reboot_is_told_so_often_and_no_more() {
    let (mut world, _) = remedied_and_ready();
    world.faults.never_reboots = true;
    world.corrupt("kubelet.service", "nothing");
    world.run_for(3 * 3_600_000);
    let ordered = world.acts().iter().filter(|act| **act == "reboot: reboot").count();
    assert_eq!((ordered, world.boot), (6, 1), "three times, twice a day");
    let failed = world.events_of(EventKind::RepairFailed);
    let failed = failed.iter().find(|told| told.starts_with("reboot")).unwrap();
    assert!(failed.ends_with("left out: told to 3 times, the machine did not reboot"), "{failed}");
}

#[test]
fn what_is_withheld_is_told_once_though_the_unit_is_healthy_for_a_moment_of_each_start() {
    let (mut world, _) = remedied_and_ready();
    world.corrupt_later("containerd.service", "nothing", 2_000);
    world.run_for(480_000);
    assert_eq!((moved(&world), world.boot), (1, 1));
    let told = world.events_of(EventKind::RepairWithheld);
    let told = told.iter().filter(|told| told.starts_with("runtime")).count();
    assert_eq!(told, 1);
}

/// How often the runtime's state was moved.
fn moved(world: &World) -> usize {
    world.acts().iter().filter(|act| **act == RUNTIME_ACTS[2]).count()
}

#[test]
fn limits_hold_over_kills_of_the_agent_and_reboots() {
    let (mut world, _) = remedied_and_ready();
    world.corrupt("containerd.service", "nothing");
    for most in [2, 4] {
        for _ in 0..24 {
            world.run_for(300_000);
            world.kill_agent();
            assert!(moved(&world) <= most);
        }
        assert_eq!(moved(&world), most);
        // A day is counted by the wall clock; this one passes in a moment.
        world.faults.passed_ms += 86_400_000;
    }
}

/// A disk that stalls makes a program fall, and lets nobody see that it works again.
#[test]
fn time_in_which_nothing_was_seen_throws_no_state_away() {
    for blind_ms in [250_000, 900_000] {
        let (mut world, config) = remedied_and_ready();
        world.fall("containerd.service");
        world.run_for(500);
        world.faults.blind = true;
        world.run_for(blind_ms);
        world.faults.blind = false;
        world.run_for(600_000);
        assert_eq!(world.acts(), [] as [&str; 0], "after {blind_ms} ms");
        assert_eq!(world.events_of(EventKind::RepairFailed), [] as [&str; 0]);
        world.assert_converged(&config);
    }
}

#[test]
fn a_clock_that_is_set_gives_no_limit_back() {
    for day_ms in [86_400_000, -86_400_000] {
        let (mut world, _) = remedied_and_ready();
        world.corrupt("containerd.service", "nothing");
        world.run_for(3 * 3_600_000);
        assert_eq!(moved(&world), 2);
        world.faults.clock_ms = day_ms;
        world.run_for(3_600_000);
        world.faults.clock_ms = 0;
        world.run_for(3_600_000);
        assert_eq!(moved(&world), 2, "the clock was set by {day_ms} ms");
    }
}

#[test]
fn a_clock_that_was_ahead_withholds_no_repair_for_longer_than_the_limit() {
    let (mut world, _) = remedied_and_ready();
    world.faults.clock_ms = 30 * 86_400_000;
    world.corrupt("containerd.service", "nothing");
    world.run_for(300_000);
    assert_eq!(world.acts(), RUNTIME_ACTS);
    world.faults.clock_ms = 0;
    world.run_for(2 * 3_600_000);
    assert_eq!(moved(&world), 2);
}

#[test]
fn a_config_that_never_worked_costs_no_state() {
    let (mut world, config) = remedied_and_ready();
    let mut next = config;
    next.generation = Generation(2);
    next.units[0].command.push("--no-such-flag".to_owned());
    next.units[1].command.push("--no-such-flag".to_owned());
    for unit in ["kubelet.service", "containerd.service"] {
        world.behaviours.get_mut(unit).unwrap().crashes_after_ms = Some(50);
    }
    world.offer(&next);
    world.run_for(3_600_000);
    assert_ne!(world.core.state(), NodeState::Ready);
    assert_eq!(world.acts(), [] as [&str; 0]);
    assert_eq!(world.boot, 1);
}

#[test]
fn a_program_that_misses_something_is_not_mended() {
    let (mut world, _) = remedied_and_ready();
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    world.corrupt("kubelet.service", "nothing");
    world.run_for(1_800_000);
    assert_eq!(world.acts(), [] as [&str; 0], "{:#?}", world.log);
}

#[test]
fn a_full_disk_explains_everything_else() {
    let (mut world, _) = remedied_and_ready();
    world.faults.disk_percent = 99;
    world.corrupt("containerd.service", "nothing");
    world.run_for(600_000);
    assert_eq!(
        world.acts(),
        ["disk: removed old files of /var/log", "disk: removed copies of /var/lib/containerd"]
    );
}

#[test]
fn what_fell_on_a_full_disk_is_tried_with_room_before_anything_is_thrown_away() {
    for minute in 0..20 {
        let (disk_percent, inodes_percent) = if minute % 2 == 0 { (99, 50) } else { (50, 99) };
        let (mut world, _) = remedied_and_ready();
        (world.faults.disk_percent, world.faults.inodes_percent) = (disk_percent, inodes_percent);
        world.run_for(60_000);
        world.corrupt("containerd.service", "nothing");
        // It waits for seconds, or for minutes, to be started once more when there is room, which is all that it lacked.
        world.run_for(30_000 + minute * 60_000);
        (world.faults.disk_percent, world.faults.inodes_percent) = (50, 50);
        world.behaviours.get_mut("containerd.service").unwrap().crashes_after_ms = None;
        world.run_for(600_000);
        let thrown = world.acts().into_iter().filter(|act| act.starts_with("runtime")).count();
        assert_eq!(thrown, 0, "{:#?}", world.acts());
        assert!(world.units["containerd.service"].running.is_some());
    }
}

#[test]
fn room_is_made_and_an_alarm_is_raised_only_when_that_is_not_enough() {
    let acts = ["disk: removed old files of /var/log", "disk: removed copies of /var/lib/containerd"];
    fn check(percent: u8, cure: &str, kind: EventKind, expected: &str, acts: &[&str]) {
        let (mut world, _) = remedied_and_ready();
        world.faults.disk_percent = percent;
        world.faults.cured_by.insert("disk".to_owned(), cure.to_owned());
        world.run_for(60_000);
        assert_eq!(world.acts(), acts);
        let told = world.events_of(kind);
        assert!(told.iter().any(|told| told.contains(expected)), "{told:#?}");
    }
    check(91, "copies", EventKind::Repaired, "disk: 91 % of the disk is used -> it helped after ", &acts);
    check(88, "nothing", EventKind::Repaired, "-> still 88 % of the disk is used; removed old", &acts);
    check(92, "nothing", EventKind::RepairFailed, "-> it did not help: 92 % of the disk is used; ", &acts);
    check(84, "nothing", EventKind::AgentStarted, "waits for a config", &[]);
}

#[test]
fn room_is_not_made_again_where_everything_is_of_use_until_more_is_used() {
    let (mut world, _) = remedied_and_ready();
    world.faults.cured_by.insert("disk".to_owned(), "nothing".to_owned());
    for (percent, hours, runs) in
        [(88, 3, 1), (87, 3, 1), (88, 3, 1), (89, 3, 2), (50, 24, 2), (88, 3, 3), (92, 3, 4)]
    {
        world.faults.disk_percent = percent;
        world.run_for(hours * 3_600_000);
        let made = world.acts().iter().filter(|act| act.contains("removed old files")).count();
        assert_eq!(made, runs, "at {percent} %: {:#?}", world.acts());
    }
}

#[test]
fn a_disk_without_inodes_is_one_without_room() {
    let (mut world, mut config) = remedied_and_ready();
    config.generation = Generation(2);
    let when = Trigger::InodesFull { percent: 85, alarm_percent: 90 };
    config.remedies[0] = remedy("inodes", when, disk().acts);
    world.offer(&config);
    world.run_for(60_000);
    world.faults.inodes_percent = 88;
    world.faults.cured_by.insert("inodes".to_owned(), "copies".to_owned());
    world.run_for(60_000);
    assert_eq!(
        world.acts(),
        ["inodes: removed old files of /var/log", "inodes: removed copies of /var/lib/containerd"]
    );
    let told = world.events_of(EventKind::Repaired);
    let expected = "inodes: 88 % of the inodes are used -> it helped after ";
    assert!(told.iter().any(|told| told.contains(expected)), "{told:#?}");
}

#[test]
fn an_act_that_fails_is_tried_again_and_then_left_out() {
    let (mut world, _) = remedied_and_ready();
    world.faults.disk_percent = 91;
    world.faults.failing_act = Some("old files".to_owned());
    world.faults.cured_by.insert("disk".to_owned(), "copies".to_owned());
    world.run_for(60_000);
    assert_eq!(world.acts().len(), 4, "{:#?}", world.acts());
    let told = world.events_of(EventKind::Repaired);
    assert!(told[0].contains("it helped after") && told[0].contains("left out after 3 tries: no such luck"));
}

#[test]
fn units_that_cannot_be_stopped_end_a_remedy() {
    let (mut world, _) = remedied_and_ready();
    world.corrupt("containerd.service", "nothing");
    world.faults.unstoppable = Some("kubelet.service".to_owned());
    let mut waited = 0;
    while world.core.status().remedy.is_none() {
        world.run_for(100);
        waited += 1;
        assert!(waited < 1_200);
    }
    world.run_for(170_000);
    assert_eq!(world.core.status().remedy.unwrap(), "runtime: 0 of 3 acts are done");
    world.run_for(20_000);
    assert_eq!(world.acts(), [] as [&str; 0]);
    let told = world.events_of(EventKind::RepairFailed);
    assert!(told[0].ends_with("-> given up: kubelet.service was not down after 180 s"), "{told:#?}");
    assert!(world.units["kubelet.service"].running.is_some());
}

#[test]
fn a_new_config_ends_a_remedy_that_it_does_not_have() {
    let (mut world, config) = remedied_and_ready();
    world.corrupt("containerd.service", "ended");
    world.faults.failing_act = Some("unmounted".to_owned());
    while !world.acts().contains(&RUNTIME_ACTS[1]) {
        world.run_for(100);
    }
    let mut next = config;
    next.generation = Generation(2);
    next.remedies.clear();
    world.offer(&next);
    world.run_until_ready(60_000);
    world.run_for(10_000);
    world.assert_converged(&next);
    assert_eq!(world.core.status().remedy, None);
    assert!(world.events_of(EventKind::Repaired).iter().any(|told| told.contains("given up, because")));
}

/// What a bad answer of a probe says is a trigger of its own.
fn nospace() -> (World, keelson_protocol::config::NodeConfig) {
    let (mut world, mut config) = (world(), remedied(1));
    let run = |program: &str| RemedyAct::Run {
        command: vec![program.to_owned()],
        argument: None,
        done_when: None,
        timeout_s: 60,
    };
    let when = Trigger::Says { probe: probe("space"), text: "NOSPACE".to_owned(), every_s: 60 };
    let mut spec = remedy("space", when, vec![run("/compact"), run("/defragment"), run("/disarm")]);
    spec.limit.spread_s = 60;
    config.remedies.push(spec);
    world.offer(&config);
    world.run_until_ready(60_000);
    world.run_for(120_000);
    world.log.clear();
    (world, config)
}

#[test]
fn what_a_probe_says_is_mended_within_its_spread() {
    let (mut world, _) = nospace();
    world.silent.insert("space".to_owned());
    world.run_for(300_000);
    assert_eq!(world.acts(), [] as [&str; 0], "silence is another answer");
    world.silent.clear();
    world.faults.says.insert("space".to_owned(), "status 503: ALARM NOSPACE".to_owned());
    world.run_for(150_000);
    assert_eq!(world.acts().len(), 3);
    // The member starts again, and has no word on it.
    world.faults.says.insert("space".to_owned(), "connection refused".to_owned());
    world.run_for(30_000);
    assert_eq!(world.events_of(EventKind::Repaired), [] as [&str; 0], "no word is not a good word");
}

#[test]
fn what_a_probe_says_no_more_is_mended() {
    let (mut world, _) = nospace();
    world.faults.says.insert("space".to_owned(), "status 503: ALARM NOSPACE".to_owned());
    world.faults.cured_by.insert("space".to_owned(), "ran /disarm".to_owned());
    world.run_for(150_000);
    assert_eq!(world.acts(), ["space: ran /compact", "space: ran /defragment", "space: ran /disarm"]);
    let told = world.events_of(EventKind::Repaired);
    assert!(told[0].starts_with("space: space: status 503: ALARM NOSPACE -> it helped after "), "{told:#?}");
    let due = world.events_of(EventKind::RepairDue);
    assert_eq!(due.len(), 1, "{due:#?}");
    assert!(due[0].starts_with("space: space: status 503: ALARM NOSPACE -> begins in "), "{due:#?}");
}

#[test]
fn a_probe_for_a_trigger_costs_one_question_a_minute() {
    let (mut world, _) = nospace();
    let before = world.ticks;
    world.run_for(600_000);
    assert!((world.ticks - before) / 600 < 12);
}

/// Kills the agent, or cuts the power, after each of the actions and events of a remedy in turn.
#[test]
fn a_kill_between_any_two_actions_changes_nothing() {
    for reboots in [false, true] {
        let mut ticks = 0;
        loop {
            let (mut world, config) = remedied_and_ready();
            world.corrupt("containerd.service", "moved /var/lib/containerd");
            while world.core.status().remedy.is_none() {
                world.run_ticks(1);
            }
            world.run_ticks(ticks);
            let over = world.core.status().remedy.is_none();
            if reboots {
                world.reboot()
            } else {
                world.kill_agent()
            }
            world.run_until_ready(300_000);
            world.run_for(15_000);
            world.assert_converged(&config);
            assert_eq!(world.core.status().remedy, None);
            // An act whose end was lost is done again; none is left out, and none comes before its turn.
            let mut acts = world.acts();
            acts.dedup();
            assert_eq!(acts, RUNTIME_ACTS, "after {ticks} ticks");
            let imported = world.log.iter().filter(|line| *line == "start prepare.service").count();
            assert!((1..=2).contains(&imported), "{imported} times after {ticks} ticks");
            let told = world.events_of(EventKind::Repaired);
            assert_eq!(told.iter().filter(|told| told.starts_with("runtime")).count(), 1, "{told:#?}");
            if over {
                break;
            }
            ticks += if reboots { 23 } else { 7 };
        }
        assert!(ticks > 50, "{ticks} ticks");
    }
}

#[test]
fn what_is_held_says_for_what() {
    let (mut world, _) = remedied_and_ready();
    world.corrupt("containerd.service", "nothing");
    world.faults.failing_act = Some("ended".to_owned());
    while world.core.status().remedy.is_none() {
        world.run_for(100);
    }
    world.run_for(2_000);
    let units = world.core.status().units;
    let kubelet = units.into_iter().find(|unit| unit.name == "kubelet.service").unwrap();
    assert_eq!(kubelet.state, UnitState::Waiting { on: "the end of remedy runtime".to_owned() });
}
