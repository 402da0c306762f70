//! From spec to blueprint, step by step: the next plan is made when the one in force was carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use keelson_model::{
    Blueprint, BlueprintMachine, ClusterSpec, FleetEvent, LinkState, MachinePhase, Plan, Progress, Role,
    Severity,
};
use keelson_planner::{Finding, PlanInput, Planned, Wanted, lint, plan};
use keelson_protocol::health::{HealthReport, UnitState};
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId};

use crate::guard::last_repair;
use crate::limits::{RENEW_REFUSED_MAX, RENEW_UNKNOWN_MAX, SESSION_SETTLES};
use crate::repair::needs_fence;
use crate::row::{Counter, Row};
use crate::state::{Cluster, CoordinatorCore, Machine, Now};

/// Most steps of one plan: etcd goes from one to five members and a machine leaves in two steps each.
const PLAN_STEPS_MAX: usize = 32;
/// The unit of an etcd member.
const ETCD_UNIT: &str = "etcd.service";
/// The unit of an API server, as the planner names it.
const API_UNIT: &str = "kube-apiserver.service";

impl CoordinatorCore {
    /// Makes the next step of a cluster's plan, while there is one.
    pub(crate) fn reconcile_plan(&mut self, now: Now, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name).filter(|cluster| cluster.plan_due) else { return };
        let wanted = if cluster.row.wanted { Wanted::Present } else { Wanted::Absent };
        let planned = self.plan_cluster(&cluster.row.spec, wanted, Some(&cluster.row.blueprint));
        match planned {
            Ok(planned) => {
                let lacking = planned.lacking.as_ref().map(ToString::to_string);
                self.take_plan(now, name, planned);
                self.lacks(now, name, lacking);
            }
            Err(why) => {
                let waiting = self.to_renew(&cluster.row.blueprint);
                self.lacks(now, name, Some(why));
                waiting.iter().for_each(|id| self.give_back(now, id));
            }
        }
    }

    /// The spec cannot be planned in full for this reason, or can be again. Told once.
    fn lacks(&mut self, now: Now, name: &ClusterName, why: Option<String>) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let before = std::mem::replace(&mut cluster.lacking, why.clone());
        if let Some(why) = why.filter(|why| before.as_ref() != Some(why)) {
            let event = self.event(now, Severity::Warning, "PlanImpossible");
            let outcome = "what cannot be planned waits".to_owned();
            self.note(FleetEvent { cluster: Some(name.clone()), cause: why, outcome, ..event });
        }
    }

    fn take_plan(&mut self, now: Now, name: &ClusterName, planned: Planned) {
        let refused = self.to_renew(&planned.blueprint);
        let renews = !refused.is_empty();
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        // More is to come when something is on its way out or in, or could not be done yet.
        let joins = planned.blueprint.machines.values().any(|machine| machine.leaving);
        cluster.plan_due = joins || renews || planned.held.is_some() || planned.lacking.is_some();
        cluster.plan_due |= planned.blueprint != cluster.row.blueprint;
        cluster.held = planned.held;
        self.set_blueprint(now, name, planned.blueprint);
        for id in refused {
            self.give_back(now, &id);
        }
    }

    /// A member that the plan does not let go gets its power back after a while, with its disk: without power it helps
    /// nobody, and while it waits no other machine is repaired.
    fn give_back(&mut self, now: Now, id: &MachineId) {
        let machine = self.machines.get(id);
        let cluster = machine.and_then(|machine| self.clusters.get(&machine.row.cluster));
        // To give power back an old list is enough.
        let needed = |cluster: &Cluster| {
            cluster.etcd.members.is_some() && self.quorum(cluster).outlives_loss(id).is_err()
        };
        let known = self.listed_without(id) || cluster.is_some_and(needed);
        // One that has been without power for long was perhaps asked for a moment ago.
        let since = machine.and_then(|machine| {
            let asked = last_repair(machine).map(|act| act.at);
            machine.row.fenced.map(|fenced| asked.map_or(fenced, |asked| asked.max(fenced)))
        });
        // Where nothing can be known its power may be what is missing for that.
        let patience = if known { RENEW_REFUSED_MAX } else { RENEW_UNKNOWN_MAX };
        if since.is_some_and(|since| now.wall.since(since) >= patience) {
            let held = cluster.and_then(|cluster| cluster.held.as_ref());
            let held = held.map_or_else(String::new, |hold| format!(": {hold}"));
            self.call_off(now, id, &format!("its cluster cannot stand that it is made anew now{held}"));
        }
    }

    /// Says that a cluster's plan may have a next step.
    pub(crate) fn plan_soon(&mut self, name: &ClusterName) {
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.plan_due = true;
            self.touched.insert(name.clone());
        }
    }

    /// Plans a cluster and lints the result.
    pub(crate) fn plan_cluster(
        &self,
        spec: &ClusterSpec,
        wanted: Wanted,
        parent: Option<&Blueprint>,
    ) -> Result<Planned, String> {
        let progress = parent.map(|parent| self.progress(parent)).unwrap_or_default();
        self.plan_with(self.plan_of(spec)?, spec, wanted, parent, &progress)
    }

    /// The last step of a plan in a world where nothing fails from now on: what a change comes to.
    pub(crate) fn plan_to_the_end(
        &self,
        spec: &ClusterSpec,
        parent: &Blueprint,
    ) -> Result<Blueprint, String> {
        self.follow_to_the_end(self.plan_of(spec)?, spec, parent)
    }

    /// As [`Self::plan_to_the_end`], as if `plan` were the plan that the spec names.
    pub(crate) fn follow_to_the_end(
        &self,
        plan: &Plan,
        spec: &ClusterSpec,
        parent: &Blueprint,
    ) -> Result<Blueprint, String> {
        let mut last = parent.clone();
        let unwell = unwell(parent, &self.working(parent));
        for _ in 0..PLAN_STEPS_MAX {
            let progress = Progress { unwell: unwell.clone(), ..Progress::all_well(&last) };
            let step = self.plan_with(plan, spec, Wanted::Present, Some(&last), &progress)?;
            if let Some(lacking) = step.lacking {
                return Err(lacking.to_string());
            }
            if step.blueprint == last {
                return Ok(last);
            }
            last = step.blueprint;
        }
        Err(format!("the plan does not come to an end within {PLAN_STEPS_MAX} steps, please report this"))
    }

    fn plan_of(&self, spec: &ClusterSpec) -> Result<&Plan, String> {
        self.plan(&spec.plan).ok_or_else(|| format!("plan {} does not exist", spec.plan))
    }

    fn plan_with(
        &self,
        plan_of: &Plan,
        spec: &ClusterSpec,
        wanted: Wanted,
        parent: Option<&Blueprint>,
        progress: &Progress,
    ) -> Result<Planned, String> {
        let release = self.settings.releases.releases.get(&spec.release);
        let release = release.ok_or_else(|| format!("release {} does not exist", spec.release))?;
        let taken = &self.addresses;
        // After the highest one in use: an address that was just given back rests for as long as possible.
        let highest = taken.last_key_value().map(|(address, _)| u32::from(*address).saturating_add(1));
        let next_address = highest.map_or(self.settings.place.first_address, Ipv4Addr::from);
        let counted = self.counters.get(&Counter::Incarnation).copied().unwrap_or(1);
        // A step that is only looked at has not moved the counter.
        let used =
            parent.and_then(|parent| parent.machines.values().map(|m| u64::from(m.incarnation.0) + 1).max());
        let next = counted.max(used.unwrap_or(1));
        let input = PlanInput {
            spec,
            wanted,
            plan: plan_of,
            release,
            parent,
            progress,
            place: &self.settings.place,
            taken,
            next_address,
            next_incarnation: Incarnation(u32::try_from(next).unwrap_or(u32::MAX)),
        };
        let planned = plan(&input).map_err(|error| error.to_string())?;
        let findings = lint(&planned.blueprint, parent, &self.settings.place, taken);
        match findings.first() {
            None => Ok(planned),
            Some(finding @ Finding::ZoneMajority { .. }) => Err(format!(
                "{finding}, whose loss would cost the state: let the plan's etcd pools use more zones"
            )),
            Some(finding) => Err(format!("the plan breaks a rule of its own, please report this: {finding}")),
        }
    }

    /// How far a cluster is on its way to `blueprint`.
    pub(crate) fn progress(&self, blueprint: &Blueprint) -> Progress {
        let released =
            |machine: &&BlueprintMachine| machine.leaving && self.is_released(&blueprint.cluster, machine);
        let renew = self.to_renew(blueprint);
        // What was listed before they lost their power says nothing of those that would have to do without them.
        let member = |id: &MachineId| blueprint.machines[id].roles.contains(&Role::Etcd);
        let outdated = renew.iter().any(|id| member(id) && !self.listed_without(id));
        let ready = self.working(blueprint);
        Progress {
            etcd: if outdated { BTreeMap::new() } else { self.standings(&blueprint.cluster) },
            unwell: unwell(blueprint, &ready),
            ready,
            released: blueprint
                .machines
                .values()
                .filter(released)
                .map(|machine| machine.id.clone())
                .collect(),
            forced: renew.iter().filter(|id| self.is_forced(id)).cloned().collect(),
            renew,
        }
    }

    /// Machines that are due to be made anew. One that leaves is let go instead: its node has still to be removed.
    fn to_renew(&self, blueprint: &Blueprint) -> BTreeSet<MachineId> {
        let renew = |planned: &&BlueprintMachine| {
            let machine = self.machines.get(&planned.id);
            let same = machine.filter(|machine| machine.row.incarnation == planned.incarnation);
            same.is_some_and(|machine| machine.row.renew && is_powerless(machine))
        };
        let staying = blueprint.machines.values().filter(|planned| !planned.leaving);
        staying.filter(renew).map(|planned| planned.id.clone()).collect()
    }

    /// The machine of a blueprint, when it is that one and not the one before it.
    pub(crate) fn made(&self, planned: &BlueprintMachine) -> Option<&Machine> {
        self.machines.get(&planned.id).filter(|machine| machine.row.incarnation == planned.incarnation)
    }

    /// Whether a machine of a blueprint is heard and ready, with whatever config it has.
    pub(crate) fn works(&self, planned: &BlueprintMachine) -> bool {
        self.made(planned).is_some_and(|machine| machine.is_ready_with(Generation(0)))
    }

    /// Whether a machine serves others with its etcd member or its API server, as far as is known: it is heard and says
    /// otherwise, or it may.
    pub(crate) fn may_serve_others(&self, planned: &BlueprintMachine) -> bool {
        let says_no =
            || [Role::Etcd, Role::Master].iter().all(|role| self.serves(planned, *role) == Serves::No);
        self.made(planned).is_some_and(|machine| !machine.is_heard() || !says_no())
    }

    /// Whether a machine serves others in a role. One that is not heard is not counted on. Only the newest report of a session
    /// that has stood for a while says anything: an agent that has just started has seen nothing yet.
    pub(crate) fn serves(&self, planned: &BlueprintMachine, role: Role) -> Serves {
        let is_heard = self.made(planned).is_some_and(Machine::is_heard);
        if !is_heard || !planned.roles.contains(&role) {
            return Serves::No;
        }
        let Some(report) = self.says(planned) else { return Serves::Unknown };
        let name = if role == Role::Etcd { ETCD_UNIT } else { API_UNIT };
        match state_of(report, name) {
            Some(UnitState::Healthy) => Serves::Yes,
            Some(UnitState::Starting) => Serves::Unknown,
            _ => Serves::No,
        }
    }

    /// What a machine that is heard says of its units now; `None` while it has not had the time.
    pub(crate) fn says(&self, planned: &BlueprintMachine) -> Option<&HealthReport> {
        self.newest_report(self.made(planned).filter(|_| self.stands(planned))?)
    }

    /// A machine's report, when it is no older than its newest heartbeat. A report may overtake the heartbeat that names it.
    fn newest_report<'a>(&self, machine: &'a Machine) -> Option<&'a HealthReport> {
        let beat = machine.session.and_then(|session| self.sessions.get(&session)?.heartbeat);
        machine.health.as_deref().filter(|report| beat.is_some_and(|beat| report.sequence >= beat.report))
    }

    /// Whether a machine speaks, and its session has stood for so long that its agent has seen what there is to see.
    pub(crate) fn stands(&self, planned: &BlueprintMachine) -> bool {
        let old = |machine: &Machine| {
            matches!(machine.link, LinkState::Connected { since, .. }
                if self.last_look.wall.since(since) >= SESSION_SETTLES)
        };
        self.made(planned).is_some_and(|machine| machine.speaks() && old(machine))
    }

    /// Whether a machine is heard and says that its etcd member serves.
    pub(crate) fn member_works(&self, planned: &BlueprintMachine) -> bool {
        self.made(planned).filter(|machine| machine.speaks()).is_some_and(|machine| {
            match self.newest_report(machine) {
                Some(report) => state_of(report, ETCD_UNIT) == Some(&UnitState::Healthy),
                // Nothing has come since its heartbeat, which says whether all is well.
                None => machine.is_ready_with(Generation(0)),
            }
        })
    }

    /// Whether a machine that is heard says that its etcd member does not serve.
    pub(crate) fn member_fails(&self, planned: &BlueprintMachine) -> bool {
        self.says(planned).is_some_and(|report| state_of(report, ETCD_UNIT) != Some(&UnitState::Healthy))
    }

    /// Machines of a blueprint that do what they are for; of those with an etcd member, the member alone counts.
    pub(crate) fn working(&self, blueprint: &Blueprint) -> BTreeSet<MachineId> {
        let works = |planned: &&BlueprintMachine| match planned.roles.contains(&Role::Etcd) {
            true => self.member_works(planned),
            false => self.works(planned),
        };
        blueprint.machines.values().filter(works).map(|machine| machine.id.clone()).collect()
    }

    /// The ones that work and whose power is not about to be taken away: what a quorum may count on in a moment as well.
    pub(crate) fn lasting(&self, blueprint: &Blueprint) -> BTreeSet<MachineId> {
        let mut lasting = self.working(blueprint);
        lasting.retain(|id| self.machines.get(id).is_some_and(|machine| !needs_fence(machine)));
        lasting
    }

    /// Machines of a blueprint that are heard.
    pub(crate) fn heard(&self, blueprint: &Blueprint) -> BTreeSet<MachineId> {
        let heard = |planned: &&BlueprintMachine| self.made(planned).is_some_and(Machine::is_heard);
        blueprint.machines.values().filter(heard).map(|machine| machine.id.clone()).collect()
    }

    /// Makes `blueprint` the plan in force, when it is another one.
    pub(crate) fn set_blueprint(&mut self, now: Now, name: &ClusterName, blueprint: Blueprint) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        if cluster.row.blueprint == blueprint {
            return;
        }
        cluster.row.blueprint = blueprint;
        cluster.planned = Some(now.wall);
        let row = Row::Cluster(Box::new(cluster.row.clone()));
        self.rows.push(row);
        self.reserve_incarnations(name);
        self.take_addresses(name);
        self.touched.insert(name.clone());
    }
}

