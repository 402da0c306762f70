//! Members of clusters' etcd: looked at while something about them changes, and changed one at a time.

use std::collections::BTreeMap;

use keelson_model::etcd::{EtcdAnswer, EtcdCall, EtcdMember, MemberId};
use keelson_model::{BlueprintMachine, FleetEvent, Role, SeatBegins, Severity, Standing};
use keelson_planner::{MemberView, next_member_call};
use keelson_protocol::{ClusterName, MachineId, MonoTime};

use crate::effect::{CallId, Effect, SessionId};
use crate::limits::{ETCD_CALLS_MAX, ETCD_FAILING_TOLD_AFTER, ETCD_LOOK_INTERVAL};
use crate::state::{Cluster, CoordinatorCore, Now};

/// What is known of a cluster's etcd.
#[derive(Debug, Clone, Default)]
pub struct EtcdWatch {
    /// Its members, as it listed them last; `None` when it was not asked since the coordinator started.
    pub members: Option<Vec<EtcdMember>>,
    /// Which of them leads.
    pub leader: Option<MemberId>,
    /// That all calls fail, since when, and whether that was told.
    failing: Option<EtcdFailing>,
    /// Changes of its members that fail one after the other; that it lists them says nothing about these.
    refusing: Option<EtcdFailing>,
    /// Whether nothing was changed since [`Self::members`] was listed.
    fresh: bool,
    /// When it was asked for that list.
    listed: Option<MonoTime>,
    /// Whether a member may have been added since then. Its machine may be given up meanwhile, for the list says that it is no
    /// member.
    adding: bool,
    call: Option<CallId>,
    /// When that call was made.
    asked: Option<MonoTime>,
    /// When it may be asked again.
    after: Option<MonoTime>,
    /// Since when members that leave have been the only ones that a master may know.
    pub(crate) in_use_since: Option<MonoTime>,
    /// When a member that served said last that it does no more.
    pub(crate) fell: Option<MonoTime>,
}

/// Calls to etcd that all fail.
#[derive(Debug, Clone, Copy)]
struct EtcdFailing {
    since: MonoTime,
    told: bool,
}

