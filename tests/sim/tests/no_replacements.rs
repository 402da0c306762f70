//! What looks like death and is none: nobody is replaced, fenced, switched off or on, drained or evacuated for it, no plan
//! changes, and the fleet is ready again soon after. What was done is counted in the trace, where the fakes take down the
//! calls that they carried out, and not by what the coordinator says of itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use keelson_sim::{Case, Fault, Side, Target, Timed, Way, Weather, Wish, World};

/// Longest time that making a fleet may take, in milliseconds.
const MADE_MAX_MS: u64 = 20 * MINUTE;
/// How long a fleet may take to be ready again, in milliseconds: sessions come back within 15 seconds, nodes and members
/// of etcd within as many again, and a coordinator that starts waits for half a minute.
const SOON_MS: u64 = 2 * MINUTE;
/// How long it is watched after that, in milliseconds: what is done on old evidence is done late.
const WATCHED_MS: u64 = 2 * MINUTE;
/// How much is played before the trace is looked at, in milliseconds: it forgets what is old.
const LOOK_EVERY_MS: u64 = 15_000;
const MINUTE: u64 = 60_000;
const HOUR_MS: i64 = 60 * 60_000;
/// Each kind of cluster: control plane with etcd apart and together, one master, and one machine that is all.
const FLEET: [(&str, Option<u16>); 4] =
    [("ha", Some(3)), ("ha-stacked", Some(2)), ("small", Some(2)), ("tiny", None)];
/// Machines of the full-size test, at least. A debug build is several times slower than a release build, which plays a
/// thousand: `cargo test --release -p keelson-sim --test no_replacements`.
const MANY: u16 = if cfg!(debug_assertions) { 200 } else { 1_000 };

/// What came of a fault.
#[derive(Debug)]
struct Seen {
    /// Calls on machines, nodes and members of etcd, and changes of plans.
    acts: Vec<String>,
    /// Everything that was told, as lines.
    lines: Vec<String>,
    /// How long the fleet took to be ready once nothing was wrong any more, in milliseconds; why it is not, if it is not.
    ready: Result<u64, String>,
}

/// A ready fleet, with a cluster of each plan of these.
fn fleet(plans: &[(&str, Option<u16>)]) -> World {
    let wish = |(number, (plan, workers)): (usize, &(&str, Option<u16>))| {
        let cluster = format!("c{number}").parse().unwrap();
        Timed { at_ms: 0, what: Wish::Create { cluster, plan: (*plan).to_owned(), workers: *workers } }
    };
    let wishes = plans.iter().enumerate().map(wish).collect();
    let weather = Weather::default();
    let mut world = World::new(&Case { seed: 1, duration_ms: u64::MAX, weather, faults: Vec::new(), wishes });
    assert!(world.run_until_converged(MADE_MAX_MS), "not made: {:?}", world.unsettled());
    // Incidents of making are closed, and leases are as they stay.
    world.run_until(world.now() + MINUTE);
    assert_eq!(world.unsettled(), None);
    world
}

/// Faults happen to a ready fleet, each after a time; all are over after `lasts_ms`.
fn play(world: &mut World, faults: &[(u64, Fault)], lasts_ms: u64) -> Seen {
    let begin = world.now();
    let mut seen = Seen { acts: Vec::new(), lines: Vec::new(), ready: Err(String::new()) };
    for (after_ms, fault) in faults {
        watch(world, begin + after_ms, &mut seen);
        let before = world.trace().count();
        world.happens(fault);
        seen.lines.extend(world.trace().since(before).map(|(_, decision)| decision.to_string()));
    }
    watch(world, begin + lasts_ms, &mut seen);
    while world.unsettled().is_some() && world.now() < begin + lasts_ms + SOON_MS {
        let next = world.now() + 1_000;
        watch(world, next, &mut seen);
    }
    seen.ready = world.unsettled().map_or_else(|| Ok(world.now() - begin - lasts_ms), Err);
    watch(world, world.now() + WATCHED_MS, &mut seen);
    if let Some(why) = world.unsettled() {
        seen.ready = Err(format!("not any more: {why}"));
    }
    seen
}

