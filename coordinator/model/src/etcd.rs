//! What is asked of a cluster's etcd, and what it answers. Plain data; who carries it out is elsewhere.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Identity of a member, as etcd gives it. Printed and asked for in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A change of an etcd cluster's members, or a look at them. Asked of a member that works, through the agent beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdCall {
    /// All members. The answer is linearizable: it proves a quorum.
    Look,
    /// Adds a member that does not vote yet.
    AddLearner {
        /// Address of its machine.
        address: Ipv4Addr,
    },
    /// Lets a learner vote. etcd refuses while it has not caught up.
    Promote {
        /// The learner.
        member: MemberId,
    },
    /// Hands leadership over, before the leader goes.
    MoveLeader {
        /// To this voter.
        to: MemberId,
    },
    /// Takes a member out.
    Remove {
        /// The member.
        member: MemberId,
    },
}

impl fmt::Display for EtcdCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Look => f.write_str("list the members"),
            Self::AddLearner { address } => write!(f, "add a learner at {address}"),
            Self::Promote { member } => write!(f, "let member {member} vote"),
            Self::MoveLeader { to } => write!(f, "make member {to} the leader"),
            Self::Remove { member } => write!(f, "remove member {member}"),
        }
    }
}

/// A member of an etcd cluster, as etcd itself lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMember {
    /// Its identity.
    pub id: MemberId,
    /// Its name; empty until it was started for the first time.
    pub name: String,
    /// Address of its machine; `None` when its peer URL is none of ours.
    pub address: Option<Ipv4Addr>,
    /// Whether it does not vote.
    pub learner: bool,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdAnswer {
    /// All members, and which of them leads.
    Members {
        /// The members.
        members: Vec<EtcdMember>,
        /// The leader, when there is one.
        leader: Option<MemberId>,
    },
    /// Done.
    Done,
}
