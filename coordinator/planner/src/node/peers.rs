//! Whom a machine asks whether they live, and who is asked about it.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::ops::Bound::{Excluded, Unbounded};

use keelson_model::{Blueprint, BlueprintMachine};
use keelson_protocol::config::PeerSpec;
use keelson_protocol::limits::NEIGHBOURS_MAX;
use keelson_protocol::peer::PeerTarget;

use super::{NodeInput, paths};

/// So many of the same zone come first: they share most of the way, so that what cannot reach even them is cut off
/// itself. Two, because one may be the machine that has failed.
const SAME_ZONE_FIRST: usize = 2;

/// What a machine's agent needs to ask its peers and to answer them.
pub(super) fn spec(input: &NodeInput, machine: &BlueprintMachine) -> PeerSpec {
    let neighbours = nearest(input.blueprint, machine, NEIGHBOURS_MAX, |_| true);
    PeerSpec {
        listen: SocketAddrV4::new(machine.address, paths::PEER_PORT),
        key: input.peer_key.clone(),
        neighbours: neighbours.into_iter().map(peer_target).collect(),
    }
}

/// Where a machine is asked.
#[must_use]
pub fn peer_target(machine: &BlueprintMachine) -> PeerTarget {
    PeerTarget { machine: machine.id.clone(), incarnation: machine.incarnation, address: machine.address }
}

/// At most `count_max` other machines of the cluster that are `fit`, those first whose word about `machine` says most:
/// two of its zone, then those of the other zones in turn, then the rest of its own.
///
/// Counting begins behind the machine in the order of ids, so that each machine has other neighbours and no machine is
/// everybody's.
pub fn nearest<'a>(
    blueprint: &'a Blueprint,
    machine: &BlueprintMachine,
    count_max: usize,
    fit: impl Fn(&BlueprintMachine) -> bool,
) -> Vec<&'a BlueprintMachine> {
    let behind = blueprint.machines.range((Excluded(&machine.id), Unbounded));
    let before = blueprint.machines.range(..&machine.id);
    let mut of_zone: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked = Vec::new();
    for other in behind.chain(before).map(|(_, other)| other).filter(|other| fit(other)) {
        let count = of_zone.entry(&other.zone).or_default();
        // More of one zone are never taken, so that a large cluster is not sorted.
        if *count < count_max {
            ranked.push((rank(machine, other, *count), other));
            *count += 1;
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().take(count_max).map(|(_, other)| other).collect()
}

/// Sorts the `nth` machine of a zone: how near, which turn, and within a turn the zones behind the machine's own first.
fn rank<'a>(
    machine: &BlueprintMachine,
    other: &'a BlueprintMachine,
    nth: usize,
) -> (u8, usize, bool, &'a str) {
    let nearness = match (other.zone == machine.zone, nth < SAME_ZONE_FIRST) {
        (true, true) => 0,
        (false, _) => 1,
        (true, false) => 2,
    };
    (nearness, nth, other.zone < machine.zone, &other.zone)
}
