//! Quorum projection: what an etcd cluster outlives. Everything that takes a member away, for whatever reason, asks here
//! first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use keelson_model::Standing;
use keelson_protocol::MachineId;

/// The members of an etcd cluster and which of them work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    voters: BTreeSet<MachineId>,
    working: BTreeSet<MachineId>,
}

/// Why the loss of a member would not be outlived.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuorumLost {
    /// The member that would be lost.
    pub machine: MachineId,
    /// Members that vote, with it.
    pub voters: usize,
    /// Members that vote and work, without it.
    pub working: usize,
    /// How many must vote and work.
    pub needed: usize,
}

impl fmt::Display for QuorumLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, voters, working, needed } = self;
        write!(
            f,
            "without {machine} only {working} of {voters} etcd members would work, and {needed} must: \
             the cluster would lose its state"
        )
    }
}

impl Quorum {
    /// Of what is known: the standing of machines, and which of them work. Whoever is not known to work does not.
    #[must_use]
    pub fn of(standings: &BTreeMap<MachineId, Standing>, working: &BTreeSet<MachineId>) -> Self {
        let votes = standings.iter().filter(|(_, standing)| **standing == Standing::Voter);
        let voters: BTreeSet<MachineId> = votes.map(|(id, _)| id.clone()).collect();
        Self { working: voters.intersection(working).cloned().collect(), voters }
    }

    /// How many members must work for the whole to work (Raft: a majority).
    #[must_use]
    pub fn needed(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether there is a quorum now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.working.len() >= self.needed()
    }

    /// Whether any member works.
    #[must_use]
    pub fn has_any(&self) -> bool {
        !self.working.is_empty()
    }

    /// Whether there would be a quorum with one more member that votes and does not work yet. etcd adds none before, learners
    /// included, but for a member that is alone (`isConnectedToQuorumAfterAddingNewMemberSince` of etcd 3.7.3).
    #[must_use]
    pub fn holds_with_another(&self) -> bool {
        match self.voters.len() {
            1 => self.holds(),
            voters => self.working.len() > voters.div_ceil(2),
        }
    }

    /// Whether a quorum is left when `machine` does not work, and neither does whatever replaces it. A machine that does
    /// not vote is never missed.
    ///
    /// # Errors
    /// [`QuorumLost`] with the numbers.
    pub fn outlives_loss(&self, machine: &MachineId) -> Result<(), QuorumLost> {
        if !self.voters.contains(machine) {
            return Ok(());
        }
        let working = self.working.iter().filter(|other| *other != machine).count();
        let needed = self.needed();
        if working >= needed {
            return Ok(());
        }
        Err(QuorumLost { machine: machine.clone(), voters: self.voters.len(), working, needed })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
mod tests {
    use super::*;

    fn check(voters: usize, broken: &[usize], loses: usize, outlived: bool) {
        let id = |number: usize| -> MachineId { format!("m-{number}").parse().unwrap() };
        let standings = (1..=voters).map(|number| (id(number), Standing::Voter)).collect();
        let working = (1..=voters).filter(|number| !broken.contains(number)).map(id).collect();
        let quorum = Quorum::of(&standings, &working);
        assert_eq!(quorum.outlives_loss(&id(loses)).is_ok(), outlived, "{voters} {broken:?} {loses}");
    }

    #[test]
    fn another_member_is_taken_where_one_that_does_not_work_is_outlived() {
        let holds = |voters: usize, working: usize| {
            let id = |number: usize| -> MachineId { format!("m-{number}").parse().unwrap() };
            let standings = (1..=voters).map(|number| (id(number), Standing::Voter)).collect();
            Quorum::of(&standings, &(1..=working).map(id).collect()).holds_with_another()
        };
        let cases = [(1, 1, true), (1, 0, false), (2, 2, true), (3, 2, false), (3, 3, true), (4, 3, true)];
        for (voters, working, taken) in cases.into_iter().chain([(5, 3, false), (5, 4, true)]) {
            assert_eq!(holds(voters, working), taken, "{working} of {voters}");
        }
    }

    #[test]
    fn a_minority_may_be_lost_and_not_one_more() {
        check(1, &[], 1, false);
        check(2, &[], 1, false);
        check(3, &[], 1, true);
        check(3, &[1], 1, true);
        check(3, &[2], 1, false);
        check(5, &[1, 2], 1, true);
        check(5, &[1, 2], 3, false);
        check(5, &[1], 2, true);
    }

    #[test]
    fn who_does_not_vote_is_not_missed() {
        check(3, &[1], 9, true);
    }

    #[test]
    fn nothing_known_is_no_quorum() {
        assert!(!Quorum::of(&BTreeMap::new(), &BTreeSet::new()).holds());
    }
}
