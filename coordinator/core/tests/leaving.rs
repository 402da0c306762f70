//! Machines on their way out, and sizes that cannot be reached: what keeps users served meanwhile, and what ends the wait.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use common::demo::*;
use common::{World, named};
use keelson_coordinator_core::{ClusterState, ProviderFailure, Remedy, ScalePool};
use keelson_model::{
    ClusterSpec, DrainSpec, DrainThen, OperationState, Plan, PlanName, PoolName, PoolPlan, RepairAction, Role,
};
use keelson_protocol::MachineId;
use keelson_protocol::health::NodeState;

fn scale_request(pool: &str, count: u16, drain: Option<DrainSpec>) -> ScalePool {
    ScalePool { cluster: "demo".parse().unwrap(), pool: PoolName(pool.to_owned()), count, drain }
}

fn blueprint(world: &World) -> &keelson_model::Blueprint {
    &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint
}

/// Where the endpoint outside leads.
fn endpoint(world: &World) -> Vec<SocketAddr> {
    world.core.cluster(&"demo".parse().unwrap()).unwrap().exposures["api"].targets.clone()
}

fn address(world: &World, name: &str) -> IpAddr {
    blueprint(world).machines[&id(name)].address.into()
}

/// The first machine that is on its way out.
fn until_one_leaves(world: &mut World) -> MachineId {
    loop {
        if let Some(machine) = blueprint(world).machines.values().find(|machine| machine.leaving) {
            return machine.id.clone();
        }
        world.step();
    }
}

/// A cluster whose etcd is silent, because it lost a member while another one leaves, which still works.
fn needs_the_one_that_leaves() -> (World, MachineId) {
    let mut world = ready("ha");
    world.scale("demo", "etcd", 1);
    let leaves = until_one_leaves(&mut world);
    let lost = other_member(&world, &leaves);
    world.etcd_silent = true;
    world.machines.remove(&lost);
    (world, leaves)
}

/// A member of etcd besides this one.
fn other_member(world: &World, member: &MachineId) -> MachineId {
    let mut members = blueprint(world).with_role(Role::Etcd);
    members.find(|machine| machine.id != *member).unwrap().id.clone()
}

fn assert_ready(world: &World) {
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(world));
}

/// A disruption budget keeps the pods of every node.
fn hold_budgets(world: &mut World) {
    let nodes = blueprint(world).machines.values().filter(|machine| machine.is_node());
    let nodes: Vec<String> = nodes.map(|machine| machine.id.to_string()).collect();
    world.budgets.extend(nodes);
}

#[test]
fn a_drain_that_waits_for_others_has_its_whole_time_before_it() {
    let mut world = ready("ha");
    world.scale("demo", "worker", 8);
    world.run(60);
    assert_ready(&world);
    world.events.clear();
    hold_budgets(&mut world);
    let drain = Some(DrainSpec { timeout_s: 60, then: DrainThen::Force });
    let accepted = world.core.scale_pool(world.now(), &scale_request("worker", 2, drain)).unwrap();
    world.carry_out(accepted.effects);
    world.run(600);
    assert_ready(&world);
    let mut begun: BTreeMap<MachineId, i64> = BTreeMap::new();
    let mut forced = 0;
    for event in &world.events {
        let Some(machine) = event.machine.clone() else { continue };
        match event.reason.as_str() {
            "DrainBlocked" => {
                begun.entry(machine).or_insert(event.at.0);
            }
            "DrainForced" => {
                let since = begun.get(&machine).expect("its budget was never asked");
                assert!(event.at.0 - since >= 60_000, "{machine} was forced after {} ms", event.at.0 - since);
                forced += 1;
            }
            _ => {}
        }
    }
    assert_eq!(forced, 6);
}

/// Nobody was there to ask pods to go, or to force them.
#[test]
fn the_absence_of_the_coordinator_forces_no_machine_down() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    world.scale("demo", "worker", 2);
    world.run(10);
    world.ms += 3_600_000;
    world.restart();
    world.run(150);
    assert!(world.reasons().contains(&"DrainForced"), "{:?}", world.reasons());
    world.run(60);
    assert_ready(&world);
    let leaving = world.fences.len();
    assert_eq!(leaving, 1, "{:?}", world.fences);
    let order: Vec<&str> = world.events.iter().map(|event| event.reason.as_str()).collect();
    let first = |reason: &str| order.iter().position(|other| *other == reason).unwrap();
    assert!(first("DrainForced") < first("MachineFenced"));
}