/// Plays on, and takes down what is told.
fn watch(world: &mut World, end: u64, seen: &mut Seen) {
    while world.now() < end && world.violation().is_none() {
        let before = world.trace().count();
        world.run_until(end.min(world.now() + LOOK_EVERY_MS));
        seen.acts.extend(world.trace().acts_since(before).expect("so much is not told in so short a time"));
        seen.lines.extend(world.trace().since(before).map(|(_, decision)| decision.to_string()));
    }
    assert_eq!(world.violation(), None, "{:#?}", seen.lines.iter().rev().take(40).collect::<Vec<_>>());
}

impl Seen {
    /// How many lines hold a text.
    fn told(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }
}

/// Nothing is done for these faults, at least so many lines tell that they were noticed, and the fleet is ready soon.
#[expect(clippy::print_stdout, reason = "how long it takes is read by people")]
fn check(world: &mut World, faults: &[(u64, Fault)], lasts_ms: u64, noticed: (&str, usize)) {
    let seen = play(world, faults, lasts_ms);
    let acts = seen.acts.len();
    assert_eq!(acts, 0, "done, with the fleet ready again: {:?} ms\n{}", seen.ready, seen.acts.join("\n"));
    let ready_ms = seen.ready.as_ref().unwrap_or_else(|why| panic!("not ready within {SOON_MS} ms: {why}"));
    println!("{faults:?}, for {} s: ready after {} s", lasts_ms / 1_000, ready_ms / 1_000);
    let told = seen.told(noticed.0);
    assert!(told >= noticed.1, "a fault that nobody notices tests nothing: {noticed:?}, {told} lines");
}

fn partition(side: Side, for_ms: u64) -> Fault {
    Fault::Partition { side, way: Way::Both, for_ms }
}

fn named(id: &str) -> Target {
    Target::Named(id.parse().unwrap())
}

#[test]
fn a_zone_that_is_cut_off_for_ten_minutes_loses_no_machine() {
    for zone in ["zone-a", "zone-b"] {
        let fault = partition(Side::Zone(zone.to_owned()), 10 * MINUTE);
        check(&mut fleet(&FLEET), &[(0, fault)], 10 * MINUTE, ("MachineSilent", 3));
    }
}

#[test]
fn a_coordinator_that_is_cut_off_for_ten_minutes_replaces_nobody() {
    let fault = partition(Side::Coordinator, 10 * MINUTE);
    check(&mut fleet(&FLEET), &[(0, fault)], 10 * MINUTE, ("MachineSilent", 19));
}

#[test]
fn a_coordinator_that_was_dead_for_ten_minutes_replaces_nobody() {
    let fault = Fault::CoordinatorCrash { effects: 0, down_ms: 10 * MINUTE };
    let noticed = ("the coordinator is dead", 1);
    check(&mut fleet(&FLEET), &[(0, fault)], 10 * MINUTE, noticed);
}

#[test]
fn a_fleet_whose_heartbeats_are_all_lost_for_a_minute_loses_no_machine() {
    let fault = Fault::HeartbeatsLost { permille: 1_000, for_ms: MINUTE };
    check(&mut fleet(&FLEET), &[(0, fault)], MINUTE, ("MachineSilent", 19));
}

#[test]
fn a_fleet_with_half_of_its_heartbeats_lost_for_ten_minutes_loses_no_machine() {
    let fault = Fault::HeartbeatsLost { permille: 500, for_ms: 10 * MINUTE };
    check(&mut fleet(&FLEET), &[(0, fault)], 10 * MINUTE, ("MachineSilent", 19));
}

