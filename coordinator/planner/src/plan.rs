//! The plan: which machines a cluster has, where, with which addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_model::{Blueprint, ClusterSpec, EtcdHold, Plan, PoolName, Progress, Release, SpecError};
use keelson_protocol::{ClusterName, Incarnation, NameError, ReleaseName};

use crate::draft::Draft;

/// Version of [`crate::node`]'s output. Grows with every change of it, so that machines made by an older coordinator get
/// the new config under a new generation.
pub const RENDERING: u32 = 8;

/// Where machines can be placed: what the planner knows of the infrastructure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Network that machines' addresses are taken from.
    pub network: Ipv4Net,
    /// First address that a machine may have.
    pub first_address: Ipv4Addr,
    /// Fault domains, at least one.
    pub zones: Vec<String>,
}

/// Addresses in use in the whole installation, and by which cluster.
pub type Addresses = BTreeMap<Ipv4Addr, ClusterName>;

/// Whether the cluster shall exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It shall.
    Present,
    /// It shall be removed.
    Absent,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// What the user asks for.
    pub spec: &'a ClusterSpec,
    /// Whether the cluster shall exist.
    pub wanted: Wanted,
    /// The plan that the spec names.
    pub plan: &'a Plan,
    /// The release that the spec names.
    pub release: &'a Release,
    /// The blueprint in force.
    pub parent: Option<&'a Blueprint>,
    /// How far the cluster is on its way to the blueprint in force.
    pub progress: &'a Progress,
    /// Where machines can be placed.
    pub place: &'a Place,
    /// Addresses in use, and by which cluster.
    pub taken: &'a Addresses,
    /// Where the search for free addresses begins; it goes round to [`Place::first_address`] when it meets the end.
    pub next_address: Ipv4Addr,
    /// Incarnation for the first new machine; each further one gets the next number.
    pub next_incarnation: Incarnation,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The spec breaks a rule.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No node image carries the release.
    #[error(
        "this installation has no node image of release {release}; build one with `cargo xtask image build`"
    )]
    NoImage {
        /// The release.
        release: ReleaseName,
    },
    /// The infrastructure's network is full.
    #[error(
        "network {network} has no free address left: ask for fewer machines, or remove machines or clusters that nobody needs"
    )]
    AddressesUsedUp {
        /// The network.
        network: Ipv4Net,
    },
    /// The pod network is full.
    #[error(
        "pod network {network} has no free part left: ask for fewer machines, or remove some of this cluster; a larger network needs a new cluster"
    )]
    PodNetworkUsedUp {
        /// The network.
        network: Ipv4Net,
    },
    /// The infrastructure has no zone that the pool may use.
    #[error("pool {pool} may use no zone of this infrastructure, which has {known}; change the plan's zones")]
    NoZone {
        /// The pool.
        pool: PoolName,
        /// Zones that there are.
        known: String,
    },
    /// A machine's name would be no valid name.
    #[error("a machine cannot be named")]
    Name(#[from] NameError),
}

/// A blueprint, and what the spec wants beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What shall be now.
    pub blueprint: Blueprint,
    /// Why the etcd cluster does not yet get the size that the spec wants; `None` when it has it.
    pub held: Option<EtcdHold>,
    /// What machines lack that the spec wants and that cannot be planned; `None` when all are.
    pub lacking: Option<PlanError>,
}

/// Makes the blueprint that follows `input.parent`: the next step on the way to the spec. When nothing changes it is the
/// parent itself, so that planning again on a planned world changes nothing.
///
/// Workers and masters come and go many at a time. Of the etcd cluster one member changes at a time, and only while all
/// others vote and work: one more that fails in the middle must never cost the quorum (etcd "runtime reconfiguration").
///
/// # Errors
/// [`PlanError`] says what makes the spec impossible.
pub fn plan(input: &PlanInput) -> Result<Planned, PlanError> {
    let mut draft = Draft::from_parent(input);
    match input.wanted {
        Wanted::Absent => draft.remove_all(),
        Wanted::Present => {
            input.spec.check(input.plan, input.place.network)?;
            draft.remove_released();
            draft.renew();
            draft.retire_surplus();
            // What cannot be added keeps nothing else from being mended. Of a new cluster it is all or nothing.
            match draft.add_missing() {
                Err(error) if input.parent.is_some_and(|parent| !parent.machines.is_empty()) => {
                    draft.lack(error);
                }
                added => added?,
            }
            draft.take_seats();
        }
    }
    Ok(draft.finish())
}
