//! One run: first everything may go wrong and nothing forbidden may happen, then nothing goes wrong any more and everything
//! must become as it shall be.

use std::collections::{BTreeMap, BTreeSet};

use keelson_coordinator_core::{ClusterState, CoordinatorCore};
use keelson_model::{Blueprint, BlueprintMachine, ClusterSpec, Role};
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId};
use keelson_providers::MachineState;
use serde::Serialize;

use crate::case::Case;
use crate::check::{Checker, Violation};
use crate::world::{Ix, World};

/// How long a fleet may take until it is as it shall be, once nothing goes wrong, in milliseconds: the drain of a node may
/// take ten minutes, an etcd of five shrinks to one in four steps, and repairs of a unit are withheld for ten minutes.
const CONVERGED_MAX_MS: u64 = 3_600_000;
/// How often it is looked whether it is, in milliseconds.
const LOOK_EVERY_MS: u64 = 1_000;
/// How long it must then stay so, in milliseconds: two lists of the provider, and all looks.
const STAYS_MS: u64 = 65_000;
/// Decisions that a failure shows.
const SHOWN: usize = 40;

std::thread_local! {
    /// The seed that this thread plays.
    static PLAYED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The seed that this thread plays or has played last: what to name when its run panics.
#[must_use]
pub fn seed_in_play() -> u64 {
    PLAYED.get()
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// The last decisions before that, as lines; empty when none was broken.
    pub last: Vec<String>,
    /// Events played.
    pub events: u64,
    /// Time that passed in the world, in milliseconds.
    pub virtual_ms: u64,
    /// Machines at the end.
    pub machines: usize,
    /// How long it took, once nothing went wrong, until everything was as it shall be, in milliseconds.
    pub converged_ms: u64,
    /// One number for everything that happened.
    pub sum: u64,
}

/// Plays a case to its end.
#[must_use]
pub fn run(case: &Case) -> Outcome {
    PLAYED.set(case.seed);
    finish(case, World::new(case))
}

/// The same, and prints each decision as it comes.
#[must_use]
pub fn run_aloud(case: &Case) -> Outcome {
    PLAYED.set(case.seed);
    let mut world = World::new(case);
    world.trace.aloud = true;
    finish(case, world)
}

fn finish(case: &Case, mut world: World) -> Outcome {
    world.run_until(case.duration_ms);
    let calm_at = world.now();
    if world.violation().is_none() {
        world.calm();
        converge(&mut world, CONVERGED_MAX_MS);
    }
    let violation = world.violation().cloned();
    Outcome {
        seed: case.seed,
        last: if violation.is_some() { world.trace().last(SHOWN) } else { Vec::new() },
        violation,
        events: world.events(),
        virtual_ms: world.now(),
        machines: world.machine_count(),
        converged_ms: world.now().saturating_sub(calm_at + STAYS_MS),
        sum: world.trace().sum(),
    }
}

/// Plays on until everything is as it shall be and stays so.
fn converge(world: &mut World, within_ms: u64) {
    let end = world.now() + within_ms;
    let mut since: Option<(u64, BTreeMap<ClusterName, Generation>)> = None;
    while world.violation().is_none() {
        world.run_until(world.now() + LOOK_EVERY_MS);
        match world.unsettled().or_else(|| world.incident_open()) {
            None => {
                let plans = world.generations();
                match &since {
                    // A plan that goes on when nothing changes is no fixed point.
                    Some((_, before)) if *before != plans => since = None,
                    Some((at, _)) if at + STAYS_MS <= world.now() && world.calls_under_way() == 0 => return,
                    Some(_) => {}
                    None => since = Some((world.now(), plans)),
                }
            }
            Some(_) => since = None,
        }
        if world.now() >= end {
            let why = world.unsettled().or_else(|| world.incident_open());
            let why = why.unwrap_or_else(|| "it does not stay as it is".to_owned());
            world.violate(Checker::Liveness, why);
        }
    }
}

impl World {
    /// Plays on until everything is as it shall be; false when it is not in time.
    pub fn run_until_converged(&mut self, within_ms: u64) -> bool {
        let end = self.now() + within_ms;
        while self.now() < end && self.violation().is_none() {
            self.run_until(self.now() + LOOK_EVERY_MS);
            if self.unsettled().is_none() {
                return true;
            }
        }
        false
    }

    pub(crate) fn calls_under_way(&self) -> usize {
        self.coordinator.calls_under_way()
    }

    fn generations(&self) -> BTreeMap<ClusterName, Generation> {
        self.store.clusters.iter().map(|(name, row)| (name.clone(), row.blueprint.generation)).collect()
    }

    /// The first thing that is not as it shall be; `None` when all is.
    #[must_use]
    pub fn unsettled(&self) -> Option<String> {
        let Some(core) = self.core() else { return Some("the coordinator does not run".to_owned()) };
        let now = self.coordinator_now();
        for (name, wanted) in &self.users.wanted {
            match (wanted, core.cluster(name)) {
                (Some(_), None) => return Some(format!("{name} does not exist")),
                (None, Some(_)) => return Some(format!("{name} still exists")),
                (None, None) => {}
                (Some(_), Some(cluster)) => {
                    let state = core.cluster_state(cluster, now);
                    if state != ClusterState::Ready {
                        let waits = core.waiting(name, now);
                        let whom = waits.first().and_then(|wait| wait.machine()).map(ToString::to_string);
                        let wait = waits.first().map(ToString::to_string).unwrap_or_default();
                        return Some(format!("{name} is {state:?}: {} {wait}", whom.unwrap_or_default()));
                    }
                    let differs = self
                        .size_differs(name, &cluster.row.spec)
                        .or_else(|| plan_differs(core, &cluster.row.spec, &cluster.row.blueprint));
                    if differs.is_some() {
                        return differs;
                    }
                }
            }
        }
        if let Some(operation) = core.operations().find(|operation| !operation.is_done()) {
            return Some(format!("{} runs: {}", operation.id, operation.what()));
        }
        self.runs_unknown()
            .or_else(|| self.provider_differs())
            .or_else(|| self.exposures_differ())
            .or_else(|| self.machines_differ())
            .or_else(|| self.etcd_differs())
            .or_else(|| self.nodes_differ())
    }

    /// A fault that nobody sees any more, and that is not told to be mended.
    fn incident_open(&self) -> Option<String> {
        let open = self.core()?.machines().find(|machine| machine.row.incident.is_some())?;
        Some(format!("the incident of {} is open", open.row.id))
    }

    /// Whether a cluster has another size than was asked for last, and why.
    fn size_differs(&self, name: &ClusterName, spec: &ClusterSpec) -> Option<String> {
        let wanted = self.users.wanted.get(name)?.as_ref()?;
        let (pool, count) =
            wanted.pools.iter().find(|(pool, count)| spec.pools.get(*pool) != Some(*count))?;
        let why = self.users.refused.get(name).map(String::as_str).unwrap_or_default();
        Some(format!("pool {pool} of {name} is not of size {count}: {why}"))
    }

    fn provider_differs(&self) -> Option<String> {
        let planned: BTreeSet<(MachineId, Incarnation)> = self
            .store
            .clusters
            .values()
            .flat_map(|row| row.blueprint.machines.values())
            .map(|machine| (machine.id.clone(), machine.incarnation))
            .collect();
        let views = self.infrastructure.provider.views();
        if let Some(view) = views.iter().find(|view| view.state != MachineState::On) {
            return Some(format!("{} is {:?} at the provider", view.key.machine, view.state));
        }
        let there: BTreeSet<(MachineId, Incarnation)> =
            views.into_iter().map(|view| (view.key.machine, view.key.incarnation)).collect();
        let odd = planned.symmetric_difference(&there).next();
        odd.map(|(id, incarnation)| format!("{id} incarnation {incarnation} is only planned, or only there"))
    }

    /// Where the provider leads users: to the masters of each cluster, and nowhere for one that is gone.
    fn exposures_differ(&self) -> Option<String> {
        let exposed = self.infrastructure.provider.exposures();
        let gone = exposed.iter().find(|(cluster, ..)| !self.store.clusters.contains_key(cluster));
        if let Some((cluster, name, _)) = gone {
            return Some(format!("{name} of {cluster} is exposed, and the cluster is gone"));
        }
        self.store.clusters.values().find_map(|row| {
            let masters: BTreeSet<_> =
                row.blueprint.with_role(Role::Master).map(|machine| machine.address).collect();
            let mut own =
                exposed.iter().filter(|(cluster, name, _)| *cluster == row.spec.name && name == "api");
            let led = own
                .next()
                .map(|(.., targets)| targets.iter().map(|target| target.ip()).collect::<BTreeSet<_>>());
            let right = led.is_some_and(|led| led == masters.iter().copied().map(Into::into).collect());
            (!right).then(|| format!("users of {} are not led to its masters", row.spec.name))
        })
    }

    /// Every machine works on what its blueprint says, whatever anybody says of it.
    fn machines_differ(&self) -> Option<String> {
        self.store.clusters.values().find_map(|row| {
            let generation = row.blueprint.generation;
            row.blueprint.machines.values().find_map(|planned| {
                let ix = *self.by_id.get(&planned.id)?;
                let why = self.differs(ix, planned, generation)?;
                Some(format!("{}: {why}", planned.id))
            })
        })
    }

    fn differs(&self, ix: Ix, planned: &BlueprintMachine, generation: Generation) -> Option<String> {
        let machine = &self.machines[ix];
        let Some(agent) = &machine.agent else { return Some("no agent runs".to_owned()) };
        if agent.core.generation() != Some(generation) {
            return Some(format!("it has generation {:?} instead of {generation}", agent.core.generation()));
        }
        if let Some(unit) = machine.host.first_down() {
            return Some(format!("{unit} does not serve"));
        }
        let mut voters = self.etcds.get(&machine.cluster).into_iter().flat_map(|etcd| etcd.voters());
        let votes = voters.any(|voter| voter.address == machine.address && self.member_works(voter));
        if planned.roles.contains(&Role::Etcd) && !votes {
            return Some("its member of etcd does not work".to_owned());
        }
        (planned.roles.contains(&Role::Master) && !self.api_serves(ix))
            .then(|| "its API server does not work".to_owned())
    }

    fn etcd_differs(&self) -> Option<String> {
        self.store.clusters.values().find_map(|row| {
            let planned: BTreeSet<_> =
                row.blueprint.with_role(Role::Etcd).map(|machine| machine.address).collect();
            let etcd = self.etcds.get(&row.spec.name)?;
            let there: BTreeSet<_> = etcd.voters().map(|voter| voter.address).collect();
            (planned != there || etcd.members.len() != there.len())
                .then(|| format!("members of etcd of {} are not those of its blueprint", row.spec.name))
        })
    }

    /// A node that stays takes pods, whatever was done to it meanwhile.
    fn nodes_differ(&self) -> Option<String> {
        self.store.clusters.values().find_map(|row| {
            let kube = self.kubes.get(&row.spec.name)?;
            let planned =
                |id: &MachineId| row.blueprint.machines.get(id).is_some_and(|machine| machine.is_node());
            if let Some(left) = kube.names().find(|id| !planned(id)) {
                return Some(format!("node {left} is left over"));
            }
            let staying = row.blueprint.machines.values().filter(|machine| machine.is_node());
            let mut out = staying.filter(|machine| !kube.is_in_service(&machine.id));
            out.next().map(|machine| format!("node {} is out of service", machine.id))
        })
    }
}

/// Whether a cluster has other pools, or pools of other sizes, than its plan.
fn plan_differs(core: &CoordinatorCore, spec: &ClusterSpec, blueprint: &Blueprint) -> Option<String> {
    let Some(plan) = core.plan(&spec.plan) else { return Some(format!("{} has no plan", spec.name)) };
    let planned: BTreeMap<_, _> =
        plan.pools.iter().map(|pool| (&pool.name, usize::from(spec.count(plan, pool)))).collect();
    let mut there: BTreeMap<_, usize> = planned.keys().map(|pool| (*pool, 0)).collect();
    for machine in blueprint.machines.values() {
        *there.entry(&machine.pool).or_default() += 1;
    }
    (planned != there).then(|| format!("{} has {there:?}, and its plan {planned:?}", spec.name))
}
