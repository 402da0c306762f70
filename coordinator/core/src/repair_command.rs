//! What people may ask of repair: pause it, resume it, and repair a machine by hand, through the same guards.

use keelson_model::{
    BlueprintMachine, FleetEvent, Hold, MachinePhase, RepairAction, RepairPreview, Role, Severity,
};
use keelson_protocol::{ClusterName, MachineId};

use crate::command::CommandError;
use crate::detect::Census;
use crate::effect::Effect;
use crate::guard::Asker;
use crate::row::{Asked, Counter, PauseNote, Row};
use crate::state::{CoordinatorCore, Machine, Now};

/// Of how much repair is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseScope {
    /// Of everything.
    Fleet,
    /// Of one cluster.
    Cluster(ClusterName),
}

/// A request to pause repair, or to resume it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseRequest {
    /// Of how much.
    pub scope: PauseScope,
    /// Who asks, for the record.
    pub caller: String,
    /// Why, in their own words.
    pub reason: Option<String>,
}

impl PauseRequest {
    /// A request without a reason.
    #[must_use]
    pub fn new(scope: PauseScope, caller: &str) -> Self {
        Self { scope, caller: caller.to_owned(), reason: None }
    }
}

/// How far a person goes against the guards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Override {
    /// Not at all.
    None,
    /// Against those of meltdown, of one at a time and of the last API server.
    Guards,
    /// Against those that may cost the cluster as well. The name of the cluster was typed, as a sign that its loss is understood.
    Quorum {
        /// What was typed.
        typed: String,
    },
}

/// A request to repair a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRequest {
    /// The machine.
    pub machine: MachineId,
    /// What is to be done.
    pub action: RepairAction,
    /// How far against the guards.
    pub over: Override,
    /// Who asks, for the record.
    pub caller: String,
}

impl CoordinatorCore {
    /// Pauses repair, until it is resumed. Faults are found and told all the same. What is paused already stays paused
    /// since when it was, with the newer caller and reason.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`].
    pub fn pause_repair(&mut self, now: Now, request: &PauseRequest) -> Result<Vec<Effect>, CommandError> {
        let since = self.paused_since(&request.scope).unwrap_or(now.wall);
        self.set_paused(now, &request.scope, Some(since))?;
        let note = PauseNote { by: request.caller.clone(), reason: request.reason.clone() };
        self.note_pauser(&request.scope, Some(note));
        let outcome = "nothing disruptive is done on its own until it is resumed".to_owned();
        self.note_pause(now, request, "RepairPaused", outcome);
        Ok(self.take_effects())
    }

    /// Resumes repair. What was not paused leaves no event.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`].
    pub fn resume_repair(&mut self, now: Now, request: &PauseRequest) -> Result<Vec<Effect>, CommandError> {
        let paused = self.paused_since(&request.scope).is_some();
        self.set_paused(now, &request.scope, None)?;
        if !paused {
            return Ok(self.take_effects());
        }
        self.note_pauser(&request.scope, None);
        self.note_pause(now, request, "RepairResumed", "repairs that were held go on".to_owned());
        Ok(self.take_effects())
    }

    /// Since when repair of this much is paused.
    #[must_use]
    pub fn paused_since(&self, scope: &PauseScope) -> Option<keelson_protocol::WallTime> {
        match scope {
            PauseScope::Fleet => self.repair_paused,
            PauseScope::Cluster(name) => self.clusters.get(name)?.row.repair_paused,
        }
    }

    /// Who has paused repair of this much, and why.
    #[must_use]
    pub fn paused_by(&self, scope: &PauseScope) -> Option<&PauseNote> {
        self.pauses.get(&scope.cluster())
    }

    /// A cluster that is gone takes its note with it: the next one of its name is another one.
    pub(crate) fn forget_pause(&mut self, name: &ClusterName) {
        self.note_pauser(&PauseScope::Cluster(name.clone()), None);
    }

    fn note_pauser(&mut self, scope: &PauseScope, note: Option<PauseNote>) {
        let cluster = scope.cluster();
        let before = match &note {
            Some(note) => self.pauses.insert(cluster.clone(), note.clone()),
            None => self.pauses.remove(&cluster),
        };
        if before != note {
            self.rows.push(Row::Pause(cluster, note));
        }
    }

