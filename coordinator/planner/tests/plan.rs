//! Plans of clusters: golden diffs, refusals, and properties that hold for every spec.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{World, spec};
use keelson_model::etcd::{EtcdCall, EtcdMember, MemberId};
use keelson_model::{
    Blueprint, BlueprintMachine, ClusterSpec, EtcdHold, Progress, Role, SeatBegins, Standing,
};
use keelson_planner::{Finding, MemberView, PlanError, Wanted, lint, next_member_call};
use keelson_protocol::MachineId;
use proptest::prelude::*;
use serde_json::json;

fn check_diff(spec: &ClusterSpec, wanted: Wanted, parent: Option<&Blueprint>, expected: &str) -> Blueprint {
    let world = World::new();
    let blueprint = world.plan(spec, wanted, parent).unwrap();
    let findings = lint(&blueprint, parent, &world.place, &world.taken);
    assert_eq!(findings, []);
    let text = blueprint.diff(parent).to_string();
    assert_eq!(text.trim_end(), expected.trim_matches('\n'), "\n{text}");
    assert_eq!(
        world.plan(spec, wanted, Some(&blueprint)).unwrap(),
        blueprint,
        "planning again changes nothing"
    );
    blueprint
}

#[test]
fn tiny_small_and_back_to_nothing() {
    check_diff(
        &spec("tiny", json!({})),
        Wanted::Present,
        None,
        "
  +   demo-node-1              etcd+master+worker in zone-a at 10.210.1.0",
    );
    let small = check_diff(
        &spec("small", json!({})),
        Wanted::Present,
        None,
        "
  +   demo-etcd-1              etcd in zone-a at 10.210.1.0
  +   demo-master-1            master in zone-b at 10.210.1.1
  +   demo-worker-1            worker in zone-c at 10.210.1.2
  +   demo-worker-2            worker in zone-a at 10.210.1.3",
    );
    check_diff(
        &spec("small", json!({})),
        Wanted::Absent,
        Some(&small),
        "
  -   demo-etcd-1              etcd in zone-a at 10.210.1.0
  -   demo-master-1            master in zone-b at 10.210.1.1
  -   demo-worker-1            worker in zone-c at 10.210.1.2
  -   demo-worker-2            worker in zone-a at 10.210.1.3",
    );
}

#[test]
fn numbers_of_machines_are_never_used_twice() {
    let four = check_diff(
        &spec("small", json!({ "workers": 3 })),
        Wanted::Present,
        None,
        "
  +   demo-etcd-1              etcd in zone-a at 10.210.1.0
  +   demo-master-1            master in zone-b at 10.210.1.1
  +   demo-worker-1            worker in zone-c at 10.210.1.2
  +   demo-worker-2            worker in zone-a at 10.210.1.3
  +   demo-worker-3            worker in zone-b at 10.210.1.4",
    );
    let leaving = check_diff(
        &spec("small", json!({ "workers": 1 })),
        Wanted::Present,
        Some(&four),
        "
  -   demo-worker-2            worker in zone-a at 10.210.1.3
  -   demo-worker-3            worker in zone-b at 10.210.1.4",
    );
    let one = steps(&spec("small", json!({ "workers": 1 })), leaving);
    let two = one.last().unwrap().clone();
    check_diff(
        &spec("small", json!({ "workers": 2 })),
        Wanted::Present,
        Some(&two),
        "
  +   demo-worker-4            worker in zone-a at 10.210.1.3",
    );
}

/// Plans step by step, each in a world where the step before was carried out, until nothing changes.
fn steps(spec: &ClusterSpec, mut from: Blueprint) -> Vec<Blueprint> {
    let world = World::new();
    let mut steps = Vec::new();
    loop {
        let next = world.plan_step(spec, Wanted::Present, Some(&from), &Progress::all_well(&from)).unwrap();
        assert_eq!(lint(&next.blueprint, Some(&from), &world.place, &world.taken), []);
        if next.blueprint == from {
            assert_eq!(next.held, None);
            return steps;
        }
        steps.push(next.blueprint.clone());
        from = next.blueprint;
        assert!(steps.len() < 50, "planning does not come to an end");
    }
}

fn diffs(first: &Blueprint, steps: &[Blueprint]) -> String {
    let mut text = String::new();
    let mut from = first;
    for step in steps {
        text.push_str(&format!("{}--\n", step.diff(Some(from))));
        from = step;
    }
    text
}

