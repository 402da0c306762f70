//! Users: each wish is repeated until it is granted, as a person would who sees that nothing came of it.

use std::collections::BTreeMap;

use keelson_coordinator_core::{
    Accepted, Asked, CommandError, CoordinatorCore, CreateCluster, Machine, Override, PlanRefused,
    RepairRequest, ScalePool,
};
use keelson_model::{ClusterSpec, DrainSpec, Hold, Plan, PlanName, PoolName, RepairAction, Verdict};
use keelson_protocol::{ClusterName, MachineId};

use crate::case::Wish;
use crate::coordinator::material;
use crate::trace::Decision;
use crate::world::{SimEvent, World};

/// Part of the machines that the coordinator replaces by itself when they are lost, in percent; one at least.
const LOST_PERCENT_MAX: usize = 25;

/// How often users look at what became of their wishes, in milliseconds.
pub(crate) const USER_EVERY_MS: u64 = 15_000;

/// What users want.
#[derive(Debug, Default)]
pub(crate) struct Users {
    pub(crate) wanted: BTreeMap<ClusterName, Option<Wanted>>,
    /// Why a wish was refused for good, by cluster.
    pub(crate) refused: BTreeMap<ClusterName, String>,
    /// Plans of their own, as they shall be.
    plans: BTreeMap<PlanName, Plan>,
    /// Why one of these was refused last.
    plans_refused: BTreeMap<PlanName, String>,
}

/// A cluster that somebody wants.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    spec: ClusterSpec,
    pub(crate) pools: BTreeMap<PoolName, u16>,
    drain: Option<DrainSpec>,
}

impl World {
    pub(crate) fn wish(&mut self, number: usize) {
        let wish = self.wishes[number].what.clone();
        self.wishes_for(&wish);
    }

    /// A user wants something from now on.
    pub(crate) fn wishes_for(&mut self, wish: &Wish) {
        self.note(Decision::User(wish.to_string()));
        let name = match wish {
            Wish::Create { cluster, plan, workers } => {
                let mut spec: ClusterSpec = serde_json::from_value(serde_json::json!({
                    "name": cluster, "plan": plan, "release": "1.37.2",
                }))
                .expect("that is a spec");
                spec.plan = PlanName(plan.clone());
                spec.workers = *workers;
                let wanted = Wanted { spec, pools: BTreeMap::new(), drain: None };
                self.users.wanted.insert(cluster.clone(), Some(wanted));
                cluster
            }
            Wish::Scale { cluster, pool, count, drain } => {
                if let Some(Some(wanted)) = self.users.wanted.get_mut(cluster) {
                    wanted.pools.insert(PoolName(pool.clone()), *count);
                    wanted.drain = drain.or(wanted.drain);
                }
                cluster
            }
            Wish::Plan { plan } => {
                self.users.plans.insert(plan.name.clone(), (**plan).clone());
                return self.apply_plans();
            }
            Wish::Delete { cluster } => {
                self.users.wanted.insert(cluster.clone(), None);
                cluster
            }
        };
        self.ask_again(&name.clone());
    }

    pub(crate) fn users_look(&mut self) {
        self.queue.push(self.now + USER_EVERY_MS, SimEvent::Users);
        self.apply_plans();
        let names: Vec<ClusterName> = self.users.wanted.keys().cloned().collect();
        names.iter().for_each(|name| self.ask_again(name));
        self.resume_repair();
        if !self.stormy {
            self.operator_looks();
        }
    }

    /// Several disks lost at once, with their machines or without, look like a store that is away for a while, so the meltdown
    /// guard keeps what is left of them. That they are lost is for a person to say, one machine after the other, through all
    /// other guards.
    fn operator_looks(&mut self) {
        let Some(core) = &self.coordinator.core else { return };
        let lost = |machine: &&Machine| {
            matches!(machine.verdict, Verdict::AgentDown | Verdict::Missing)
                && matches!(CoordinatorCore::hold_of(machine), Some(Hold::Meltdown { .. }))
        };
        // What is held although not so much is lost is no case for a person: it must come back by itself.
        let many = |machine: &&Machine| self.is_much_lost(core, machine);
        // The next one only when the last one works.
        let free = |machine: &&Machine| self.taken_of(&machine.row.cluster).next().is_none();
        let now = self.coordinator_now();
        let ask = |machine: &Machine| RepairRequest {
            machine: machine.row.id.clone(),
            action: RepairAction::Recreate,
            over: Override::Guards,
            caller: "an operator".to_owned(),
        };
        let lost = core.machines().filter(lost).filter(many).filter(free);
        let next = lost.map(ask).find(|request| core.check_repair(now, request).is_ok());
        if let Some(request) = next {
            self.asks_for_repair(request.machine, request.action, request.over);
        }
    }