#[test]
fn a_fleet_that_is_silent_when_the_coordinator_starts_loses_no_machine() {
    let clusters = usize::from(MANY / 10);
    let mut world = fleet(&vec![("ha", Some(4)); clusters]);
    assert!(world.machine_count() >= usize::from(MANY), "{}", world.machine_count());
    let dead = Fault::CoordinatorCrash { effects: 0, down_ms: 30_000 };
    let cut = partition(Side::Coordinator, 4 * MINUTE);
    let silent = world.machine_count();
    check(&mut world, &[(0, dead), (5_000, cut)], 4 * MINUTE + 5_000, ("MachineSilent", silent));
}

#[test]
fn a_machine_that_only_the_coordinator_cannot_reach_is_left_alone() {
    for machine in ["c0-etcd-1", "c0-worker-1"] {
        let fault = partition(Side::Link(named(machine)), 10 * MINUTE);
        check(&mut fleet(&FLEET), &[(0, fault)], 10 * MINUTE, ("cut off from the coordinator", 1));
    }
}

#[test]
fn a_clock_that_is_an_hour_wrong_for_ten_minutes_costs_no_machine() {
    for (machine, by_ms) in [("c0-etcd-1", HOUR_MS), ("c0-master-1", -HOUR_MS)] {
        let wrong = Fault::ClockJump { target: named(machine), by_ms };
        let right = Fault::ClockJump { target: named(machine), by_ms: -by_ms };
        let faults = [(0, wrong), (10 * MINUTE, right)];
        check(&mut fleet(&FLEET), &faults, 10 * MINUTE, ("ClockWrong", 2));
    }
}

/// By a clock that is an hour behind, no certificate is valid yet: an agent that starts then gets no session.
#[test]
fn an_agent_that_starts_with_a_clock_an_hour_wrong_costs_no_machine() {
    for (machine, by_ms) in [("c0-worker-1", HOUR_MS), ("c0-etcd-1", -HOUR_MS)] {
        let wrong = Fault::ClockJump { target: named(machine), by_ms };
        let right = Fault::ClockJump { target: named(machine), by_ms: -by_ms };
        let starts = Fault::AgentCrash { target: named(machine), actions: 0 };
        let faults = [(0, wrong), (MINUTE, starts), (10 * MINUTE, right)];
        check(&mut fleet(&FLEET), &faults, 10 * MINUTE, ("AgentStarted", 1));
    }
}

#[test]
fn a_provider_that_is_out_for_ten_minutes_costs_no_machine() {
    let out = Fault::ProviderOut { for_ms: 10 * MINUTE };
    check(&mut fleet(&FLEET), &[(0, out)], 10 * MINUTE, ("provider is out", 1));
}

#[test]
fn a_provider_that_lists_nothing_for_ten_minutes_costs_no_machine() {
    let blind = Fault::ProviderListsNothing { for_ms: 10 * MINUTE };
    check(&mut fleet(&FLEET), &[(0, blind)], 10 * MINUTE, ("provider lists nothing", 1));
}

/// The same count is not zero when something is to be done: for a machine without power, and for one that stands still.
#[test]
fn a_machine_that_is_dead_is_repaired_and_that_is_counted() {
    let dead = Fault::PowerLoss { target: named("c0-worker-1") };
    let seen = play(&mut fleet(&FLEET), &[(0, dead)], MINUTE);
    assert_eq!((seen.told("provider: power on c0-worker-1"), seen.ready.is_ok()), (1, true), "{seen:#?}");
    assert!(seen.acts.iter().any(|act| act.contains("power on c0-worker-1")), "{:#?}", seen.acts);

    let still = Fault::Freeze { target: named("c0-worker-1"), for_ms: 10 * MINUTE };
    let seen = play(&mut fleet(&FLEET), &[(0, still)], 2 * MINUTE);
    let acts = seen.acts.join("\n");
    assert!(acts.contains("fence c0-worker-1") && acts.contains("power on c0-worker-1"), "{acts}");
    assert!(seen.ready.is_ok(), "{:?}\n{acts}", seen.ready);
}
