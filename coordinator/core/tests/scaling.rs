//! Sizes of pools change on a cluster that stands: workers, masters and etcd members.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::demo::pool;
use common::{World, small};
use keelson_coordinator_core::{ClusterState, CommandError, ScalePool};
use keelson_model::{DrainSpec, DrainThen, OperationState, PoolName, Severity};
use keelson_protocol::health::{NodeState, UnitState};

/// Steps of half a second within which everything converges when nothing fails.
const CONVERGED: u32 = 60;

fn ready() -> World {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(20);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world
}

#[test]
fn etcd_and_masters_grow_to_five_and_shrink_to_one() {
    let mut world = ready();
    for (etcd, masters) in [(3, 3), (5, 3), (3, 1), (1, 1)] {
        world.scale("demo", "etcd", etcd);
        world.scale("demo", "master", masters);
        world.run(CONVERGED);
        assert_eq!(
            world.state("demo"),
            Some(ClusterState::Ready),
            "{:?}",
            world.core.waiting(&"demo".parse().unwrap(), world.now())
        );
        assert_eq!((pool(&world, "etcd").len(), pool(&world, "master").len()), (etcd.into(), masters.into()));
        let members = &world.members[&"demo".parse().unwrap()];
        assert_eq!(members.len(), usize::from(etcd), "{members:?}");
        assert!(members.iter().all(|member| !member.learner && !member.name.is_empty()));
    }
    let last = world.core.operations().last().unwrap();
    assert!(matches!(last.state, OperationState::Succeeded { .. }), "{last:?}");
}

