//! Peer probes: keys, whom the coordinator asks about a silent machine, and which answers it believes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::BTreeSet;

use common::{World, small};
use keelson_coordinator_core::{Effect, Input, PEER_ANSWERS_MAX, PEERS_ASKED_MAX, SessionId};
use keelson_protocol::MachineId;
use keelson_protocol::message::{ToAgent, ToCoordinator};
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};

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

/// A ready cluster: etcd-1 and worker-1 are in zone-a, master-1 and worker-2 in zone-b.
fn ready() -> World {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    world
}

fn id(name: &str) -> MachineId {
    format!("demo-{name}").parse().unwrap()
}

/// Asks about a machine: number of the question, and who is asked, in the order of their ids.
fn ask(world: &mut World, about: &str) -> (u64, Vec<MachineId>) {
    let count = world.core.ask_peers(world.now(), &id(about));
    let effects = world.core.settle(world.now());
    let (mut questions, mut asked) = (BTreeSet::new(), Vec::new());
    for effect in effects {
        let Effect::Send { session, message } = effect else { panic!("{effect:?}") };
        let ToAgent::ProbePeers { id: question, targets } = *message else { panic!("{message:?}") };
        let planned =
            &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint.machines[&id(about)];
        let (incarnation, address) = (planned.incarnation, planned.address);
        assert_eq!(targets, [PeerTarget { machine: id(about), incarnation, address }]);
        questions.insert(question);
        asked.push(machine_of(world, session));
    }
    assert_eq!(asked.len(), count);
    asked.sort();
    (questions.first().copied().unwrap_or_default(), asked)
}

fn machine_of(world: &World, session: SessionId) -> MachineId {
    let found = world.machines.iter().find(|(_, machine)| machine.session == Some(session));
    found.unwrap().0.clone()
}

/// Machine `by` says of machine `about`.
fn say(world: &mut World, by: &str, question: u64, about: &str, said: PeerSaid) {
    let session = world.machines[&id(by)].session.unwrap();
    let answers = vec![PeerAnswer { machine: id(about), said }];
    let message = ToCoordinator::PeersProbed { id: question, answers };
    world.input(Input::Message { session, message });
}

/// What was said of a machine: by whom, and what.
fn words(world: &World, about: &str) -> Vec<(String, PeerSaid)> {
    let words = world.core.peer_answers(&id(about)).iter();
    words.map(|word| (word.by.to_string(), word.said.clone())).collect()
}

fn told(words: &[(&str, PeerSaid)]) -> Vec<(String, PeerSaid)> {
    words.iter().map(|(by, said)| (id(by).to_string(), said.clone())).collect()
}

#[test]
fn three_machines_that_are_heard_are_asked() {
    let mut world = ready();
    let zones: Vec<(String, String)> = {
        let blueprint = &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint;
        blueprint.machines.values().map(|m| (m.id.to_string(), m.zone.clone())).collect()
    };
    let pairs: Vec<(&str, &str)> = zones.iter().map(|(id, zone)| (id.as_str(), zone.as_str())).collect();
    let expected = [
        ("demo-etcd-1", "zone-a"),
        ("demo-master-1", "zone-b"),
        ("demo-worker-1", "zone-c"),
        ("demo-worker-2", "zone-a"),
    ];
    assert_eq!(pairs, expected);
    let all_but = |about: &str| {
        let others = ["etcd-1", "master-1", "worker-1", "worker-2"].into_iter().filter(|name| *name != about);
        others.map(id).collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut world, "worker-2").1, all_but("worker-2"));
    assert_eq!(all_but("worker-2").len(), PEERS_ASKED_MAX);
    // One that is silent itself, and one without a session, are not asked, and nobody is asked about itself.
    world.machines.get_mut(&id("worker-1")).unwrap().linked = false;
    world.run(8);
    assert!(world.core.machine(&id("worker-1")).unwrap().silent);
    assert_eq!(ask(&mut world, "worker-2").1, ["etcd-1", "master-1"].map(id));
    assert_eq!(ask(&mut world, "worker-1").1, ["etcd-1", "master-1", "worker-2"].map(id));
    let session = world.machines[&id("master-1")].session.unwrap();
    world.input(Input::Closed { session, why: "reset".to_owned() });
    assert_eq!(ask(&mut world, "worker-1").1, ["etcd-1", "worker-2"].map(id));
}