#[test]
fn ha_plans_spread_over_the_zones() {
    check_diff(
        &spec("ha", json!({})),
        Wanted::Present,
        None,
        "
  +   demo-etcd-1              etcd in zone-a at 10.210.1.0
  +   demo-etcd-2              etcd in zone-b at 10.210.1.1
  +   demo-etcd-3              etcd in zone-c at 10.210.1.2
  +   demo-master-1            master in zone-a at 10.210.1.3
  +   demo-master-2            master in zone-b at 10.210.1.4
  +   demo-master-3            master in zone-c at 10.210.1.5
  +   demo-worker-1            worker in zone-a at 10.210.1.6
  +   demo-worker-2            worker in zone-b at 10.210.1.7
  +   demo-worker-3            worker in zone-c at 10.210.1.8",
    );
    let stacked = check_diff(
        &spec("ha-stacked", json!({})),
        Wanted::Present,
        None,
        "
  +   demo-master-1            etcd+master in zone-a at 10.210.1.0
  +   demo-master-2            etcd+master in zone-b at 10.210.1.1
  +   demo-master-3            etcd+master in zone-c at 10.210.1.2
  +   demo-worker-1            worker in zone-a at 10.210.1.3
  +   demo-worker-2            worker in zone-b at 10.210.1.4
  +   demo-worker-3            worker in zone-c at 10.210.1.5",
    );
    let seats = stacked.with_role(Role::Etcd).map(|machine| machine.seat.clone().unwrap());
    for seat in seats {
        assert_eq!((seat.begins, seat.members.len()), (SeatBegins::Founding, 3));
    }
}

#[test]
fn etcd_grows_and_shrinks_one_member_at_a_time() {
    let one = World::new().plan(&spec("small", json!({})), Wanted::Present, None).unwrap();
    let up = steps(&spec("small", json!({ "pools": { "etcd": 3, "master": 3 } })), one.clone());
    assert_eq!(
        diffs(&one, &up),
        "  +   demo-etcd-2              etcd in zone-b at 10.210.1.4
  +   demo-master-2            master in zone-c at 10.210.1.5
  +   demo-master-3            master in zone-a at 10.210.1.6
--
  +   demo-etcd-3              etcd in zone-c at 10.210.1.7
--
"
    );
    let three = up.last().unwrap().clone();
    let seat = three.machines[&"demo-etcd-3".parse().unwrap()].seat.clone().unwrap();
    assert_eq!((seat.begins, seat.members.len()), (SeatBegins::Joining, 3));
    let down = steps(&spec("small", json!({})), three.clone());
    assert_eq!(
        diffs(&three, &down),
        "  -   demo-etcd-3              etcd in zone-c at 10.210.1.7
  -   demo-master-2            master in zone-c at 10.210.1.5
  -   demo-master-3            master in zone-a at 10.210.1.6
--
  -   demo-etcd-3              etcd in zone-c at 10.210.1.7
  -   demo-master-2            master in zone-c at 10.210.1.5
  -   demo-master-3            master in zone-a at 10.210.1.6
--
  -   demo-etcd-2              etcd in zone-b at 10.210.1.4
--
  -   demo-etcd-2              etcd in zone-b at 10.210.1.4
--
"
    );
}

#[test]
fn the_only_member_of_a_zone_stays_when_its_loss_would_leave_another_zone_with_a_majority() {
    let world = World::new();
    let five = json!({ "pools": { "etcd": 5 } });
    let parent = world.plan(&spec("ha", five), Wanted::Present, None).unwrap();
    let members = parent.with_role(Role::Etcd);
    let mut zones: BTreeMap<String, Vec<MachineId>> = BTreeMap::new();
    members.for_each(|member| zones.entry(member.zone.clone()).or_default().push(member.id.clone()));
    let lone = zones.values().find(|members| members.len() == 1).unwrap()[0].clone();
    let pair = zones.values().find(|members| members.len() == 2).unwrap()[0].clone();
    let goes = |broken: &MachineId| {
        let mut progress = Progress::all_well(&parent);
        progress.ready.remove(broken);
        progress.unwell.insert(broken.clone());
        let next =
            world.plan_step(&spec("ha", json!({})), Wanted::Present, Some(&parent), &progress).unwrap();
        let leaving = next.blueprint.with_role(Role::Etcd).find(|member| member.leaving);
        (leaving.map(|member| member.id.clone()), next.held)
    };
    assert_eq!(goes(&lone), (None, Some(EtcdHold::Unready { machine: lone.clone() })));
    assert_eq!(goes(&pair).0, Some(pair));
}