/// Whether a machine serves others, in the order in which machines that are not ready get what they lack: who serves nobody
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Serves {
    No,
    Unknown,
    Yes,
}

/// Machines of a blueprint that are not among those that work.
fn unwell(blueprint: &Blueprint, working: &BTreeSet<MachineId>) -> BTreeSet<MachineId> {
    blueprint.machines.keys().filter(|id| !working.contains(*id)).cloned().collect()
}

/// Whether a machine has no power for certain, or was never there. One that is to be made anew and is heard again before
/// that keeps what it is.
fn is_powerless(machine: &Machine) -> bool {
    let never_there = matches!(
        machine.row.phase,
        MachinePhase::Planned
            | MachinePhase::Creating { .. }
            | MachinePhase::Retrying { .. }
            | MachinePhase::Refused { .. }
    );
    never_there || machine.row.fenced.is_some()
}

/// Whether a machine's last report says that its etcd member serves, however old that is.
pub(crate) fn said_that_its_member_serves(machine: &Machine) -> bool {
    machine.health.as_deref().is_some_and(|report| state_of(report, ETCD_UNIT) == Some(&UnitState::Healthy))
}

fn state_of<'a>(report: &'a HealthReport, name: &str) -> Option<&'a UnitState> {
    report.units.iter().find(|unit| unit.name == name).map(|unit| &unit.state)
}