impl CoordinatorCore {
    /// Asks a cluster's etcd for its members, or for the change of them that is due.
    pub(crate) fn reconcile_etcd(&mut self, now: Now, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name).filter(|cluster| cluster.row.wanted) else { return };
        let due = cluster.etcd.call.is_none() && cluster.etcd.after.is_none_or(|after| after <= now.mono);
        if !due || !self.etcd_matters(cluster) || self.etcd_calls.len() >= ETCD_CALLS_MAX {
            return;
        }
        let Some(session) = self.way_to_etcd(cluster) else { return };
        self.note_members_in_use(now, name);
        let Some(cluster) = self.clusters.get(name) else { return };
        let view = self.member_view(cluster);
        let change = view.as_ref().filter(|_| cluster.etcd.fresh).and_then(next_member_call);
        self.call_etcd(now, name, session, change.unwrap_or(EtcdCall::Look));
    }

    fn call_etcd(&mut self, now: Now, name: &ClusterName, session: SessionId, call: EtcdCall) {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.etcd_calls.insert(id, (name.clone(), call.clone()));
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.etcd.adding |= matches!(call, EtcdCall::AddLearner { .. });
            (cluster.etcd.call, cluster.etcd.asked) = (Some(id), Some(now.mono));
            cluster.etcd.fresh = false;
        }
        self.effects.push(Effect::Etcd { id, session, cluster: name.clone(), call });
    }

    /// Whether somebody waits for a word of the cluster's etcd.
    pub(crate) fn etcd_matters(&self, cluster: &Cluster) -> bool {
        let standings = self.standings(&cluster.row.spec.name);
        let moves = |machine: &BlueprintMachine| {
            let joins = machine.seat.as_ref().is_some_and(|seat| seat.begins == SeatBegins::Joining);
            machine.leaving && standings.get(&machine.id) != Some(&Standing::Absent)
                || joins && standings.get(&machine.id) != Some(&Standing::Voter)
        };
        let machines = || cluster.row.blueprint.with_role(Role::Etcd);
        let strays = |members: &Vec<EtcdMember>| {
            members.iter().any(|member| !machines().any(|machine| keelson_planner::is_of(member, machine)))
        };
        // After a start they are listed once: the coordinator before may have begun what nothing else tells of.
        let stray = match &cluster.etcd.members {
            Some(members) => strays(members),
            None => cluster.row.was_in_use(),
        };
        cluster.held.is_some() || cluster.etcd.adding || stray || machines().any(moves)
    }

    /// A session with a machine whose member works; one that votes and stays, when there is one. The list may be old, and name
    /// nobody who works.
    fn way_to_etcd(&self, cluster: &Cluster) -> Option<SessionId> {
        let working = self.working(&cluster.row.blueprint);
        let standings = self.standings(&cluster.row.spec.name);
        let works = |machine: &&BlueprintMachine| working.contains(&machine.id);
        let votes = |machine: &BlueprintMachine| {
            standings.get(&machine.id).is_none_or(|standing| *standing == Standing::Voter)
        };
        let machines = cluster.row.blueprint.with_role(Role::Etcd).filter(works);
        let machine = machines.min_by_key(|machine| (!votes(machine), machine.leaving))?;
        self.machines.get(&machine.id)?.session
    }

    fn member_view<'a>(&self, cluster: &'a Cluster) -> Option<MemberView<'a>> {
        Some(MemberView {
            blueprint: &cluster.row.blueprint,
            members: cluster.etcd.members.as_deref()?,
            leader: cluster.etcd.leader,
            working: self.lasting(&cluster.row.blueprint),
            heard: self.heard(&cluster.row.blueprint),
            in_use: self.members_in_use(&cluster.row.spec.name),
        })
    }

    /// Standing of each machine with the role etcd, as far as the etcd cluster has said it.
    pub(crate) fn standings(&self, name: &ClusterName) -> BTreeMap<MachineId, Standing> {
        let Some(cluster) = self.clusters.get(name) else { return BTreeMap::new() };
        let Some(members) = &cluster.etcd.members else { return BTreeMap::new() };
        let machines = cluster.row.blueprint.with_role(Role::Etcd);
        machines.map(|machine| (machine.id.clone(), keelson_planner::standing(machine, members))).collect()
    }

    /// Whether etcd has listed its members since a machine has no power: then the rest works without it, and it may be made anew.
    pub(crate) fn listed_without(&self, id: &MachineId) -> bool {
        let Some(machine) = self.machines.get(id) else { return false };
        let cluster = self.clusters.get(&machine.row.cluster);
        cluster
            .and_then(|cluster| cluster.etcd.listed)
            .is_some_and(|listed| machine.off_since.is_none_or(|off| off <= listed))
    }

    pub(crate) fn on_etcd(&mut self, now: Now, id: CallId, result: Result<EtcdAnswer, String>) {
        let Some((name, call)) = self.etcd_calls.remove(&id) else { return };
        let Some(cluster) = self.clusters.get_mut(&name).filter(|c| c.etcd.call == Some(id)) else { return };
        self.touched.insert(name.clone());
        cluster.etcd.call = None;
        self.note_failing(now, &name, &call, result.as_ref().err());
        let Some(cluster) = self.clusters.get_mut(&name) else { return };
        match result {
            Ok(EtcdAnswer::Members { members, leader }) => {
                (cluster.etcd.members, cluster.etcd.listed) = (Some(members), cluster.etcd.asked);
                cluster.etcd.adding = false;
                cluster.etcd.leader = leader;
                cluster.etcd.fresh = true;
                cluster.etcd.after = None;
                cluster.plan_due = true;
                let waits = self.clusters.get(&name).and_then(|c| self.member_view(c));
                // Looked, and nothing is to be done: no need to hurry.
                if waits.is_some_and(|view| next_member_call(&view).is_none())
                    && let Some(cluster) = self.clusters.get_mut(&name)
                {
                    cluster.etcd.after = Some(now.mono.plus(ETCD_LOOK_INTERVAL));
                    cluster.etcd.fresh = false;
                    cluster.etcd.refusing = None;
                }
            }
            Ok(EtcdAnswer::Done) => {
                cluster.etcd.after = None;
                self.note_etcd(now, &name, &call);
            }
            Err(_) => cluster.etcd.after = Some(now.mono.plus(ETCD_LOOK_INTERVAL)),
        }
    }

    /// Etcd that answers nothing for a while keeps members from coming and going: somebody must know why.
    fn note_failing(&mut self, now: Now, name: &ClusterName, call: &EtcdCall, error: Option<&String>) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let looks = matches!(call, EtcdCall::Look);
        let kind = if looks { &mut cluster.etcd.failing } else { &mut cluster.etcd.refusing };
        let Some(why) = error else {
            *kind = None;
            return;
        };
        let failing = kind.get_or_insert(EtcdFailing { since: now.mono, told: false });
        if failing.told || now.mono.since(failing.since) < ETCD_FAILING_TOLD_AFTER {
            return;
        }
        failing.told = true;
        let cause = if looks { why.clone() } else { format!("{call}: {why}") };
        let outcome = "members neither come nor go until it answers; asked again and again".to_owned();
        let event = self.event(now, Severity::Warning, "EtcdCallFailed");
        self.note(FleetEvent { cluster: Some(name.clone()), cause, outcome, ..event });
    }

    fn note_etcd(&mut self, now: Now, name: &ClusterName, call: &EtcdCall) {
        let reason = match call {
            EtcdCall::Look => return,
            EtcdCall::AddLearner { .. } => "EtcdMemberAdded",
            EtcdCall::Promote { .. } => "EtcdMemberPromoted",
            EtcdCall::MoveLeader { .. } => "EtcdLeaderMoved",
            EtcdCall::Remove { .. } => "EtcdMemberRemoved",
        };
        let machine = self.machine_of_call(name, call);
        let event = match &machine {
            Some(id) => self.event_of(now, id, Severity::Info, reason),
            None => self.event(now, Severity::Info, reason),
        };
        self.note(FleetEvent {
            cluster: Some(name.clone()),
            cause: "members of etcd follow the blueprint".to_owned(),
            outcome: format!("done: {call}"),
            ..event
        });
    }

    fn machine_of_call(&self, name: &ClusterName, call: &EtcdCall) -> Option<MachineId> {
        let cluster = self.clusters.get(name)?;
        let of = |id: MemberId| {
            let members = cluster.etcd.members.iter().flatten();
            members.filter(|member| member.id == id).find_map(|member| member.address)
        };
        let address = match call {
            EtcdCall::Look => None,
            EtcdCall::AddLearner { address } => Some(*address),
            EtcdCall::Promote { member } | EtcdCall::Remove { member } => of(*member),
            EtcdCall::MoveLeader { to } => of(*to),
        }?;
        let machine = cluster.row.blueprint.with_role(Role::Etcd).find(|m| m.address == address)?;
        Some(machine.id.clone())
    }
}
