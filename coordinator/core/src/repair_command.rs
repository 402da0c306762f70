//! What people may ask of repair: pause it, resume it, and repair a machine by hand, through the same guards.

use keelson_model::{FleetEvent, Hold, RepairAction, Severity};
use keelson_protocol::{ClusterName, MachineId};

use crate::command::CommandError;
use crate::effect::Effect;
use crate::guard::Asker;
use crate::row::{Counter, Row};
use crate::state::{CoordinatorCore, Now};

/// Of how much repair is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseScope {
    /// Of everything.
    Fleet,
    /// Of one cluster.
    Cluster(ClusterName),
}

/// How far a person goes against the guards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Override {
    /// Not at all.
    None,
    /// Against all but that of the quorum.
    Guards,
    /// Against that as well. The name of the cluster was typed, as a sign that its loss is understood.
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
    /// Pauses repair, until it is resumed. Faults are found and told all the same.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`].
    pub fn pause_repair(
        &mut self,
        now: Now,
        scope: &PauseScope,
        caller: &str,
    ) -> Result<Vec<Effect>, CommandError> {
        self.set_paused(now, scope, Some(now.wall))?;
        let outcome = "nothing disruptive is done on its own until it is resumed".to_owned();
        self.note_pause(now, scope, "RepairPaused", caller, outcome);
        Ok(self.take_effects())
    }

    /// Resumes repair.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`].
    pub fn resume_repair(
        &mut self,
        now: Now,
        scope: &PauseScope,
        caller: &str,
    ) -> Result<Vec<Effect>, CommandError> {
        self.set_paused(now, scope, None)?;
        self.note_pause(now, scope, "RepairResumed", caller, "repairs that were held go on".to_owned());
        Ok(self.take_effects())
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

    fn note_pause(&mut self, now: Now, scope: &PauseScope, reason: &str, caller: &str, outcome: String) {
        let cluster = match scope {
            PauseScope::Fleet => None,
            PauseScope::Cluster(name) => Some(name.clone()),
        };
        let event = self.event(now, Severity::Warning, reason);
        self.note(FleetEvent { cluster, cause: format!("{caller} asked for it"), outcome, ..event });
    }

    /// Repairs a machine because a person asks for it. The guards are asked as for any repair; a person may go against
    /// all of them but that of the quorum, and against that one by typing what would be lost.
    ///
    /// # Errors
    /// [`CommandError::NoMachine`], [`CommandError::MachineBusy`] or [`CommandError::Held`]; nothing is done then.
    pub fn repair_machine(&mut self, now: Now, request: &RepairRequest) -> Result<Vec<Effect>, CommandError> {
        let id = &request.machine;
        self.check_repair(now, request)?;
        let forced = request.over != Override::None;
        let why = if forced {
            format!("{} asked for it, against the guards", request.caller)
        } else {
            format!("{} asked for it", request.caller)
        };
        if let (Some(machine), Override::Quorum { .. }) = (self.machines.get_mut(id), &request.over) {
            machine.row.forced = true;
        }
        self.act(now, id, request.action, &why);
        self.reconcile(now);
        Ok(self.take_effects())
    }

    /// Whether [`Self::repair_machine`] would be accepted.
    ///
    /// # Errors
    /// As [`Self::repair_machine`].
    pub fn check_repair(&self, now: Now, request: &RepairRequest) -> Result<(), CommandError> {
        let id = &request.machine;
        let machine = self.machines.get(id).ok_or_else(|| CommandError::NoMachine { machine: id.clone() })?;
        let busy = |why: &str| CommandError::MachineBusy { machine: id.clone(), why: why.to_owned() };
        let planned = self.planned(&machine.row.cluster, id);
        let planned = planned.ok_or_else(|| busy("it is being removed"))?;
        if planned.leaving {
            return Err(busy("it is leaving the cluster"));
        }
        if planned.incarnation != machine.row.incarnation || machine.row.renew {
            return Err(busy("it is being made anew already"));
        }
        if let Some(action) = machine.row.acting {
            return Err(busy(&format!("{action} is under way")));
        }
        let census = self.census(now);
        let Err(hold) = self.allowed(now, id, request.action, Asker::Person, &census) else { return Ok(()) };
        let held = |hold: Hold| {
            let (machine, action) = (id.clone(), request.action);
            CommandError::Held { machine, action, hold: Box::new(hold) }
        };
        let costs_quorum = matches!(hold, Hold::Quorum { .. } | Hold::Impossible { .. });
        match &request.over {
            Override::Guards if !costs_quorum => Ok(()),
            Override::Quorum { typed } if *typed == machine.row.cluster.as_str() => Ok(()),
            _ => Err(held(hold)),
        }
    }

    /// Whether the loss of a machine is understood to be the loss of its cluster's state.
    pub(crate) fn is_forced(&self, id: &MachineId) -> bool {
        self.machines.get(id).is_some_and(|machine| machine.row.forced)
    }

    /// What [`RepairAction`]s would come to for a machine now, for people: which of them a guard holds back.
    #[must_use]
    pub fn repair_options(&self, now: Now, id: &MachineId) -> Vec<(RepairAction, Option<Hold>)> {
        let census = self.census(now);
        let check = |action| self.allowed(now, id, action, Asker::Person, &census).err();
        RepairAction::ALL.into_iter().map(|action| (action, check(action))).collect()
    }
}