#[test]
fn what_is_left_of_a_machine_without_power_is_given_up_also_by_the_next_coordinator() {
    let mut world = ready("ha");
    world.pods_stay = true;
    world.scale("demo", "worker", 2);
    let leaves = until_one_leaves(&mut world);
    world.machines.get_mut(&leaves).unwrap().power_off();
    world.run(40);
    world.restart();
    world.run(280);
    assert_ready(&world);
    assert_eq!(pool(&world, "worker").len(), 2);
}

/// A finalizer, or a volume that is never let go.
#[test]
fn a_pod_that_never_goes_keeps_no_machine_for_ever() {
    let mut world = ready("ha");
    world.pods_stay = true;
    world.scale("demo", "worker", 2);
    world.run(2 * 1_150);
    assert_eq!((pool(&world, "worker").len(), world.fences.len()), (3, 0));
    world.run(2 * 150);
    assert_ready(&world);
    assert_eq!(pool(&world, "worker").len(), 2);
}

#[test]
fn the_time_of_a_drain_is_no_matter_of_the_wall_clock() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    world.scale("demo", "worker", 2);
    world.run(10);
    world.wall_jump_ms = 3_600_000;
    world.run(60);
    assert!(!world.reasons().contains(&"DrainForced"), "{:?}", world.reasons());
    assert_eq!(pool(&world, "worker").len(), 3);
}

#[test]
fn the_endpoint_leads_to_masters_that_leave_until_they_have_nothing_more_to_do() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    world.scale("demo", "master", 1);
    world.run(20);
    assert_eq!(endpoint(&world).len(), 3, "{:?}", waits(&world));
    world.budgets.clear();
    for _ in 0..120 {
        world.step();
        assert!(world.core.endpoint(&"demo".parse().unwrap()).is_some());
        for fenced in world.fences.iter().filter(|id| blueprint(&world).machines.contains_key(*id)) {
            let address: IpAddr = blueprint(&world).machines[fenced].address.into();
            assert!(endpoint(&world).iter().all(|target| target.ip() != address), "{fenced}");
        }
    }
    assert_ready(&world);
    assert_eq!(
        endpoint(&world).iter().map(SocketAddr::ip).collect::<Vec<_>>(),
        [address(&world, "master-1")]
    );
}

#[test]
fn a_pool_that_takes_the_place_of_another_comes_before_that_goes() {
    let mut world = World::new();
    let web = |pool: &str| {
        let small = Plan::built_in().into_iter().find(|plan| plan.name.0 == "small").unwrap();
        let mut plan = Plan { name: PlanName("web".to_owned()), ..small };
        plan.pools
            .iter_mut()
            .filter(|p| p.name.0 == "worker")
            .for_each(|p| p.name = PoolName(pool.to_owned()));
        plan
    };
    world.apply_plan(web("worker")).unwrap();
    world.create(&ClusterSpec { plan: PlanName("web".to_owned()), ..named("demo", "small") });
    world.run(140);
    assert_ready(&world);
    world.events.clear();
    refuse_creates(&mut world);
    world.apply_plan(web("node")).unwrap();
    world.run(120);
    assert!(!world.reasons().contains(&"NodeDraining"), "{:?}", world.reasons());
    let held = "leaving: most of the workers that stay do not work yet, and its pods need a place to go";
    assert!(waits(&world).iter().any(|wait| wait == held), "{:?}", waits(&world));
    world.refuse.clear();
    world.run(200);
    assert_ready(&world);
    assert_eq!((pool(&world, "worker").len(), pool(&world, "node").len()), (0, 2));
}

#[test]
fn machines_for_which_there_is_no_room_can_be_given_up() {
    for (name, before, after) in [("worker", 3, 5), ("master", 3, 5), ("etcd", 3, 5)] {
        let mut world = ready("ha");
        refuse_creates(&mut world);
        world.scale("demo", name, after);
        world.run(30);
        assert!(waits(&world).iter().any(|wait| wait.contains("no room")), "{:?}", waits(&world));
        world.scale("demo", name, before);
        world.run(30);
        assert_ready(&world);
        assert_eq!(blueprint(&world).machines.len(), 9);
        assert!(world.core.operations().all(|operation| operation.is_done()));
    }
}

