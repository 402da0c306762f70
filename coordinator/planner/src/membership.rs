//! The next change of an etcd cluster's members on the way to the blueprint. One at a time, the leader last, and never one
//! that a quorum would not outlive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use keelson_model::etcd::{EtcdCall, EtcdMember, MemberId};
use keelson_model::{Blueprint, BlueprintMachine, Role, SeatBegins, Standing};
use keelson_protocol::MachineId;

use crate::node::member_name;
use crate::quorum::Quorum;

/// An etcd cluster as it is, beside what it shall be.
#[derive(Debug, Clone)]
pub struct MemberView<'a> {
    /// What shall be.
    pub blueprint: &'a Blueprint,
    /// The members, as etcd lists them.
    pub members: &'a [EtcdMember],
    /// Which of them leads.
    pub leader: Option<MemberId>,
    /// Machines whose members work.
    pub working: BTreeSet<MachineId>,
    /// Machines whose agents are heard: a member is added when its machine is there to start it.
    pub heard: BTreeSet<MachineId>,
    /// Machines that leave, whose members may be the only ones that a master knows.
    pub in_use: BTreeSet<MachineId>,
}

/// What a machine is in the etcd cluster. A member with its address and another name belonged to a machine before it.
#[must_use]
pub fn standing(machine: &BlueprintMachine, members: &[EtcdMember]) -> Standing {
    match members.iter().find(|member| is_of(member, machine)) {
        None => Standing::Absent,
        Some(member) if member.learner => Standing::Learner,
        Some(_) => Standing::Voter,
    }
}

/// Whether a member is that of a machine. One that has not started yet has no name.
#[must_use]
pub fn is_of(member: &EtcdMember, machine: &BlueprintMachine) -> bool {
    let joins = machine.seat.as_ref().is_some_and(|seat| seat.begins == SeatBegins::Joining);
    let named = member.name == member_name(machine) || (joins && member.name.is_empty() && member.learner);
    // A founding member that never started has no name either.
    member.address == Some(machine.address) && (named || (!joins && member.name.is_empty()))
}

/// Whether a member is that of a newer incarnation of a machine than the blueprint knows: then the blueprint is an old copy,
/// and says nothing about who is lost.
fn is_newer(member: &EtcdMember, machine: &BlueprintMachine) -> bool {
    let number = member.name.strip_prefix(machine.id.as_str()).and_then(|rest| rest.strip_prefix("-i"));
    number.and_then(|number| number.parse().ok()).is_some_and(|number: u32| number > machine.incarnation.0)
}

/// The next call, or `None` when the members are as they shall be, or nothing may be changed now.
#[must_use]
pub fn next_member_call(view: &MemberView) -> Option<EtcdCall> {
    let machines = || view.blueprint.with_role(Role::Etcd);
    let owner = |member: &EtcdMember| machines().find(|machine| is_of(member, machine));
    if view.members.iter().any(|member| machines().any(|machine| is_newer(member, machine))) {
        return None;
    }
    // Lost members and those of machines that leave go first: they only take away from safety.
    // What is in use waits, and holds up nobody.
    let goes = |machine: &BlueprintMachine| machine.leaving && !view.in_use.contains(&machine.id);
    let mut surplus: Vec<&EtcdMember> =
        view.members.iter().filter(|member| owner(member).is_none_or(goes)).collect();
    surplus.sort_by_key(|member| Some(member.id) == view.leader);
    if !surplus.is_empty() {
        // One that a quorum needs must not keep another one, perhaps lost, from being taken out.
        return surplus.into_iter().find_map(|member| view.take_out(member));
    }
    if let Some(learner) = view.members.iter().find(|member| member.learner) {
        // It says its name when it has started; etcd itself refuses to promote it before it has caught up.
        if !learner.name.is_empty() {
            return Some(EtcdCall::Promote { member: learner.id });
        }
        // Its first start is told all members. When those have become others, it would end at once, for ever.
        let stale = owner(learner).is_some_and(|machine| !seat_fits(machine, view.members));
        return stale.then_some(EtcdCall::Remove { member: learner.id });
    }
    let missing = machines().find(|machine| {
        !machine.leaving
            && view.heard.contains(&machine.id)
            && standing(machine, view.members) == Standing::Absent
    })?;
    let fits = seat_fits(missing, view.members);
    (fits && view.quorum().holds_with_another()).then_some(EtcdCall::AddLearner { address: missing.address })
}

/// Whether a machine that joins starts its member with the members that there are, and itself.
fn seat_fits(machine: &BlueprintMachine, members: &[EtcdMember]) -> bool {
    let Some(seat) = machine.seat.as_ref().filter(|seat| seat.begins == SeatBegins::Joining) else {
        return true;
    };
    let mut there: BTreeSet<Ipv4Addr> = members.iter().filter_map(|member| member.address).collect();
    there.insert(machine.address);
    seat.members.values().copied().collect::<BTreeSet<_>>() == there
}

impl MemberView<'_> {
    fn quorum(&self) -> Quorum {
        let machines = self.blueprint.with_role(Role::Etcd);
        let mut standings: BTreeMap<MachineId, Standing> =
            machines.map(|machine| (machine.id.clone(), standing(machine, self.members))).collect();
        // Members that belong to no machine count as voters that do not work.
        let known =
            |member: &EtcdMember| self.blueprint.with_role(Role::Etcd).any(|machine| is_of(member, machine));
        for member in self.members.iter().filter(|member| !member.learner && !known(member)) {
            if let Ok(id) = MachineId::new(format!("member-{}", member.id)) {
                standings.insert(id, Standing::Voter);
            }
        }
        Quorum::of(&standings, &self.working)
    }

    /// Removes a member, after it has handed leadership over, if those that remain have a quorum of what remains.
    fn take_out(&self, member: &EtcdMember) -> Option<EtcdCall> {
        if member.learner {
            return Some(EtcdCall::Remove { member: member.id });
        }
        let remaining = |other: &&EtcdMember| other.id != member.id && !other.learner;
        let works = |other: &EtcdMember| {
            let mut machines = self.blueprint.with_role(Role::Etcd).filter(|machine| is_of(other, machine));
            machines.any(|machine| self.working.contains(&machine.id))
        };
        let voters = self.members.iter().filter(remaining).count();
        let working = self.members.iter().filter(remaining).filter(|other| works(other)).count();
        if voters == 0 || working < voters / 2 + 1 {
            return None;
        }
        if Some(member.id) != self.leader {
            return Some(EtcdCall::Remove { member: member.id });
        }
        let stays = |other: &&EtcdMember| {
            let mut machines = self.blueprint.staying(Role::Etcd).filter(|machine| is_of(other, machine));
            machines.any(|machine| self.working.contains(&machine.id))
        };
        let heir = self.members.iter().filter(remaining).find(stays)?;
        Some(EtcdCall::MoveLeader { to: heir.id })
    }
}