#[test]
fn no_member_comes_or_goes_while_another_is_not_well() {
    let world = World::new();
    let three = world.plan(&spec("ha", json!({})), Wanted::Present, None).unwrap();
    let id = |name: &str| -> MachineId { name.parse().unwrap() };
    let check = |wish: serde_json::Value, change: &dyn Fn(&mut Progress), expected: EtcdHold| {
        let mut progress = Progress::all_well(&three);
        change(&mut progress);
        let next = world.plan_step(&spec("ha", wish), Wanted::Present, Some(&three), &progress).unwrap();
        assert_eq!(next.held, Some(expected));
        assert_eq!(next.blueprint.with_role(Role::Etcd).count(), 3);
        assert_eq!(next.blueprint.staying(Role::Etcd).count(), 3);
    };
    let five = || json!({ "pools": { "etcd": 5 } });
    let unready = EtcdHold::Unready { machine: id("demo-etcd-2") };
    check(
        five(),
        &|p| {
            p.ready.remove(&id("demo-etcd-2"));
        },
        unready,
    );
    let joining = EtcdHold::Joining { machine: id("demo-etcd-2") };
    check(
        five(),
        &|p| {
            p.etcd.insert(id("demo-etcd-2"), Standing::Learner);
        },
        joining.clone(),
    );
    check(
        json!({ "pools": { "etcd": 1 } }),
        &|p| {
            p.etcd.remove(&id("demo-etcd-2"));
        },
        joining,
    );
    // The one that does not work is the first to go.
    let mut progress = Progress::all_well(&three);
    progress.ready.remove(&id("demo-etcd-1"));
    progress.unwell.insert(id("demo-etcd-1"));
    let wish = spec("ha", json!({ "pools": { "etcd": 1 } }));
    let next = world.plan_step(&wish, Wanted::Present, Some(&three), &progress).unwrap();
    assert!(next.blueprint.machines[&id("demo-etcd-1")].leaving);
}

#[test]
fn a_machine_is_made_anew_with_its_name_and_address_when_the_quorum_outlives_it() {
    let world = World::new();
    let wish = spec("ha", json!({ "pools": { "etcd": 5 } }));
    let five = world.plan(&wish, Wanted::Present, None).unwrap();
    let id = |name: &str| -> MachineId { name.parse().unwrap() };
    let renew = |broken: &[&str], renewed: &str| {
        let mut progress = Progress::all_well(&five);
        progress.ready.retain(|id| !broken.contains(&id.as_str()));
        progress.renew.insert(id(renewed));
        let next = world.plan_step(&wish, Wanted::Present, Some(&five), &progress).unwrap();
        assert_eq!(lint(&next.blueprint, Some(&five), &world.place, &world.taken), []);
        let (old, new) = (&five.machines[&id(renewed)], next.blueprint.machines[&id(renewed)].clone());
        assert_eq!((old.address, &old.zone, old.pods), (new.address, &new.zone, new.pods));
        (new.incarnation > old.incarnation, new.seat)
    };
    let (renewed, seat) = renew(&["demo-etcd-1", "demo-etcd-2"], "demo-etcd-1");
    assert!(renewed);
    let seat = seat.unwrap();
    assert_eq!((seat.begins, seat.members.len()), (SeatBegins::Joining, 5));
    assert!(!renew(&["demo-etcd-1", "demo-etcd-2", "demo-etcd-3"], "demo-etcd-1").0);
    assert!(!renew(&["demo-etcd-1", "demo-etcd-2"], "demo-etcd-3").0, "a working one would cost the quorum");
    assert!(renew(&["demo-worker-1"], "demo-worker-1").0);
}

#[test]
fn members_are_made_anew_one_in_each_step() {
    let world = World::new();
    let wish = spec("ha", json!({ "pools": { "etcd": 5 } }));
    let five = world.plan(&wish, Wanted::Present, None).unwrap();
    let lost: [MachineId; 2] = ["demo-etcd-1", "demo-etcd-2"].map(|name| name.parse().unwrap());
    let mut progress = Progress::all_well(&five);
    progress.ready.retain(|id| !lost.contains(id));
    progress.renew.extend(lost.clone());
    // The first is not even a member any more, and a person goes against all guards for the second.
    progress.etcd.insert(lost[0].clone(), Standing::Absent);
    progress.forced.insert(lost[1].clone());
    let next = world.plan_step(&wish, Wanted::Present, Some(&five), &progress).unwrap().blueprint;
    assert_eq!(lint(&next, Some(&five), &world.place, &world.taken), []);
    let renewed = |id: &&MachineId| next.machines[*id].incarnation > five.machines[*id].incarnation;
    assert_eq!(lost.iter().filter(renewed).count(), 1);
}