#[test]
fn the_node_of_a_machine_that_was_never_made_again_goes_with_it() {
    let mut world = ready("ha");
    world.no_room.insert(id("worker-2"));
    world.machines.remove(&id("worker-2"));
    world.run(60);
    assert!(waits(&world).iter().any(|wait| wait.contains("no room")), "{:?}", waits(&world));
    world.scale("demo", "worker", 2);
    world.run(60);
    assert_ready(&world);
    let nodes = &world.nodes[&"demo".parse().unwrap()];
    assert!(!nodes.contains_key("demo-worker-2") && nodes.len() == 5, "{:?}", nodes.keys());
}

#[test]
fn a_lost_member_is_replaced_though_there_is_no_room_for_a_new_one() {
    let mut world = ready("ha");
    world.no_room.insert(id("etcd-4"));
    world.scale("demo", "etcd", 5);
    world.run(30);
    world.machines.remove(&id("etcd-2"));
    world.run(120);
    assert!(world.machines.contains_key(&id("etcd-2")), "{:?}", waits(&world));
    assert_eq!(world.members[&"demo".parse().unwrap()].len(), 3);
    world.no_room.clear();
    world.run(200);
    assert_ready(&world);
    assert_eq!(world.members[&"demo".parse().unwrap()].len(), 5);
}

/// The one that was to go is the leader and has lost its power; another one is gone with its disk.
#[test]
fn a_member_that_leaves_and_that_the_quorum_needs_gets_its_power_back() {
    for plan in ["ha", "ha-stacked"] {
        let mut world = ready(plan);
        let pool_name = if plan == "ha" { "etcd" } else { "master" };
        hold_budgets(&mut world);
        world.scale("demo", pool_name, 1);
        let leaves = until_one_leaves(&mut world);
        (world.etcd_silent, world.budgets) = (true, BTreeSet::new());
        let lost = other_member(&world, &leaves);
        world.machines.remove(&lost);
        world.machines.get_mut(&leaves).unwrap().power_off();
        world.run(120);
        assert!(world.machines[&leaves].on, "{plan}: {:?}", waits(&world));
        world.etcd_silent = false;
        world.run(400);
        assert_ready(&world);
        assert_eq!(pool(&world, pool_name).len(), 1);
        assert!(!world.nodes[&"demo".parse().unwrap()].contains_key(leaves.as_str()));
    }
}

#[test]
fn a_provider_that_has_refused_for_good_is_asked_again() {
    let mut world = ready("ha");
    world
        .refuse
        .push_back(ProviderFailure { remedy: Remedy::Person, text: "the quota is used up".to_owned() });
    let accepted = world.core.scale_pool(world.now(), &scale_request("worker", 4, None)).unwrap();
    let id = accepted.operation.id.clone();
    world.carry_out(accepted.effects);
    world.run(60);
    let blocked = world.core.operation(&id).unwrap().state.clone();
    assert!(matches!(&blocked, OperationState::Blocked { why } if why.contains("quota")), "{blocked:?}");
    world.run(240);
    assert_ready(&world);
    assert!(matches!(world.core.operation(&id).unwrap().state, OperationState::Succeeded { .. }));
}

#[test]
fn a_plan_whose_zones_put_a_majority_of_etcd_into_one_is_refused_in_words_of_its_own() {
    let mut world = World::new();
    let ha = Plan::built_in().into_iter().find(|plan| plan.name.0 == "ha").unwrap();
    let mut plan = Plan { name: PlanName("narrow".to_owned()), ..ha };
    let mut narrow = plan.clone();
    narrow.pools[0].zones = vec!["zone-a".to_owned(), "zone-b".to_owned()];
    let why = world.apply_plan(narrow).unwrap_err().to_string();
    assert!(why.contains("machines with the role etcd stand in 2 of 3 zones"), "{why}");
    // Three zones, and two of three members in one of them: that is seen when machines are placed.
    let more = PoolPlan { name: PoolName("more".to_owned()), count: 1, ..plan.pools[0].clone() };
    (plan.pools[0].count, plan.pools[0].zones) = (2, vec!["zone-a".to_owned()]);
    plan.pools.push(PoolPlan { zones: vec!["zone-b".to_owned(), "zone-c".to_owned()], ..more });
    world.apply_plan(plan).unwrap();
    let spec = ClusterSpec { plan: PlanName("narrow".to_owned()), ..named("demo", "ha") };
    let why = world.core.preview_create(&spec).unwrap_err().to_string();
    assert!(why.contains("let the plan's etcd pools use more zones"), "{why}");
}