    fn set_paused(
        &mut self,
        now: Now,
        scope: &PauseScope,
        since: Option<keelson_protocol::WallTime>,
    ) -> Result<(), CommandError> {
        match scope {
            PauseScope::Fleet => {
                self.repair_paused = since;
                let value = since.map_or(0, |since| u64::try_from(since.0).unwrap_or(1));
                self.set_counter(Counter::RepairPaused, value);
            }
            PauseScope::Cluster(name) => {
                let cluster = self.clusters.get_mut(name);
                let cluster = cluster.ok_or_else(|| CommandError::NoCluster { name: name.clone() })?;
                cluster.row.repair_paused = since;
                let row = Row::Cluster(Box::new(cluster.row.clone()));
                self.rows.push(row);
                self.touched.insert(name.clone());
            }
        }
        self.reconcile(now);
        Ok(())
    }

    fn note_pause(&mut self, now: Now, request: &PauseRequest, reason: &str, outcome: String) {
        let event = self.event(now, Severity::Warning, reason);
        let why = request.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        let cause = format!("{} asked for it{why}", request.caller);
        self.note(FleetEvent { cluster: request.scope.cluster(), cause, outcome, ..event });
    }

    /// Repairs a machine because a person asks for it. The guards are asked as for any repair; a person may go against
    /// those of meltdown, of one at a time and of the last API server, and against those that may cost the cluster by typing its
    /// name.
    ///
    /// # Errors
    /// [`CommandError::NoMachine`], [`CommandError::MachineBusy`], [`CommandError::NoUse`] or [`CommandError::Held`];
    /// nothing is done then.
    pub fn repair_machine(&mut self, now: Now, request: &RepairRequest) -> Result<Vec<Effect>, CommandError> {
        let id = &request.machine;
        let against = self.preview_repair(now, request)?.against;
        // What a person has accepted is what held now, and nothing that may hold in weeks.
        let costs = against.as_ref().is_some_and(Hold::costs_cluster);
        let asked = match &request.over {
            Override::None => Asked::Person,
            Override::Quorum { .. } if costs => Asked::PersonDespiteQuorum,
            Override::Guards | Override::Quorum { .. } => Asked::PersonDespiteGuards,
        };
        let why = match &against {
            Some(hold) => format!("{} asked for it, although {hold}", request.caller),
            None => format!("{} asked for it", request.caller),
        };
        let forced = is_loss(request.action, against.as_ref());
        if let Some(machine) = self.machines.get_mut(id).filter(|_| forced) {
            machine.row.forced = true;
        }
        self.act(now, id, request.action, asked, &why);
        self.reconcile(now);
        Ok(self.take_effects())
    }

    /// Whether [`Self::repair_machine`] would be accepted.
    ///
    /// # Errors
    /// As [`Self::repair_machine`].
    pub fn check_repair(&self, now: Now, request: &RepairRequest) -> Result<(), CommandError> {
        self.preview_repair(now, request).map(|_| ())
    }

    /// What [`Self::repair_machine`] would come to.
    ///
    /// # Errors
    /// As [`Self::repair_machine`].
    pub fn preview_repair(&self, now: Now, request: &RepairRequest) -> Result<RepairPreview, CommandError> {
        self.preview_repair_in(now, request, &self.census(now))
    }

    fn preview_repair_in(
        &self,
        now: Now,
        request: &RepairRequest,
        census: &Census,
    ) -> Result<RepairPreview, CommandError> {
        let (id, action) = (&request.machine, request.action);
        let machine = self.machines.get(id).ok_or_else(|| CommandError::NoMachine { machine: id.clone() })?;
        let planned = self.free_for_repair(machine)?;
        if let Some(why) = no_use(machine, action) {
            return Err(CommandError::NoUse { machine: id.clone(), action, why });
        }
        let against = self.allowed(now, id, action, Asker::Person, census).err();
        if let Some(hold) = &against {
            let goes_on = match &request.over {
                // What it would cost is not known yet.
                _ if matches!(hold, Hold::Starting { .. }) => false,
                Override::None => false,
                Override::Guards => !hold.costs_cluster(),
                Override::Quorum { typed } => *typed == machine.row.cluster.as_str(),
            };
            if !goes_on {
                let hold = Box::new(hold.clone());
                return Err(CommandError::Held { machine: id.clone(), action, hold });
            }
        }
        // The plan would not carry it out, and the machine would lose its power for nothing.
        if !is_loss(action, against.as_ref())
            && let Err(hold) = self.plan_allows(id, action)
        {
            return Err(CommandError::Held { machine: id.clone(), action, hold: Box::new(hold) });
        }
        Ok(RepairPreview {
            machine: id.clone(),
            cluster: machine.row.cluster.clone(),
            action,
            pods: planned.is_node(),
            only_api: self
                .clusters
                .get(&machine.row.cluster)
                .is_some_and(|c| self.is_only_api_of(now, c, planned)),
            etcd_member: self.etcd_member_of(planned),
            against,
        })
    }