#[test]
fn a_member_that_leads_hands_over_before_it_goes() {
    let mut world = ready();
    world.scale("demo", "etcd", 3);
    world.run(CONVERGED);
    let members = world.members.get_mut(&"demo".parse().unwrap()).unwrap();
    assert!(members[2].name.starts_with("demo-etcd-3"), "{members:?}");
    // The first one leads, and the newest goes.
    members.swap(0, 2);
    world.events.clear();
    world.scale("demo", "etcd", 1);
    world.run(CONVERGED);
    let changes: Vec<&str> =
        world.reasons().into_iter().filter(|reason| reason.starts_with("Etcd")).collect();
    assert!(changes.starts_with(&["EtcdLeaderMoved", "EtcdMemberRemoved"]), "{changes:?}");
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn addresses_of_machines_that_left_are_given_again() {
    // The cluster has four machines, and fourteen addresses.
    let mut world = World::in_network("10.210.1.0/28");
    world.create(&small("demo"));
    world.run(20);
    for _ in 0..5 {
        for workers in [5, 1] {
            world.scale("demo", "worker", workers);
            world.run(CONVERGED);
            assert_eq!(world.state("demo"), Some(ClusterState::Ready));
            assert_eq!(pool(&world, "worker").len(), usize::from(workers));
        }
    }
}

#[test]
fn workers_leave_when_their_pods_have_gone() {
    let mut world = ready();
    world.run(10);
    assert_eq!(world.nodes[&"demo".parse().unwrap()].len(), 3);
    world.scale("demo", "worker", 1);
    world.run(2);
    // Its first pass has left a pod.
    assert_eq!(pool(&world, "worker").len(), 2);
    world.run(20);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(pool(&world, "worker"), ["demo-worker-1"]);
    assert_eq!(world.nodes[&"demo".parse().unwrap()].len(), 2);
    let reasons = world.reasons();
    for reason in ["NodeDraining", "NodeDrained", "NodeRemoved", "MachineDeleted"] {
        assert!(reasons.contains(&reason), "{reason} is not among {reasons:?}");
    }
}

#[test]
fn a_budget_that_never_allows_a_pod_to_go_is_named_and_ends_with_the_time_of_the_drain() {
    let mut world = ready();
    world.run(10);
    world.budgets.insert("demo-worker-2".to_owned());
    world.scale("demo", "worker", 1);
    world.run(60);
    assert_eq!(pool(&world, "worker").len(), 2);
    let waits: Vec<String> =
        world.core.waiting(&"demo".parse().unwrap(), world.now()).iter().map(ToString::to_string).collect();
    assert!(
        waits[0].starts_with("leaving: 2 pods") && waits[0].contains("may not be evicted: a budget"),
        "{waits:?}"
    );
    let told = world.events.iter().filter(|event| event.reason == "DrainBlocked").count();
    assert_eq!(told, 1, "the same thing is told once");
    // A restart does not begin the time anew.
    world.restart();
    world.run(2 * 590);
    assert_eq!(pool(&world, "worker").len(), 1);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    let forced: Vec<_> = world.events.iter().filter(|event| event.reason == "DrainForced").collect();
    assert_eq!(forced.len(), 1, "{forced:?}");
    assert_eq!(forced[0].severity, Severity::Warning);
    assert_eq!(
        forced[0].cause,
        "pod default/web-0 of Deployment web was deleted although it was not to be evicted: may not be evicted: a budget"
    );
}

#[test]
fn a_drain_has_the_time_that_the_request_gives_it() {
    let mut world = ready();
    world.run(10);
    world.budgets.insert("demo-worker-2".to_owned());
    let (cluster, pool_name) = ("demo".parse().unwrap(), PoolName("worker".to_owned()));
    let drain = Some(DrainSpec { timeout_s: 5, then: DrainThen::Force });
    let request = ScalePool { cluster, pool: pool_name, count: 1, drain };
    let accepted = world.core.scale_pool(world.now(), &request).unwrap();
    world.carry_out(accepted.effects);
    world.run(60);
    assert_eq!(pool(&world, "worker").len(), 1);
    let drain = Some(DrainSpec { timeout_s: 24 * 3600 + 1, then: DrainThen::Wait });
    let refused = world.core.scale_pool(world.now(), &ScalePool { drain, ..request }).unwrap_err();
    assert_eq!(refused.to_string(), "a drain of 86401 seconds is not possible: choose 0 to 86400");
}

#[test]
fn a_machine_without_power_is_evacuated_and_not_drained() {
    let mut world = ready();
    world.run(10);
    world.budgets.insert("demo-worker-2".to_owned());
    world.scale("demo", "worker", 1);
    world.run(4);
    let id = "demo-worker-2".parse().unwrap();
    world.machines.get_mut(&id).unwrap().on = false;
    world.run(90);
    assert_eq!(pool(&world, "worker"), ["demo-worker-1"]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

/// The master that stays hangs, and its power cannot be taken: the others are the only API servers.
#[test]
fn the_last_masters_that_work_stay_until_one_that_is_to_stay_works() {
    let mut world = ready();
    world.scale("demo", "master", 3);
    world.run(120);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    for name in ["demo-master-2", "demo-master-3"] {
        world.budgets.insert(name.to_owned());
    }
    world.scale("demo", "master", 1);
    world.run(4);
    world.refuse_fence = Some(keelson_coordinator_core::ProviderFailure {
        remedy: keelson_coordinator_core::Remedy::Retry,
        text: "the host does not answer".to_owned(),
    });
    world.machines.get_mut(&"demo-master-1".parse().unwrap()).unwrap().linked = false;
    world.run(10);
    world.budgets.clear();
    world.run(300);
    assert_eq!(pool(&world, "master").len(), 3);
    let waits: Vec<String> =
        world.core.waiting(&"demo".parse().unwrap(), world.now()).iter().map(ToString::to_string).collect();
    let kept = "leaving: no master that stays works with its newest config, and it keeps the API server";
    assert!(waits.iter().any(|wait| wait == kept), "{waits:?}");
    world.refuse_fence = None;
    world.run(300);
    assert_eq!(pool(&world, "master"), ["demo-master-1"]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

/// A cluster with three members of etcd, whose masters know the first one alone: they wait for one that is cut off.
fn masters_that_know_one_member() -> World {
    let mut world = ready();
    world.scale("demo", "master", 3);
    world.run(120);
    world.refuse_fence = Some(keelson_coordinator_core::ProviderFailure {
        remedy: keelson_coordinator_core::Remedy::Retry,
        text: "the host does not answer".to_owned(),
    });
    world.machines.get_mut(&"demo-master-1".parse().unwrap()).unwrap().linked = false;
    world.run(10);
    world.scale("demo", "etcd", 3);
    world.run(300);
    assert_eq!(world.members[&"demo".parse().unwrap()].len(), 3);
    assert_eq!(generations(&world, ["demo-master-2", "demo-master-3"]), [false, false]);
    world
}

/// Which of the machines have the newest config.
fn generations<const N: usize>(world: &World, machines: [&str; N]) -> [bool; N] {
    let newest = world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint.generation;
    machines.map(|name| world.machines[&name.parse().unwrap()].generation == Some(newest))
}

/// The first of three members is to leave, which is the only one that the masters know.
fn the_member_that_masters_know_leaves() -> World {
    let mut world = masters_that_know_one_member();
    // Members that do not work go first.
    let first = "demo-etcd-1".parse().unwrap();
    world.says.insert(first, NodeState::Degraded);
    world.run(2);
    world.etcd_answers_late = true;
    world.scale("demo", "etcd", 1);
    world.says.clear();
    world.run(2);
    world.etcd_answers_late = false;
    world.run(100);
    assert!(has_member(&world, "demo-etcd-1"));
    world
}

fn has_member(world: &World, name: &str) -> bool {
    world.members[&"demo".parse().unwrap()].iter().any(|member| member.name == name)
}

#[test]
fn a_member_of_etcd_does_not_wait_for_masters_for_ever() {
    let mut world = the_member_that_masters_know_leaves();
    world.run(2 * 25 * 60);
    assert!(has_member(&world, "demo-etcd-1"));
    world.run(2 * 6 * 60);
    assert!(!has_member(&world, "demo-etcd-1"));
    world.run(60);
    assert_eq!(pool(&world, "etcd").len(), 1);
}

#[test]
fn a_member_that_is_in_use_holds_up_no_other_one() {
    let mut world = the_member_that_masters_know_leaves();
    // Another one loses its disk while the masters know only the first.
    world.machines.get_mut(&"demo-etcd-2".parse().unwrap()).unwrap().lose_disk();
    world.run(60);
    world.refuse_fence = None;
    world.machines.get_mut(&"demo-master-1".parse().unwrap()).unwrap().linked = true;
    world.run(2_000);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(pool(&world, "etcd").len(), 1);
}

#[test]
fn a_member_of_etcd_stays_until_the_masters_know_one_that_stays() {
    let mut world = the_member_that_masters_know_leaves();
    let waits: Vec<String> =
        world.core.waiting(&"demo".parse().unwrap(), world.now()).iter().map(ToString::to_string).collect();
    let stays = "leaving: demo-master-2 may know no etcd member yet that stays and works";
    assert!(waits.iter().any(|wait| wait == stays), "{waits:?}");
    world.refuse_fence = None;
    world.machines.get_mut(&"demo-master-1".parse().unwrap()).unwrap().linked = true;
    world.run(400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(pool(&world, "etcd").len(), 1);
    assert_ne!(pool(&world, "etcd"), ["demo-etcd-1"]);
}

#[test]
fn masters_that_serve_nobody_get_what_they_lack_one_after_the_other() {
    let mut world = masters_that_know_one_member();
    let both = ["demo-master-2", "demo-master-3"];
    for master in both {
        world.says.insert(master.parse().unwrap(), NodeState::Degraded);
    }
    // That their machines are not ready does not say that they serve nobody.
    world.run(4);
    assert_eq!(generations(&world, both), [false, false]);
    for master in both {
        world.tell_unit(&master.parse().unwrap(), "kube-apiserver.service", UnitState::Healthy);
    }
    world.run(4);
    assert_eq!(generations(&world, both), [false, false]);
    for master in both {
        let down = UnitState::Down { why: "no member of etcd answers".to_owned() };
        world.tell_unit(&master.parse().unwrap(), "kube-apiserver.service", down);
    }
    world.run(4);
    assert_eq!(generations(&world, both), [true, false]);
    world.run(2 * 120);
    assert_eq!(generations(&world, both), [true, true]);
}

#[test]
fn a_preview_names_the_machine_that_goes_first_because_it_does_not_work() {
    let mut world = ready();
    world.run(10);
    world.machines.get_mut(&"demo-worker-1".parse().unwrap()).unwrap().linked = false;
    world.run(10);
    let request = ScalePool {
        cluster: "demo".parse().unwrap(),
        pool: PoolName("worker".to_owned()),
        count: 1,
        drain: None,
    };
    let preview = world.core.preview_scale(&request).unwrap();
    let gone: Vec<&str> = preview.diff.changes.iter().map(|change| change.object.as_str()).collect();
    assert_eq!(gone, ["demo-worker-1"]);
    world.scale("demo", "worker", 1);
    world.run(300);
    assert_eq!(pool(&world, "worker"), ["demo-worker-2"]);
}

#[test]
fn a_cluster_that_becomes_what_was_asked_for_is_updating_and_warns_of_nothing() {
    let mut world = ready();
    world.run(10);
    world.events.clear();
    for (what, count) in [("worker", 3), ("master", 3), ("etcd", 3), ("worker", 2), ("etcd", 1)] {
        world.scale("demo", what, count);
        let expected = [ClusterState::Ready, ClusterState::Updating];
        assert_eq!(world.states("demo", 400), expected.into(), "pool {what} of {count}");
    }
    assert_eq!(world.warnings(), [] as [&str; 0]);
    // What does not work is no update.
    world.scale("demo", "worker", 3);
    world.machines.get_mut(&"demo-worker-1".parse().unwrap()).unwrap().linked = false;
    world.run(10);
    assert_eq!(world.state("demo"), Some(ClusterState::Degraded));
}

#[test]
fn a_change_that_does_not_end_hides_no_fault() {
    let mut world = ready();
    world.run(10);
    world.budgets.insert("demo-worker-2".to_owned());
    world.scale("demo", "worker", 1);
    world.run(10);
    assert_eq!(world.state("demo"), Some(ClusterState::Updating));
    for (machine, says) in [("demo-master-1", NodeState::Degraded), ("demo-worker-2", NodeState::Failed)] {
        world.says.insert(machine.parse().unwrap(), says);
        world.run(6);
        assert_eq!(world.state("demo"), Some(ClusterState::Degraded), "{machine}");
        world.says.clear();
        world.run(40);
        assert_eq!(world.state("demo"), Some(ClusterState::Updating), "{machine}");
    }
}

#[test]
fn a_new_coordinator_calls_no_cluster_broken_before_it_has_heard_of_it() {
    let mut world = ready();
    world.run(10);
    world.restart();
    let states = world.states("demo", 80);
    assert!(!states.contains(&ClusterState::Degraded), "{states:?}");
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_machine_that_hangs_on_its_way_out_is_fenced_and_not_waited_for() {
    let mut world = ready();
    world.run(10);
    world.budgets.insert("demo-worker-2".to_owned());
    world.scale("demo", "worker", 1);
    world.run(4);
    let id = "demo-worker-2".parse().unwrap();
    world.machines.get_mut(&id).unwrap().linked = false;
    world.run(16);
    assert_eq!((pool(&world, "worker").len(), world.fences.len()), (2, 0));
    world.run(90);
    assert_eq!(world.fences, [id]);
    assert_eq!(pool(&world, "worker"), ["demo-worker-1"]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn sizes_that_make_no_sense_are_refused_with_the_reason() {
    let mut world = ready();
    let mut check = |pool: &str, count, expected: &str| {
        let request = ScalePool {
            cluster: "demo".parse().unwrap(),
            pool: PoolName(pool.to_owned()),
            count,
            drain: None,
        };
        let now = world.now();
        let error = world.core.scale_pool(now, &request).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        "etcd",
        2,
        "2 etcd members are not possible: choose 1, 3 or 5, as an even number outlives no more losses",
    );
    check(
        "worker",
        0,
        "0 machines of pool worker are not possible: a cluster has 1 to 1000 machines with role worker",
    );
    check("gpu", 1, "plan small has no pool `gpu`; it has etcd, master, worker");
    check("worker", 300, "pod network 10.244.0.0/16 has room for 256 machines, 302 are asked for");
    let other = ScalePool {
        cluster: "none".parse().unwrap(),
        pool: PoolName("etcd".to_owned()),
        count: 3,
        drain: None,
    };
    let now = world.now();
    assert!(matches!(world.core.scale_pool(now, &other), Err(CommandError::NoCluster { .. })));
}

#[test]
fn the_newest_size_wins() {
    let mut world = ready();
    world.scale("demo", "worker", 5);
    world.scale("demo", "worker", 3);
    world.run(CONVERGED);
    assert_eq!(pool(&world, "worker").len(), 3);
    let states: Vec<bool> =
        world.core.operations().map(|op| matches!(op.state, OperationState::Cancelled { .. })).collect();
    assert_eq!(states, [false, true, false]);
}

#[test]
fn asking_for_the_same_size_again_leads_to_the_operation_under_way() {
    let mut world = ready();
    let request = ScalePool {
        cluster: "demo".parse().unwrap(),
        pool: PoolName("worker".to_owned()),
        count: 5,
        drain: None,
    };
    let first = world.core.scale_pool(world.now(), &request).unwrap();
    world.carry_out(first.effects);
    let second = world.core.scale_pool(world.now(), &request).unwrap();
    assert_eq!(second.operation.id, first.operation.id);
    world.carry_out(second.effects);
    world.run(CONVERGED);
    let operation = world.core.operation(&first.operation.id).unwrap();
    assert!(matches!(operation.state, OperationState::Succeeded { .. }), "{operation:?}");
    // Asked for once more when it is reached, it is another operation, which ends at once.
    let third = world.core.scale_pool(world.now(), &request).unwrap();
    assert_ne!(third.operation.id, first.operation.id);
}

#[test]
fn another_pools_size_cancels_nothing() {
    let mut world = ready();
    world.scale("demo", "worker", 5);
    world.scale("demo", "master", 3);
    world.scale("demo", "worker", 4);
    world.run(CONVERGED);
    assert_eq!((pool(&world, "worker").len(), pool(&world, "master").len()), (4, 3));
    let ends: Vec<(&str, &OperationState)> =
        world.core.operations().filter_map(|op| Some((op.detail.as_deref()?, &op.state))).collect();
    let [(first, cancelled), (second, other), (third, newest)] = ends[..] else { panic!("{ends:?}") };
    assert_eq!(
        (first, second, third),
        ("pool worker from 2 to 5", "pool master from 1 to 3", "pool worker from 5 to 4")
    );
    assert!(matches!(cancelled, OperationState::Cancelled { .. }), "{cancelled:?}");
    for state in [other, newest] {
        assert!(matches!(state, OperationState::Succeeded { .. }), "{state:?}");
    }
}

/// Dies before each effect of a growth from one to three members, then before each of the way back.
#[test]
fn a_coordinator_killed_at_any_moment_of_a_change_of_members_finishes_it() {
    for (from, to) in [(1, 3), (3, 1)] {
        let mut start = ready();
        start.scale("demo", "etcd", from);
        start.run(CONVERGED);
        for die_before in 1.. {
            let mut world = start.clone();
            world.die_after(die_before);
            world.scale("demo", "etcd", to);
            world.run(CONVERGED + 30);
            if die_before == 1 {
                // The request was lost with its first effect; the user asks again.
                world.scale("demo", "etcd", to);
                world.run(CONVERGED);
            }
            let waits = world.core.waiting(&"demo".parse().unwrap(), world.now());
            assert_eq!(waits, [], "killed before effect {die_before} of {from} to {to}");
            assert_eq!(pool(&world, "etcd").len(), usize::from(to), "killed before effect {die_before}");
            assert_eq!(world.members[&"demo".parse().unwrap()].len(), usize::from(to));
            if world.die_before.is_some() {
                // There are no more effects to die before.
                break;
            }
        }
    }
}