#[test]
fn nothing_is_asked_about_a_machine_that_nobody_planned() {
    let mut world = ready();
    assert_eq!(ask(&mut world, "worker-9"), (0, Vec::new()));
    world.delete("demo");
    assert_eq!(ask(&mut world, "worker-1"), (0, Vec::new()));
}

#[test]
fn an_answer_counts_once_from_those_who_were_asked_about_what_they_were_asked() {
    let mut world = ready();
    let answered = PeerSaid::Answered { round_trip_us: 300 };
    let (question, _) = ask(&mut world, "worker-1");
    say(&mut world, "master-1", question, "worker-1", PeerSaid::Silent);
    say(&mut world, "worker-2", question, "worker-1", PeerSaid::Refused);
    let expected = told(&[("master-1", PeerSaid::Silent), ("worker-2", PeerSaid::Refused)]);
    assert_eq!(words(&world, "worker-1"), expected);
    // Again; about another machine; with another number; by the machine itself.
    say(&mut world, "master-1", question, "worker-1", answered.clone());
    say(&mut world, "etcd-1", question, "master-1", PeerSaid::Silent);
    say(&mut world, "etcd-1", question + 1, "worker-1", PeerSaid::Silent);
    say(&mut world, "worker-1", question, "worker-1", answered.clone());
    assert_eq!(words(&world, "worker-1"), expected);
    assert_eq!(words(&world, "master-1"), []);
    // A new word takes the place of the old one, and the newest stands last.
    let (next, _) = ask(&mut world, "worker-1");
    say(&mut world, "etcd-1", question, "worker-1", answered.clone());
    say(&mut world, "master-1", next, "worker-1", answered.clone());
    let expected = told(&[("worker-2", PeerSaid::Refused), ("master-1", answered)]);
    assert_eq!(words(&world, "worker-1"), expected);
}

#[test]
fn answers_of_another_session_or_too_late_are_not_taken() {
    let mut world = ready();
    let (question, _) = ask(&mut world, "worker-1");
    let session = world.machines[&id("master-1")].session.unwrap();
    world.input(Input::Closed { session, why: "reset".to_owned() });
    world.connect(&id("master-1"));
    say(&mut world, "master-1", question, "worker-1", PeerSaid::Silent);
    world.ms += 2_000;
    say(&mut world, "etcd-1", question, "worker-1", PeerSaid::Silent);
    world.ms += 1;
    say(&mut world, "worker-2", question, "worker-1", PeerSaid::Silent);
    assert_eq!(words(&world, "worker-1"), told(&[("etcd-1", PeerSaid::Silent)]));
}

#[test]
fn what_was_said_goes_with_the_machine() {
    let mut world = ready();
    let (question, _) = ask(&mut world, "worker-1");
    say(&mut world, "etcd-1", question, "worker-1", PeerSaid::Silent);
    world.delete("demo");
    world.run(CONVERGED);
    assert_eq!(words(&world, "worker-1"), []);
    world.create(&small("demo"));
    world.run(CONVERGED);
    assert_eq!(words(&world, "worker-1"), []);
}

#[test]
fn only_so_many_words_are_kept() {
    let mut world = World::new();
    let mut spec = small("demo");
    spec.workers = Some(12);
    world.create(&spec);
    world.run(2 * CONVERGED);
    // Whoever has answered hangs up, so that others are asked next.
    for _ in 0..4 {
        let (question, asked) = ask(&mut world, "worker-1");
        assert_eq!(asked.len(), PEERS_ASKED_MAX);
        for peer in asked {
            let name = peer.as_str().strip_prefix("demo-").unwrap();
            say(&mut world, name, question, "worker-1", PeerSaid::Silent);
            let session = world.machines[&peer].session.unwrap();
            world.input(Input::Closed { session, why: "reset".to_owned() });
        }
    }
    assert_eq!(words(&world, "worker-1").len(), PEER_ANSWERS_MAX);
}
