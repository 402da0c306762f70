//! Plans of clusters: golden diffs, refusals, and properties that hold for every spec.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{World, spec};
use keelson_model::{Blueprint, ClusterSpec};
use keelson_planner::{Finding, PlanError, Wanted, lint};
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
    let one = check_diff(
        &spec("small", json!({ "workers": 1 })),
        Wanted::Present,
        Some(&four),
        "
  -   demo-worker-2            worker in zone-a at 10.210.1.3
  -   demo-worker-3            worker in zone-b at 10.210.1.4",
    );
    check_diff(
        &spec("small", json!({ "workers": 2 })),
        Wanted::Present,
        Some(&one),
        "
  +   demo-worker-4            worker in zone-a at 10.210.1.3",
    );
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
            let next = world.plan(&spec, Wanted::Present, parent.as_ref()).unwrap();
            prop_assert_eq!(lint(&next, parent.as_ref(), &world.place, &world.taken), vec![]);
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
