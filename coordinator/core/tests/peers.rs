//! Peer probes: keys, whom the coordinator asks about a silent machine, and which answers it believes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::BTreeSet;

use common::{World, small};
use keelson_protocol::message::ToAgent;

/// Steps of half a second within which everything converges when nothing fails.
const CONVERGED: u32 = 20;

/// Keys in the configs that were sent, by cluster.
fn keys(world: &World) -> BTreeSet<(String, Vec<u8>)> {
    let configs = world.sent.iter().filter_map(|message| match message {
        ToAgent::Config(config) => Some(config),
        _ => None,
    });
    configs
        .map(|config| {
            let key = &config.peers.as_ref().unwrap().key;
            (config.cluster.to_string(), key.expose_secret().to_vec())
        })
        .collect()
}

#[test]
fn all_machines_of_a_cluster_have_one_key_that_no_other_cluster_has() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.create(&small("other"));
    world.run(CONVERGED);
    let first = keys(&world);
    let distinct: BTreeSet<&Vec<u8>> = first.iter().map(|(_, key)| key).collect();
    assert_eq!((first.len(), distinct.len()), (2, 2));
    world.sent.clear();
    world.machines.values_mut().for_each(|machine| machine.generation = None);
    world.restart();
    world.run(CONVERGED);
    assert_eq!(keys(&world), first, "a restart makes no new key");
}