    /// Whether more machines are lost for good, in a machine's cluster, its zone or the fleet, than the coordinator may replace by
    /// itself.
    fn is_much_lost(&self, core: &CoordinatorCore, machine: &Machine) -> bool {
        let zone = |machine: &Machine| {
            self.store.planned(&machine.row.id, machine.row.incarnation).map(|planned| planned.zone.clone())
        };
        let is_lost = |machine: &Machine| {
            let ix = self.by_id.get(&machine.row.id).map(|ix| &self.machines[*ix]);
            ix.is_none_or(|ix| ix.kept.is_none() || ix.incarnation != machine.row.incarnation)
        };
        // One on its way out that we switched off counts for nobody.
        let goes = |machine: &Machine| {
            let planned = self.store.planned(&machine.row.id, machine.row.incarnation);
            machine.row.fenced.is_some() && planned.is_some_and(|planned| planned.leaving)
        };
        let much = |alike: &dyn Fn(&Machine) -> bool| {
            let counts = |other: &&Machine| other.row.enrolled_key.is_some() && !goes(other) && alike(other);
            let enrolled = core.machines().filter(counts);
            let (lost, all) =
                enrolled.fold((0, 0), |(lost, all), other| (lost + usize::from(is_lost(other)), all + 1));
            lost > (all * LOST_PERCENT_MAX / 100).max(1)
        };
        much(&|other| other.row.cluster == machine.row.cluster)
            || much(&|other| zone(other) == zone(machine))
            || much(&|_| true)
    }

    /// A person asks for the repair of a machine.
    pub(crate) fn asks_for_repair(&mut self, machine: MachineId, action: RepairAction, over: Override) {
        if self.coordinator.frozen_until > self.now {
            return;
        }
        let now = self.coordinator_now();
        let Some(core) = &mut self.coordinator.core else { return };
        let request = RepairRequest { machine, action, over, caller: "an operator".to_owned() };
        let answer = core.repair_machine(now, &request);
        let said = answer.as_ref().err().map_or_else(|| "done".to_owned(), ToString::to_string);
        let over = if request.over == Override::None { "" } else { ", against the guards" };
        self.note(Decision::User(format!("{}: {action}{over}: {said}", request.machine)));
        self.carry_out(answer.unwrap_or_default());
    }

    /// Who asked for what is being done to a machine.
    pub(crate) fn asked_of(&self, id: &MachineId) -> Asked {
        self.store.machines.get(id).map_or(Asked::Nobody, |row| row.asked)
    }

    /// Asks for whatever of a user's wish is not in the coordinator's books.
    fn ask_again(&mut self, name: &ClusterName) {
        if self.coordinator.frozen_until > self.now {
            return;
        }
        let now = self.coordinator_now();
        let wanted = self.users.wanted.get(name).cloned().flatten();
        let Some(core) = &mut self.coordinator.core else { return };
        let known = core.cluster(name).map(|cluster| (cluster.row.wanted, cluster.row.spec.clone()));
        let answer = match (wanted, known) {
            (None, Some((true, _))) => core.delete_cluster(now, name),
            (None, _) | (Some(_), Some((false, _))) => return,
            (Some(wanted), None) => {
                let request = CreateCluster { spec: wanted.spec, material: material(), idempotency: None };
                core.create_cluster(now, request)
            }
            (Some(wanted), Some((true, spec))) => {
                let mut open =
                    wanted.pools.into_iter().filter(|(pool, count)| spec.pools.get(pool) != Some(count));
                let Some((pool, count)) = open.next() else { return };
                core.scale_pool(now, &ScalePool { cluster: name.clone(), pool, count, drain: wanted.drain })
            }
        };
        self.take_answer(name, answer);
    }

    /// Asks for whatever plan is not as it shall be.
    fn apply_plans(&mut self) {
        if self.coordinator.frozen_until > self.now {
            return;
        }
        let now = self.coordinator_now();
        for (name, plan) in self.users.plans.clone() {
            let Some(core) = &mut self.coordinator.core else { return };
            if core.plan(&name) == Some(&plan) {
                continue;
            }
            match core.apply_plan(now, plan, "a user") {
                Ok((_, effects)) => {
                    self.users.plans_refused.remove(&name);
                    self.carry_out(effects);
                }
                Err(error) => {
                    let why = match &error {
                        PlanRefused::Harms { harms, .. } => format!("{error}: {}", harms[0]),
                        _ => error.to_string(),
                    };
                    if self.users.plans_refused.get(&name) != Some(&why) {
                        self.note(Decision::User(format!("plan {name}: refused: {why}")));
                        self.users.plans_refused.insert(name, why);
                    }
                }
            }
        }
    }

    fn take_answer(&mut self, name: &ClusterName, answer: Result<Accepted, CommandError>) {
        match answer {
            Ok(accepted) => {
                self.users.refused.remove(name);
                self.carry_out(accepted.effects);
            }
            Err(error) => {
                let why = error.to_string();
                if self.users.refused.get(name) != Some(&why) {
                    self.note(Decision::User(format!("{name}: refused: {why}")));
                    self.users.refused.insert(name.clone(), why);
                }
            }
        }
    }
}