    /// What keeps the plan from carrying a repair out, whoever goes against the guards.
    #[must_use]
    pub fn plan_hold(&self, id: &MachineId, action: RepairAction) -> Option<Hold> {
        self.plan_allows(id, action).err()
    }

    /// The plan of a machine that nothing is being done to.
    fn free_for_repair(&self, machine: &Machine) -> Result<&BlueprintMachine, CommandError> {
        let id = &machine.row.id;
        let busy = |why: &str| CommandError::MachineBusy { machine: id.clone(), why: why.to_owned() };
        let planned = self.planned(&machine.row.cluster, id);
        let planned = planned.ok_or_else(|| busy("it is being removed"))?;
        if planned.leaving {
            return Err(busy("it is leaving the cluster"));
        }
        if planned.incarnation != machine.row.incarnation || machine.row.renew {
            return Err(busy("it is being made anew already"));
        }
        match machine.row.acting {
            Some(action) => Err(busy(&format!("{action} is under way"))),
            None => Ok(planned),
        }
    }

    /// The name of a machine's etcd member, as etcd has said it; the machine's own when it was not asked yet.
    fn etcd_member_of(&self, planned: &BlueprintMachine) -> Option<String> {
        if !planned.roles.contains(&Role::Etcd) {
            return None;
        }
        let members = self.clusters.values().filter(|c| c.row.blueprint.machines.contains_key(&planned.id));
        let mut members = members.flat_map(|cluster| cluster.etcd.members.iter().flatten());
        let member = members.find(|member| member.address == Some(planned.address));
        let name = member.map(|member| member.name.clone()).filter(|name| !name.is_empty());
        Some(name.unwrap_or_else(|| planned.id.to_string()))
    }

    /// Whether the loss of a machine is understood to be the loss of its cluster's state.
    pub(crate) fn is_forced(&self, id: &MachineId) -> bool {
        self.machines.get(id).is_some_and(|machine| machine.row.forced)
    }

    /// What holds a machine's repair back that is due; `None` when nothing does, or when none is due.
    #[must_use]
    pub fn hold_of(machine: &Machine) -> Option<&Hold> {
        machine.repair.as_ref()?.hold.as_ref()
    }

    /// Which [`RepairAction`]s a person could have done to a machine now, and why not the others.
    #[must_use]
    pub fn repair_options(&self, now: Now, id: &MachineId) -> Vec<(RepairAction, Result<(), CommandError>)> {
        let census = self.census(now);
        let check = |action| {
            let (machine, caller) = (id.clone(), String::new());
            let request = RepairRequest { machine, action, over: Override::None, caller };
            self.preview_repair_in(now, &request, &census).map(|_| ())
        };
        RepairAction::ALL.into_iter().map(|action| (action, check(action))).collect()
    }
}

impl PauseScope {
    /// The cluster, when it is one.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterName> {
        match self {
            Self::Fleet => None,
            Self::Cluster(name) => Some(name.clone()),
        }
    }
}

/// Whether to go against `against` is to take the state of the cluster for lost: the plan asks no more then.
fn is_loss(action: RepairAction, against: Option<&Hold>) -> bool {
    action == RepairAction::Recreate && against.is_some_and(Hold::costs_cluster)
}

/// Why it would be of no use to do this to a machine; `None` when it may be.
fn no_use(machine: &Machine, action: RepairAction) -> Option<String> {
    let missing = matches!(machine.row.phase, MachinePhase::Missing { .. });
    let why = match machine.row.phase {
        _ if action == RepairAction::Recreate => return None,
        MachinePhase::Planned
        | MachinePhase::Creating { .. }
        | MachinePhase::Retrying { .. }
        | MachinePhase::Refused { .. } => "it is not made yet, and is switched on when it is",
        _ if action != RepairAction::PowerOn && !missing => return None,
        MachinePhase::Off { .. } => return None,
        MachinePhase::Missing { .. } => {
            "the infrastructure does not know it, so there is nothing to switch on: recreate makes it anew"
        }
        MachinePhase::Booting { .. } | MachinePhase::Enrolled { .. } => {
            "it has power already: power-cycle takes its power away and gives it back"
        }
        MachinePhase::Deleting { .. } => "it is being removed",
    };
    Some(why.to_owned())
}
