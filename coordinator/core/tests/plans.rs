//! Plans of users: taken, changed, followed by clusters, refused, removed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{World, small};
use keelson_coordinator_core::{ClusterState, PlanChange, PlanRefused};
use keelson_model::{ClusterSpec, Plan, PlanName, PoolName, PoolPlan, Role, Taint, TaintEffect};

/// Steps of half a second within which everything converges when nothing fails.
const CONVERGED: u32 = 60;

/// A plan `web` like the built-in `small`.
fn web() -> Plan {
    let small = Plan::built_in().into_iter().find(|plan| plan.name.0 == "small").unwrap();
    Plan { name: PlanName("web".to_owned()), description: "For the web".to_owned(), ..small }
}

fn changed(change: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = web();
    change(&mut plan);
    plan
}

fn on_web(name: &str) -> ClusterSpec {
    ClusterSpec { plan: PlanName("web".to_owned()), ..small(name) }
}

/// Cluster `demo`, which follows plan `web`, is ready.
fn ready() -> World {
    let mut world = World::new();
    world.apply_plan(web()).unwrap();
    world.create(&on_web("demo"));
    world.run(20);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world
}

fn machines(world: &World, prefix: &str) -> Vec<String> {
    world.machines.keys().map(ToString::to_string).filter(|id| id.starts_with(prefix)).collect()
}

/// What each cluster would get, as `+machine` and `-machine`.
fn diffs(change: &PlanChange) -> Vec<String> {
    let words = change.clusters.iter().flat_map(|(_, preview)| &preview.diff.changes);
    words.map(|change| format!("{}{}", change.effect.sign(), change.object)).collect()
}

fn refusal(world: &mut World, plan: Plan) -> Vec<String> {
    let before = world.disk.saved.clone();
    let refused = match world.apply_plan(plan).unwrap_err() {
        PlanRefused::Harms { harms, .. } => harms.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    };
    assert_eq!(world.disk.saved, before, "what is refused leaves no trace");
    refused
}