#[test]
fn a_size_that_others_have_made_impossible_waits_for_room() {
    let mut world = World::in_network("10.210.1.0/28");
    world.create(&named("demo", "ha"));
    world.run(140);
    let room = |world: &World| {
        let spec = named("probe", "tiny");
        world.core.preview_create(&spec).is_ok()
    };
    // All but two addresses are taken.
    let mut others = Vec::new();
    while room(&world) {
        let name = format!("other-{}", others.len());
        world.create(&named(&name, "tiny"));
        others.push(name);
    }
    for name in [others.pop().unwrap(), others.pop().unwrap()] {
        world.delete(&name);
    }
    world.run(60);
    world.events.clear();
    let accepted = world.core.scale_pool(world.now(), &scale_request("etcd", 5, None)).unwrap();
    world.carry_out(accepted.effects);
    world.create(&named("rival", "tiny"));
    world.run(120);
    let told = world.events.iter().filter(|event| event.reason == "PlanImpossible").count();
    assert_eq!(told, 1, "{:?}", world.reasons());
    let generation = blueprint(&world).generation;
    world.run(20);
    assert_eq!(blueprint(&world).generation, generation, "what cannot be planned plans nothing");
    assert!(waits(&world).iter().any(|wait| wait.contains("no free address left")), "{:?}", waits(&world));
    // What is there is mended all the same.
    world.machines.remove(&id("worker-2"));
    world.run(120);
    assert!(world.machines.contains_key(&id("worker-2")), "{:?}", waits(&world));
    world.delete("rival");
    world.run(120);
    assert_ready(&world);
    assert_eq!(pool(&world, "etcd").len(), 5);
}

#[test]
fn a_preview_names_nothing_that_goes_anyway() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    world.scale("demo", "worker", 2);
    world.run(10);
    let preview = world.core.preview_scale(&scale_request("master", 5, None)).unwrap();
    let words: Vec<String> =
        preview.diff.changes.iter().map(|change| change.effect.sign().to_owned()).collect();
    assert_eq!(words, ["+", "+"], "{:?}", preview.diff);
}

/// Somebody asks for a cluster that is there, with an endpoint that cannot be changed for now.
#[test]
fn an_endpoint_that_cannot_be_changed_stays_where_it_is() {
    let mut world = ready("ha");
    world.refuse_expose = Some(ProviderFailure { remedy: Remedy::Retry, text: "no".to_owned() });
    world.scale("demo", "master", 5);
    world.run(60);
    assert!(world.core.endpoint(&"demo".parse().unwrap()).is_some());
    assert!(waits(&world).iter().any(|wait| wait.contains("outside address: no")), "{:?}", waits(&world));
    world.refuse_expose = None;
    world.run(80);
    assert_ready(&world);
    assert_eq!(endpoint(&world).len(), 5);
}

/// Just after its start the coordinator has heard nobody, and somebody's users may be served all the same.
#[test]
fn a_master_that_may_be_the_last_one_is_kept_though_it_is_not_heard() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    world.scale("demo", "master", 1);
    world.run(20);
    let leaving: Vec<MachineId> = {
        let machines = blueprint(&world).machines.values();
        machines.filter(|machine| machine.leaving).map(|machine| machine.id.clone()).collect()
    };
    let stays = blueprint(&world).staying(Role::Master).next().unwrap().id.clone();
    world.machines.get_mut(&stays).unwrap().linked = false;
    world.budgets.clear();
    for id in &leaving {
        world.machines.get_mut(id).unwrap().linked = false;
        world.cut_off.insert(id.clone());
    }
    world.restart();
    world.run(100);
    assert!(world.fences.iter().all(|id| !leaving.contains(id)), "{:?}", world.fences);
}

/// Its agent has given up, and its API server may answer all the same.
#[test]
fn a_master_that_may_be_the_last_one_is_kept_though_it_is_given_up() {
    let mut world = ready("ha");
    world.scale("demo", "master", 2);
    world.run(100);
    hold_budgets(&mut world);
    let drain = Some(DrainSpec { timeout_s: 30, then: DrainThen::Wait });
    let accepted = world.core.scale_pool(world.now(), &scale_request("master", 1, drain)).unwrap();
    world.carry_out(accepted.effects);
    let leaves = until_one_leaves(&mut world);
    world.run(120);
    world.fences.clear();
    let stays = blueprint(&world).staying(Role::Master).next().unwrap().id.clone();
    world.says.extend([(stays.clone(), NodeState::Failed), (leaves.clone(), NodeState::Failed)]);
    world.run(600);
    assert!(!world.fences.contains(&leaves), "{:?}", waits(&world));
    // When the one that stays works again, the other can go.
    world.says.remove(&stays);
    world.run(400);
    assert_ready(&world);
    assert_eq!(blueprint(&world).with_role(Role::Master).count(), 1);
}