#[test]
fn a_member_that_is_newer_than_the_blueprint_is_never_taken_out() {
    let five =
        World::new().plan(&spec("ha", json!({ "pools": { "etcd": 5 } })), Wanted::Present, None).unwrap();
    let all: Vec<&BlueprintMachine> = five.with_role(Role::Etcd).collect();
    let call = |first: &str| {
        let mut members: Vec<EtcdMember> = (1..)
            .zip(&all)
            .map(|(number, machine)| EtcdMember {
                id: MemberId(number),
                name: machine.id.to_string(),
                address: Some(machine.address),
                learner: false,
            })
            .collect();
        members[0].name = first.to_owned();
        let everyone: BTreeSet<MachineId> = all.iter().map(|machine| machine.id.clone()).collect();
        let view = MemberView {
            blueprint: &five,
            members: &members,
            leader: Some(MemberId(5)),
            working: everyone.clone(),
            heard: everyone,
            in_use: BTreeSet::new(),
        };
        next_member_call(&view)
    };
    assert_eq!(call("demo-etcd-1"), None);
    assert_eq!(call("demo-etcd-1-i0"), Some(EtcdCall::Remove { member: MemberId(1) }));
    assert_eq!(call("demo-etcd-1-i70"), None);
}

#[test]
fn impossible_specs_are_refused_with_the_reason() {
    let check = |spec: ClusterSpec, expected: &str| {
        let error = World::new().plan(&spec, Wanted::Present, None).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        spec("tiny", json!({ "workers": 2 })),
        "plan tiny has no pool of workers of its own; choose plan small to set their number",
    );
    check(spec("small", json!({ "workers": 0 })), "0 workers are not possible: choose 1 to 1000");
    check(
        spec("ha", json!({ "pools": { "etcd": 2 } })),
        "2 etcd members are not possible: choose 1, 3 or 5, as an even number outlives no more losses",
    );
    check(
        spec("ha", json!({ "pools": { "etcd": 0 } })),
        "0 machines of pool etcd are not possible: without them the cluster would lose its state or its API",
    );
    check(
        spec("ha", json!({ "pools": { "worker": 0 } })),
        "0 machines of pool worker are not possible: a cluster has 1 to 1000 machines with role worker",
    );
    check(
        spec("ha", json!({ "pools": { "master": 9 } })),
        "9 machines of pool master are not possible: a cluster has 1 to 5 machines with role master",
    );
    check(
        spec("ha", json!({ "pools": { "gpu": 1 } })),
        "plan ha has no pool `gpu`; it has etcd, master, worker",
    );
    check(
        spec("ha", json!({ "workers": 2, "pools": { "worker": 2 } })),
        "`workers` and `pools` both set the size of pool worker; leave one of them out",
    );
    check(
        spec("small", json!({ "podNetwork": "10.244.0.0/23" })),
        "pod network 10.244.0.0/23 has room for 2 machines, 4 are asked for",
    );
    check(
        spec("small", json!({ "podNetwork": "10.210.0.0/16" })),
        "10.210.0.0/16 and 10.210.0.0/16 overlap; choose networks that do not",
    );
    check(
        spec("small", json!({ "serviceNetwork": "10.96.0.0/28" })),
        "service network 10.96.0.0/28 is too small: use a /24 or larger",
    );
    check(
        spec("small", json!({ "expose": [{ "name": "web", "nodePort": 80 }] })),
        "exposed service `web`: port 80 is no NodePort; use 30000 to 32767",
    );
}

#[test]
fn a_release_without_an_image_and_a_full_network_are_refused() {
    let mut world = World::new();
    world.release.image = None;
    let refused = world.plan(&spec("tiny", json!({})), Wanted::Present, None);
    assert!(matches!(refused, Err(PlanError::NoImage { .. })), "{refused:?}");
    let mut world = World::new();
    world.place.network = "10.210.1.0/30".parse().unwrap();
    let refused = world.plan(&spec("small", json!({})), Wanted::Present, None);
    assert!(matches!(refused, Err(PlanError::AddressesUsedUp { .. })), "{refused:?}");
}