#[test]
fn a_cluster_follows_its_plan() {
    let mut world = ready();
    let plan = changed(|plan| {
        plan.pools[0].count = 3;
        plan.pools[2].count = 1;
        plan.pools[2].labels.insert("example.com/tier".to_owned(), "web".to_owned());
        let gpu = plan.pools[2].clone();
        let taint = Taint { key: "gpu".to_owned(), value: String::new(), effect: TaintEffect::NoSchedule };
        plan.pools.push(PoolPlan { name: PoolName("gpu".to_owned()), taints: vec![taint], ..gpu });
    });
    let expected = ["-demo-worker-2", "+demo-etcd-2", "+demo-etcd-3", "+demo-gpu-1"];
    assert_eq!(diffs(&world.core.preview_plan(&plan).unwrap()), expected);
    world.events.clear();
    assert_eq!(diffs(&world.apply_plan(plan).unwrap()), expected);
    let states = world.states("demo", CONVERGED);
    assert_eq!(states, [ClusterState::Ready, ClusterState::Updating].into(), "it works all the time");
    assert_eq!(world.warnings(), [] as [&str; 0]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(machines(&world, "demo-etcd"), ["demo-etcd-1", "demo-etcd-2", "demo-etcd-3"]);
    assert_eq!(machines(&world, "demo-worker"), ["demo-worker-1"]);
    let blueprint = &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint;
    let gpu = &blueprint.machines[&"demo-gpu-1".parse().unwrap()];
    assert_eq!((gpu.labels.len(), gpu.taints[0].to_string().as_str()), (1, "gpu:NoSchedule"));
    assert!(
        blueprint.machines[&"demo-worker-1".parse().unwrap()].labels.is_empty(),
        "it stays as it was made"
    );
    for reason in ["PlanApplied", "PlanFollowed"] {
        let event = world.events.iter().rfind(|event| event.reason == reason).unwrap();
        assert!(event.cause.contains("by admin"), "{event:?}");
    }
}

#[test]
fn what_the_spec_sets_the_plan_does_not() {
    let mut world = ready();
    world.scale("demo", "worker", 3);
    world.run(CONVERGED);
    let plan = changed(|plan| plan.pools[2].count = 1);
    assert_eq!(diffs(&world.apply_plan(plan).unwrap()), Vec::<String>::new());
    world.run(CONVERGED);
    assert_eq!(machines(&world, "demo-worker").len(), 3);
}

#[test]
fn a_plan_applied_again_changes_nothing() {
    let mut world = ready();
    let (events, saved) = (world.events.len(), world.disk.saved.clone());
    assert!(world.apply_plan(web()).unwrap().is_nothing());
    let built_in = Plan::built_in().remove(0);
    assert!(world.apply_plan(built_in).unwrap().is_nothing());
    assert_eq!((world.events.len(), &world.disk.saved), (events, &saved));
}

#[test]
fn a_change_that_would_harm_a_cluster_is_refused_and_says_which() {
    let mut world = ready();
    world.create(&ClusterSpec { pools: [(PoolName("worker".to_owned()), 4)].into(), ..on_web("edge") });
    world.run(20);
    let mut check = |plan: Plan, expected: &[&str]| assert_eq!(refusal(&mut world, plan), expected);
    let roles = "pool etcd would change from etcd to etcd+master, and its machines lose what they hold";
    check(
        changed(|plan| plan.pools[0].roles.extend([Role::Master])),
        &[&format!("cluster demo: {roles}"), &format!("cluster edge: {roles}")],
    );
    let disk = "pool worker would get disks of 10Gi instead of 20Gi, too small for what is on them";
    check(
        changed(|plan| plan.pools[2].size.disk_bytes = 10 << 30),
        &[&format!("cluster demo: {disk}"), &format!("cluster edge: {disk}")],
    );
    let gone = "pool etcd would vanish, and with its machines the cluster's etcd data";
    check(
        changed(|plan| plan.pools[0].name.0 = "state".to_owned()),
        &[&format!("cluster demo: {gone}"), &format!("cluster edge: {gone}")],
    );
    check(
        changed(|plan| plan.pools[2].name.0 = "node".to_owned()),
        &["cluster edge cannot follow: plan web has no pool `worker`; it has etcd, master, node"],
    );
    let zones = ["zone-a", "zone-b"].map(str::to_owned).to_vec();
    let narrow = "machines with the role etcd stand in 2 of 3 zones, and the loss of one would be that of the cluster: \
        name 3 at least, or none";
    check(changed(|plan| (plan.pools[0].count, plan.pools[0].zones) = (5, zones)), &[narrow]);
    let even = "2 etcd members are not possible: choose 1, 3 or 5, as an even number outlives no more losses";
    check(changed(|plan| plan.pools[0].count = 2), &[even]);
}

#[test]
fn only_plans_of_users_that_nobody_uses_can_be_removed() {
    let mut world = ready();
    let mut check = |name: &str, expected: &str| {
        assert_eq!(world.delete_plan(name).unwrap_err().to_string(), expected);
    };
    check("small", "plan small is built in and stays as it is");
    check("none", "plan none does not exist; there are tiny, small, ha, ha-stacked, web");
    check("web", "plan web is used by demo");
    let small = Plan { name: PlanName("small".to_owned()), ..web() };
    assert_eq!(refusal(&mut world, small), ["plan small is built in and stays as it is"]);
    world.delete("demo");
    assert!(world.delete_plan("web").is_err(), "the cluster is not gone yet");
    world.run(CONVERGED);
    world.delete_plan("web").unwrap();
    assert_eq!((world.core.plans().count(), world.disk.saved.plans.len()), (4, 0));
    assert!(world.reasons().contains(&"PlanDeleted"));
}

/// Dies before each effect of a change of a plan.
#[test]
fn a_plan_and_its_change_outlive_a_coordinator_that_is_killed() {
    let start = ready();
    let grown = || changed(|plan| plan.pools[2].count = 4);
    for die_before in 2.. {
        let mut world = start.clone();
        world.die_after(die_before);
        world.apply_plan(grown()).unwrap();
        let last = world.die_before.is_some();
        world.run(CONVERGED);
        world.restart();
        world.run(CONVERGED);
        assert_eq!(world.core.plan(&PlanName("web".to_owned())), Some(&grown()));
        assert_eq!(machines(&world, "demo-worker").len(), 4, "killed before effect {die_before}");
        if last {
            // The change had fewer effects than that.
            break;
        }
    }
}