/// It waits for an API server to remove its node, and the repair of that one must not wait for it.
#[test]
fn a_machine_on_its_way_out_without_power_holds_no_repair() {
    let mut world = ready("ha");
    world.evacuates_slowly = true;
    world.scale("demo", "master", 2);
    let leaves = until_one_leaves(&mut world);
    world.run(30);
    assert_eq!(world.fences, std::slice::from_ref(&leaves));
    let hangs = blueprint(&world).staying(Role::Master).next().unwrap().id.clone();
    world.machines.get_mut(&hangs).unwrap().linked = false;
    world.run(40);
    assert_eq!(world.fences, [leaves, hangs], "{:?}", waits(&world));
}

/// Its member is out: it takes no part any more, however long its pods stay.
#[test]
fn a_lost_member_is_replaced_while_one_that_is_out_is_drained() {
    let mut world = ready("ha-stacked");
    world.scale("demo", "master", 5);
    world.run(200);
    assert_ready(&world);
    hold_budgets(&mut world);
    let drain = Some(DrainSpec { timeout_s: 86_400, then: DrainThen::Wait });
    let accepted = world.core.scale_pool(world.now(), &scale_request("master", 3, drain)).unwrap();
    world.carry_out(accepted.effects);
    let leaves = until_one_leaves(&mut world);
    world.run(40);
    let out = |world: &World| {
        let address = blueprint(world).machines[&leaves].address;
        world.members[&"demo".parse().unwrap()].iter().all(|member| member.address != Some(address))
    };
    assert!(out(&world), "its member is still there");
    let lost = blueprint(&world).staying(Role::Etcd).next().unwrap().id.clone();
    let before = world.core.machine(&lost).unwrap().row.incarnation;
    world.machines.remove(&lost);
    world.run(200);
    assert!(world.core.machine(&lost).unwrap().row.incarnation > before, "{:?}", waits(&world));
    assert!(world.machines[&leaves].on);
}

/// What comes after it would stay for ever.
#[test]
fn services_are_taken_back_only_after_they_were_exposed() {
    let mut world = World::new();
    world.answers_late = true;
    world.create(&named("demo", "small"));
    world.run(4);
    assert!(!world.exposed.is_empty());
    world.delete("demo");
    world.run(10);
    assert!(!world.exposed.is_empty(), "it was taken back while it was being exposed");
    world.answers_late = false;
    world.run(60);
    assert!(world.exposed.is_empty() && world.machines.is_empty());
}

/// The cluster was never ready as a whole, and has users all the same.
#[test]
fn the_only_master_that_works_begins_anew_only_when_another_one_works() {
    let mut world = World::new();
    world.no_room.extend([id("master-2"), id("master-3")]);
    world.create(&named("demo", "ha"));
    world.run(200);
    world.scale("demo", "etcd", 5);
    world.run(120);
    let behind =
        |world: &World| waits(world).iter().any(|wait| wait.contains("gets its config after demo-master-2"));
    assert!(behind(&world), "{:?}", waits(&world));
    world.no_room.clear();
    world.run(200);
    assert_ready(&world);
}

/// Nobody heard that it has its power, and the quorum comes back with it.
#[test]
fn a_member_that_was_given_its_power_keeps_it_though_the_coordinator_died_meanwhile() {
    let (mut world, leaves) = needs_the_one_that_leaves();
    (world.lose_power_answers, world.boot_ms) = (true, 5_000);
    world.machines.get_mut(&leaves).unwrap().power_off();
    while !world.machines[&leaves].on {
        world.step();
    }
    world.fences.clear();
    world.restart();
    (world.lose_power_answers, world.etcd_silent) = (false, false);
    world.run(30);
    assert!(!world.fences.contains(&leaves), "{:?}", world.fences);
    world.run(500);
    assert_ready(&world);
}

/// What etcd listed last says that it is no member, and that was before.
#[test]
fn a_member_that_was_added_a_moment_ago_is_taken_out_though_its_machine_is_given_up() {
    for (heard, dies) in [(false, false), (false, true), (true, false), (true, true)] {
        gives_up_an_added_member(1, heard, dies);
        gives_up_an_added_member(2, heard, dies);
    }
}