#[test]
fn lint_finds_each_broken_rule() {
    let world = World::new();
    let good = world.plan(&spec("small", json!({})), Wanted::Present, None).unwrap();
    let check = |expected: &str, damage: &dyn Fn(&mut Blueprint)| {
        let mut broken = good.clone();
        damage(&mut broken);
        let findings = lint(&broken, None, &world.place, &world.taken);
        let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|text| text == expected), "{expected} is not among {texts:?}");
    };
    check("no machine has the role etcd", &|b| b.machines.retain(|id, _| id.as_str() != "demo-etcd-1"));
    check("demo-worker-2: 10.210.1.2 is used twice", &|b| {
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().address = [10, 210, 1, 2].into();
    });
    check("demo-worker-2: 10.9.9.9 is not ours to use", &|b| {
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().address = [10, 9, 9, 9].into();
    });
    check("demo-worker-2: its pod addresses are missing or outside", &|b| {
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().pods = None;
    });
    check("demo-worker-2: its pod addresses are used twice", &|b| {
        let pods = b.machines[&"demo-worker-1".parse().unwrap()].pods;
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().pods = pods;
    });
    check("demo-worker-2: zone moon does not exist", &|b| {
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().zone = "moon".to_owned();
    });
    check("demo-worker-2: its number was not the next one", &|b| {
        b.next_number.values_mut().for_each(|number| *number = 1);
    });
    check("demo-worker-2: its incarnation is used twice", &|b| {
        let other = b.machines[&"demo-worker-1".parse().unwrap()].incarnation;
        b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap().incarnation = other;
    });
    check("2 etcd members: the number must be odd", &|b| {
        let worker = b.machines.get_mut(&"demo-worker-2".parse().unwrap()).unwrap();
        worker.roles.insert(keelson_model::Role::Etcd);
    });
    let ha = world.plan(&spec("ha", json!({})), Wanted::Present, None).unwrap();
    let check_step = |expected: &str, damage: &dyn Fn(&mut Blueprint)| {
        let mut broken = ha.clone();
        (broken.generation, broken.parent) = (ha.generation.next(), Some(ha.generation));
        damage(&mut broken);
        let findings = lint(&broken, Some(&ha), &world.place, &world.taken);
        let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [expected]);
    };
    let machine = |b: &mut Blueprint, name: &str, change: &dyn Fn(&mut keelson_model::BlueprintMachine)| {
        change(b.machines.get_mut(&name.parse().unwrap()).unwrap());
    };
    check_step("demo-worker-3 vanishes without having left the cluster", &|b| {
        b.machines.remove(&"demo-worker-3".parse().unwrap());
    });
    check_step("etcd members change at once: demo-etcd-1, demo-etcd-2", &|b| {
        machine(b, "demo-etcd-1", &|m| m.leaving = true);
        machine(b, "demo-etcd-2", &|m| m.incarnation = keelson_protocol::Incarnation(99));
    });
    check_step("zone-b holds a majority of the etcd members", &|b| {
        machine(b, "demo-etcd-1", &|m| m.zone = "zone-b".to_owned());
    });
    check_step("demo-etcd-1: its role and its seat in etcd do not agree", &|b| {
        machine(b, "demo-etcd-1", &|m| m.seat = None);
    });
    let mut skipped = good.clone();
    skipped.generation = keelson_protocol::Generation(9);
    let findings = lint(&skipped, Some(&good), &world.place, &world.taken);
    assert!(matches!(findings[..], [Finding::Generation { .. }]), "{findings:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever sizes a cluster goes through: every blueprint is clean, planning again changes nothing, machines that
    /// stay keep everything, and no number or incarnation comes twice.
    #[test]
    fn every_history_of_sizes_is_clean(sizes in prop::collection::vec(1_u16..40, 1..6)) {
        let world = World::new();
        let mut parent: Option<Blueprint> = None;
        for size in sizes {
            let spec = spec("small", json!({ "workers": size }));
            let first = world.plan(&spec, Wanted::Present, parent.as_ref()).unwrap();
            prop_assert_eq!(lint(&first, parent.as_ref(), &world.place, &world.taken), vec![]);
            let next = steps(&spec, first.clone()).pop().unwrap_or(first);
            prop_assert_eq!(&world.plan(&spec, Wanted::Present, Some(&next)).unwrap(), &next);
            prop_assert_eq!(next.machines.len(), usize::from(size) + 2);
            if let Some(parent) = &parent {
                for (id, machine) in &next.machines {
                    match parent.machines.get(id) {
                        Some(before) => prop_assert_eq!(before, machine),
                        None => {
                            let highest = parent.machines.values().map(|m| m.incarnation).max().unwrap();
                            prop_assert!(machine.incarnation > highest);
                        }
                    }
                }
            }
            parent = Some(next);
        }
    }
}
