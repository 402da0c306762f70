//! A cluster's etcd, by the rules of etcd: members are added as learners one at a time, promoted when they have caught up,
//! removed when those that remain have a quorum; a blank disk is no member, and who was not added may not join.

use std::net::Ipv4Addr;

use keelson_model::etcd::{EtcdAnswer, EtcdCall, EtcdMember, MemberId};

use crate::host::EtcdFlags;

/// A member.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    /// Empty until it has started.
    name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) learner: bool,
    /// From when on a learner has all that the leader has.
    caught_up_at: Option<u64>,
    /// Since when it has not worked, as far as that was looked at.
    pub(crate) down_since: Option<u64>,
    /// Since when it has not been with a majority, as far as that was looked at.
    pub(crate) apart_since: Option<u64>,
}

/// An etcd cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeEtcd {
    pub(crate) members: Vec<Member>,
    leader: Option<MemberId>,
    /// Since when so many members have worked that the whole works, as far as that was looked at.
    pub(crate) held_since: Option<u64>,
    last_id: u64,
}

impl FakeEtcd {
    /// How many voters must work.
    pub(crate) fn needed(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    pub(crate) fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.learner)
    }

    /// Whether so many voters work that the whole works.
    pub(crate) fn holds(&self, works: impl Fn(&Member) -> bool) -> bool {
        !self.members.is_empty() && self.voters().filter(|member| works(member)).count() >= self.needed()
    }

    pub(crate) fn member_at(&self, address: Ipv4Addr) -> Option<&Member> {
        self.members.iter().find(|member| member.address == address)
    }

    /// A member's program starts on a machine. Gives the member that it is, or why it ends at once.
    pub(crate) fn start(
        &mut self,
        data: Option<MemberId>,
        flags: &EtcdFlags,
        address: Ipv4Addr,
        holds: bool,
        caught_up_at: u64,
    ) -> Result<MemberId, String> {
        if let Some(data) = data {
            let known = self.members.iter().any(|member| member.id == data);
            return if known { Ok(data) } else { Err("the member has been permanently removed".to_owned()) };
        }
        if flags.founding {
            return self.found(flags, address);
        }
        if !holds {
            return Err("could not retrieve the cluster from its members".to_owned());
        }
        let asked: Vec<Ipv4Addr> = flags.members.keys().copied().collect();
        let mut there: Vec<Ipv4Addr> = self.members.iter().map(|member| member.address).collect();
        there.sort_unstable();
        if asked != there {
            return Err(format!("member count is unequal: {asked:?} in the flags, {there:?} in the cluster"));
        }
        let member = self.members.iter_mut().find(|member| member.address == address);
        let member = member.filter(|member| member.name.is_empty());
        let member = member.ok_or_else(|| "the member has already been bootstrapped".to_owned())?;
        flags.name.clone_into(&mut member.name);
        member.caught_up_at = Some(caught_up_at);
        Ok(member.id)
    }

    fn found(&mut self, flags: &EtcdFlags, address: Ipv4Addr) -> Result<MemberId, String> {
        if self.members.is_empty() && self.last_id == 0 {
            for address in flags.members.keys() {
                let id = self.next_id();
                self.members.push(Member {
                    id,
                    name: String::new(),
                    address: *address,
                    learner: false,
                    caught_up_at: None,
                    down_since: None,
                    apart_since: None,
                });
            }
        }
        let member = self.members.iter_mut().find(|member| member.address == address);
        let member = member.ok_or_else(|| "the member has been permanently removed".to_owned())?;
        if !member.name.is_empty() {
            return Err("the member has already been bootstrapped".to_owned());
        }
        flags.name.clone_into(&mut member.name);
        Ok(member.id)
    }

    fn next_id(&mut self) -> MemberId {
        self.last_id += 1;
        // Large, as real ones are, and never the same again.
        MemberId(self.last_id.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The leader: it stays while it works, else another one is chosen.
    fn lead(&mut self, works: &impl Fn(&Member) -> bool) -> Option<MemberId> {
        let stays = self.voters().any(|member| Some(member.id) == self.leader && works(member));
        if !stays {
            let next = self.voters().find(|member| works(member)).map(|member| member.id);
            self.leader = next;
        }
        self.leader
    }

    /// Carries out a call that came to a member that works.
    pub(crate) fn call(
        &mut self,
        call: &EtcdCall,
        now: u64,
        works: impl Fn(&Member) -> bool,
    ) -> Result<EtcdAnswer, String> {
        if !self.holds(&works) {
            return Err("context deadline exceeded: etcd has no quorum".to_owned());
        }
        let leader = self.lead(&works);
        match call {
            EtcdCall::Look => {
                let seen = |member: &Member| EtcdMember {
                    id: member.id,
                    name: member.name.clone(),
                    address: Some(member.address),
                    learner: member.learner,
                };
                return Ok(EtcdAnswer::Members { members: self.members.iter().map(seen).collect(), leader });
            }
            EtcdCall::AddLearner { address } => self.add(*address, works)?,
            EtcdCall::Promote { member } => self.promote(*member, now, works)?,
            EtcdCall::MoveLeader { to } => {
                let heir = self.voters().find(|member| member.id == *to);
                heir.filter(|heir| works(heir)).ok_or_else(|| "leader transfer failed".to_owned())?;
                self.leader = Some(*to);
            }
            EtcdCall::Remove { member } => self.remove(*member, works)?,
        }
        Ok(EtcdAnswer::Done)
    }

    fn add(&mut self, address: Ipv4Addr, works: impl Fn(&Member) -> bool) -> Result<(), String> {
        // The new one counts as a voter that does not work, also when it is a learner.
        let (voters, healthy) = (self.voters().count(), self.voters().filter(|member| works(member)).count());
        if voters > 1 && healthy <= voters.div_ceil(2) {
            return Err("unhealthy cluster".to_owned());
        }
        if self.members.iter().any(|member| member.learner) {
            return Err("too many learner members in cluster".to_owned());
        }
        if self.member_at(address).is_some() {
            return Err("Peer URLs already exists".to_owned());
        }
        let id = self.next_id();
        let name = String::new();
        self.members.push(Member {
            id,
            name,
            address,
            learner: true,
            caught_up_at: None,
            down_since: None,
            apart_since: None,
        });
        Ok(())
    }

    fn promote(&mut self, id: MemberId, now: u64, works: impl Fn(&Member) -> bool) -> Result<(), String> {
        let voters = self.voters().count() + 1;
        let healthy = self.voters().filter(|member| works(member)).count();
        let learner = self.members.iter_mut().find(|member| member.id == id);
        let learner = learner.ok_or_else(|| "member not found".to_owned())?;
        if !learner.learner {
            return Err("can only promote a learner member".to_owned());
        }
        if learner.caught_up_at.is_none_or(|at| at > now) || !works(learner) {
            return Err("can only promote a learner member which is in sync with leader".to_owned());
        }
        if healthy + 1 < voters / 2 + 1 {
            return Err("re-configuration failed due to not enough started members".to_owned());
        }
        learner.learner = false;
        Ok(())
    }

    fn remove(&mut self, id: MemberId, works: impl Fn(&Member) -> bool) -> Result<(), String> {
        let member = self.members.iter().find(|member| member.id == id);
        let member = member.ok_or_else(|| "member not found".to_owned())?;
        let left: Vec<&Member> = self.voters().filter(|other| other.id != id).collect();
        let working = left.iter().filter(|other| works(other)).count();
        if !member.learner && working < left.len() / 2 + 1 {
            return Err("re-configuration failed due to not enough started members".to_owned());
        }
        self.members.retain(|member| member.id != id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn address(number: u8) -> Ipv4Addr {
        [10, 0, 0, number].into()
    }

    fn flags(number: u8, of: &[u8], founding: bool) -> EtcdFlags {
        let members: BTreeMap<Ipv4Addr, String> =
            of.iter().map(|other| (address(*other), format!("m-{other}"))).collect();
        EtcdFlags { name: format!("m-{number}"), members, founding }
    }

    fn founded(of: &[u8]) -> FakeEtcd {
        let mut etcd = FakeEtcd::default();
        for number in of {
            etcd.start(None, &flags(*number, of, true), address(*number), false, 0).unwrap();
        }
        etcd
    }

    #[test]
    fn who_was_not_added_may_not_join() {
        let mut etcd = founded(&[1]);
        let joins = flags(2, &[1, 2], false);
        assert!(etcd.start(None, &joins, address(2), true, 5).is_err());
        etcd.call(&EtcdCall::AddLearner { address: address(2) }, 0, |_| true).unwrap();
        let again = etcd.call(&EtcdCall::AddLearner { address: address(3) }, 0, |_| true);
        assert_eq!(again.unwrap_err(), "too many learner members in cluster");
        let id = etcd.start(None, &joins, address(2), true, 5).unwrap();
        assert!(etcd.call(&EtcdCall::Promote { member: id }, 4, |_| true).is_err());
        etcd.call(&EtcdCall::Promote { member: id }, 5, |_| true).unwrap();
        assert_eq!(etcd.voters().count(), 2);
    }

    #[test]
    fn a_member_without_its_data_is_none() {
        let mut etcd = founded(&[1, 2, 3]);
        let again = etcd.start(None, &flags(1, &[1, 2, 3], true), address(1), true, 0);
        assert_eq!(again.unwrap_err(), "the member has already been bootstrapped");
    }

    #[test]
    fn removal_leaves_a_quorum() {
        let mut etcd = founded(&[1, 2, 3]);
        let (first, second) = (etcd.members[0].id, etcd.members[1].id);
        let only = |down: MemberId| move |member: &Member| member.id != down;
        assert!(etcd.call(&EtcdCall::Remove { member: first }, 0, only(second)).is_err());
        etcd.call(&EtcdCall::Remove { member: second }, 0, only(second)).unwrap();
        let data = etcd.start(Some(second), &flags(2, &[1, 2, 3], true), address(2), true, 0);
        assert_eq!(data.unwrap_err(), "the member has been permanently removed");
    }
}