/// Scales etcd back when one more was added to `voters`: whether that was `heard` already, or the coordinator `dies`.
fn gives_up_an_added_member(voters: usize, heard: bool, dies: bool) {
    let mut world = ready("small");
    let members = |world: &World| world.members[&"demo".parse().unwrap()].len();
    world.scale("demo", "etcd", 3);
    world.etcd_answers_late = true;
    while members(&world) <= voters {
        world.etcd_answer_once();
        world.step();
    }
    if heard {
        // The next list is on its way.
        world.etcd_answer_once();
    }
    world.scale("demo", "etcd", 1);
    if dies {
        world.step();
        world.restart();
    }
    world.etcd_answers_late = false;
    world.run(120);
    assert_ready(&world);
    assert_eq!(members(&world), 1, "{:?}", world.reasons());
    world.scale("demo", "etcd", 3);
    world.run(120);
    assert_ready(&world);
    assert_eq!(members(&world), 3);
}

/// Two calls at once could arrive in any order, and the older one would win.
#[test]
fn the_provider_is_told_of_new_targets_only_after_it_has_answered_for_the_old_ones() {
    let mut world = ready("ha");
    let leads_to = |world: &World| world.exposed[&("demo".parse().unwrap(), "api".to_owned())].len();
    let confirmed =
        |world: &World| world.core.cluster(&"demo".parse().unwrap()).unwrap().exposures["api"].set;
    world.answers_late = true;
    world.scale("demo", "master", 4);
    world.run(2);
    assert_eq!((leads_to(&world), confirmed(&world)), (4, false));
    world.scale("demo", "master", 5);
    world.run(20);
    assert_eq!(endpoint(&world).len(), 5);
    assert_eq!(leads_to(&world), 4, "a second call went out before the first was answered");
    world.answer_once();
    assert!(!confirmed(&world), "the answer to the old targets counts for the new ones");
    world.run(2);
    assert_eq!(leads_to(&world), 5);
    world.answers_late = false;
    world.run(120);
    assert!(confirmed(&world));
    assert_ready(&world);
}

/// Its power is taken away by a guard's leave, and counts against the budget of the next repair.
#[test]
fn power_taken_from_a_machine_on_its_way_out_is_an_act_like_any_other() {
    let mut world = ready("ha");
    world.scale("demo", "worker", 2);
    world.pods_stay = true;
    world.run(10);
    let leaves = until_one_leaves(&mut world);
    let name = leaves.as_str().strip_prefix("demo-").unwrap().to_owned();
    freeze(&mut world, &name);
    while world.fences.is_empty() {
        assert_eq!(acts(&world, &name), []);
        world.step();
    }
    assert_eq!(world.fences, [leaves]);
    assert_eq!(acts(&world, &name), [RepairAction::PowerCycle]);
    world.restart();
    assert_eq!(acts(&world, &name), [RepairAction::PowerCycle], "not on disk");
}

#[test]
fn a_drain_that_a_budget_blocks_holds_no_repair() {
    let mut world = ready("ha");
    hold_budgets(&mut world);
    let drain = Some(DrainSpec { timeout_s: 3_600, then: DrainThen::Wait });
    let accepted = world.core.scale_pool(world.now(), &scale_request("worker", 2, drain)).unwrap();
    world.carry_out(accepted.effects);
    world.run(20);
    let leaves = until_one_leaves(&mut world);
    let hangs = if leaves == id("worker-1") { "worker-2" } else { "worker-1" };
    freeze(&mut world, hangs);
    world.run(60);
    assert_eq!(world.fences, [id(hangs)], "{:?}", waits(&world));
    assert!(world.machines[&leaves].on);
}

/// After a start nobody knows who the members are, and etcd is silent for want of just this vote.
#[test]
fn a_member_that_leaves_gets_its_power_back_when_etcd_has_not_been_heard_for_long() {
    let (mut world, leaves) = needs_the_one_that_leaves();
    world.machines.get_mut(&leaves).unwrap().power_off();
    world.restart();
    world.run(240);
    assert!(!world.machines[&leaves].on, "nobody asked etcd long enough");
    world.run(240);
    assert!(world.machines[&leaves].on, "{:?}", waits(&world));
    world.etcd_silent = false;
    world.run(500);
    assert_ready(&world);
    assert_eq!(pool(&world, "etcd").len(), 1);
}
