//! The coordinator's decisions in virtual time: whole lives of clusters, with crashes, lost answers and silence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{World, hello, small};
use keelson_coordinator_core::{
    ClusterChange, ClusterState, CommandError, CreateCluster, Effect, EnrolId, HealthCheck, Input,
    Protection, ProviderAnswer, ProviderCall, ProviderFailure, Remedy, Row, SessionId,
};
use keelson_model::{ClusterSpec, FleetEvent, MachinePhase, OperationState, Severity};
use keelson_protocol::message::{EnrolRequest, RefusalCode, ToAgent};
use keelson_protocol::{BootId, Generation, Incarnation, SecretBytes};

/// Steps of half a second within which everything converges when nothing fails.
const CONVERGED: u32 = 20;

#[test]
fn a_cluster_comes_to_be_and_goes_without_a_trace() {
    let mut world = World::new();
    world.create(&small("demo"));
    assert_eq!(world.state("demo"), Some(ClusterState::Creating));
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(world.machines.len(), 4);
    let operation = world.core.operations().next().unwrap();
    assert!(matches!(operation.state, OperationState::Succeeded { .. }), "{operation:?}");
    world.delete("demo");
    assert_eq!(world.state("demo"), Some(ClusterState::Deleting));
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), None);
    assert!(world.machines.is_empty() && world.exposed.is_empty());
    let saved = &world.disk.saved;
    assert!(saved.clusters.is_empty() && saved.machines.is_empty() && saved.material.is_empty());
}

/// Counts the effects of one whole life, then dies before each of them once.
#[test]
fn a_coordinator_killed_between_any_two_effects_finishes_what_it_began() {
    for die_before in 1..400 {
        let mut world = World::new();
        world.die_before = Some(die_before);
        // A request that was never answered may be lost; the user asks again.
        world.create(&small("demo"));
        if world.core.cluster(&"demo".parse().unwrap()).is_none() {
            world.create(&small("demo"));
        }
        // A dead coordinator's agents need a moment to come back.
        world.run(CONVERGED + 20);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "killed before effect {die_before}");
        assert_eq!(world.machines.len(), 4);
        let died = world.die_before.is_none();
        world.delete("demo");
        world.run(CONVERGED + 70);
        if world.core.cluster(&"demo".parse().unwrap()).is_some() {
            assert!(!died, "killed before effect {die_before}");
            world.delete("demo");
            world.run(CONVERGED);
        }
        assert_eq!(world.state("demo"), None, "killed before effect {die_before}");
        assert!(world.machines.is_empty() && world.exposed.is_empty(), "killed before effect {die_before}");
    }
}

#[test]
fn lost_answers_make_no_second_machine() {
    let mut world = World::new();
    world.lose_answers = 6;
    world.create(&small("demo"));
    world.run(CONVERGED + 20);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(world.machines.len(), 4);
}

#[test]
fn a_provider_that_refuses_for_now_is_asked_again_and_the_wait_is_explained() {
    let mut world = World::new();
    let failure = ProviderFailure { remedy: Remedy::Retry, text: "slow down".to_owned() };
    world.refuse.extend(std::iter::repeat_n(failure, 4));
    world.create(&small("demo"));
    world.step();
    let waits: Vec<String> =
        world.core.waiting(&"demo".parse().unwrap(), world.now()).iter().map(ToString::to_string).collect();
    assert!(
        waits.contains(&"the provider refused 1 times and is asked again: slow down".to_owned()),
        "{waits:?}"
    );
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_create_that_the_provider_refuses_waits_until_the_cause_is_gone() {
    let operation = |world: &World| world.core.operations().next().unwrap().state.clone();
    for asks_again in [false, true] {
        let mut world = World::new();
        let failure = ProviderFailure { remedy: Remedy::Person, text: "quota used up".to_owned() };
        world.refuse.push_back(failure);
        world.create(&small("demo"));
        world.run(CONVERGED);
        assert_eq!(world.state("demo"), Some(ClusterState::Failed));
        let blocked = operation(&world);
        assert!(
            matches!(&blocked, OperationState::Blocked { why } if why.contains("quota used up")),
            "{blocked:?}"
        );
        // The provider is asked again by itself, or at once when somebody asks for the same.
        if asks_again {
            world.create(&small("demo"));
        }
        world.run(if asks_again { CONVERGED } else { CONVERGED + 240 });
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "asked again: {asks_again}");
        assert!(matches!(operation(&world), OperationState::Succeeded { .. }), "{:?}", operation(&world));
    }
}

#[test]
fn deleting_while_creating_converges_to_nothing() {
    for steps in 0..8 {
        let mut world = World::new();
        world.create(&small("demo"));
        world.run(steps);
        world.delete("demo");
        world.run(CONVERGED);
        assert_eq!(world.state("demo"), None, "deleted after {steps} steps");
        assert!(world.machines.is_empty() && world.exposed.is_empty());
    }
}

#[test]
fn a_cancelled_create_leaves_nothing_and_a_delete_cannot_be_cancelled() {
    let mut world = World::new();
    let operation = world.create(&small("demo")).operation;
    world.run(2);
    let (cancelled, effects) = world.core.cancel_operation(world.now(), &operation.id).unwrap();
    assert!(matches!(cancelled.state, OperationState::Cancelled { .. }));
    assert!(!effects.is_empty());
    let delete = world.core.operations().find(|op| op.id != operation.id).unwrap().id.clone();
    let refused = world.core.cancel_operation(world.now(), &delete);
    assert!(matches!(refused, Err(CommandError::NotCancellable { .. })), "{refused:?}");
}

/// Who cancels the repeated create of a cluster that people use wants to stop waiting.
#[test]
fn a_create_of_a_cluster_that_has_been_ready_cannot_be_cancelled() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(40);
    let text = "the quota is used up".to_owned();
    world.refuse.push_back(ProviderFailure { remedy: Remedy::Person, text });
    world.scale("demo", "worker", 3);
    world.run(4);
    let spec = world.core.cluster(&"demo".parse().unwrap()).unwrap().row.spec.clone();
    let again = world.create(&spec).operation.id;
    let refused = world.core.cancel_operation(world.now(), &again).unwrap_err();
    assert!(matches!(refused, CommandError::NotCancellable { .. }), "{refused}");
    world.run(40);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_protected_create_is_not_cancelled_by_half() {
    let mut world = World::new();
    let spec = ClusterSpec { deletion_protection: true, ..small("demo") };
    let operation = world.create(&spec).operation.id;
    world.run(2);
    let refused = world.core.cancel_operation(world.now(), &operation).unwrap_err();
    assert!(matches!(refused, CommandError::Protected { .. }), "{refused}");
    assert!(!world.core.operation(&operation).unwrap().is_done());
}

#[test]
fn names_are_taken_once_and_the_same_key_gives_the_same_operation() {
    let mut world = World::new();
    let first = world.create(&small("demo")).operation;
    let again = CreateCluster {
        spec: small("demo"),
        material: world.disk.saved.material[0].1.clone(),
        idempotency: None,
    };
    let refused = world.core.create_cluster(world.now(), again.clone());
    assert!(matches!(refused, Err(CommandError::Exists { .. })), "{refused:?}");
    let keyed = |spec, key: &str, hash: &str| CreateCluster {
        spec,
        idempotency: Some((key.to_owned(), hash.to_owned())),
        ..again.clone()
    };
    let one = world.core.create_cluster(world.now(), keyed(small("other"), "k", "h")).unwrap().operation;
    let two = world.core.create_cluster(world.now(), keyed(small("other"), "k", "h")).unwrap().operation;
    assert_eq!(one.id, two.id);
    assert_ne!(one.id, first.id);
    let reused = world.core.create_cluster(world.now(), keyed(small("third"), "k", "x"));
    assert!(matches!(reused, Err(CommandError::KeyReused { .. })), "{reused:?}");
}

#[test]
fn a_dead_machine_is_silent_within_three_seconds_and_switched_on_again() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let id = "demo-worker-1".parse().unwrap();
    let died = world.ms;
    let machine = world.machines.get_mut(&id).unwrap();
    machine.on = false;
    machine.session = None;
    // Looked at through the events: in the same step the provider may already have switched it on again.
    while !world.reasons().contains(&"MachineSilent") {
        world.step();
        assert!(world.ms - died <= 3_000, "still not silent after {} ms", world.ms - died);
    }
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    let reasons = world.reasons();
    for reason in ["MachineSilent", "MachineOff", "MachinePoweredOn", "MachineBack"] {
        assert!(reasons.contains(&reason), "{reason} is not among {reasons:?}");
    }
}

#[test]
fn silence_alone_replaces_nothing() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let before: Vec<_> = world.machines.values().map(|m| (m.incarnation, m.boot)).collect();
    world.machines.values_mut().for_each(|machine| machine.linked = false);
    world.run(1_200);
    assert_eq!(world.state("demo"), Some(ClusterState::Degraded));
    let after: Vec<_> = world.machines.values().map(|m| (m.incarnation, m.boot)).collect();
    assert_eq!(before, after);
    world.machines.values_mut().for_each(|machine| machine.linked = true);
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_restarted_coordinator_raises_no_alarm_while_agents_come_back() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    world.events.clear();
    world.restart();
    world.machines.values_mut().for_each(|machine| machine.linked = false);
    world.run(40);
    assert!(!world.reasons().contains(&"MachineSilent"), "{:?}", world.reasons());
    world.machines.values_mut().for_each(|machine| machine.linked = true);
    world.run(CONVERGED);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert!(!world.reasons().contains(&"MachineSilent"));
}

#[test]
fn a_fleet_that_needs_long_to_come_back_is_given_the_time() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    world.events.clear();
    world.restart();
    let ids: Vec<_> = world.machines.keys().cloned().collect();
    world.machines.values_mut().for_each(|machine| machine.linked = false);
    // The warm-up is over after 30 s, and there is one machine more every 4 s from then on.
    world.run(58);
    for id in &ids {
        assert!(!world.reasons().contains(&"MachineSilent"), "{:?} before {id}", world.reasons());
        world.machines.get_mut(id).unwrap().linked = true;
        world.run(8);
    }
    assert!(!world.reasons().contains(&"MachineSilent"), "{:?}", world.reasons());
    // One that never comes is missed once the others are back.
    world.restart();
    world.machines.get_mut(&ids[0]).unwrap().linked = false;
    world.run(80);
    assert!(world.reasons().contains(&"MachineSilent"), "{:?}", world.reasons());
}

#[test]
fn a_coordinator_that_was_held_up_calls_nobody_silent_for_that_time() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    world.events.clear();
    // Frozen for a minute: the first thing that it sees is the clock, heartbeats come after.
    world.ms += 60_000;
    world.run(10);
    assert_eq!(world.reasons(), ["CoordinatorHeldUp"]);
    // Sessions that ended meanwhile are given the time of a start.
    world.events.clear();
    let ids: Vec<_> = world.machines.keys().cloned().collect();
    for id in &ids {
        let session = world.machines[id].session.unwrap();
        world.input(Input::Closed { session, why: "timed out".to_owned() });
        let machine = world.machines.get_mut(id).unwrap();
        (machine.session, machine.linked) = (None, false);
    }
    world.ms += 60_000;
    world.run(40);
    assert_eq!(world.reasons().iter().filter(|reason| **reason == "MachineSilent").count(), 0);
    world.machines.values_mut().for_each(|machine| machine.linked = true);
    world.run(CONVERGED);
    // From then on silence counts again.
    world.machines.get_mut(&"demo-worker-1".parse().unwrap()).unwrap().linked = false;
    world.run(6);
    assert!(world.reasons().contains(&"MachineSilent"), "{:?}", world.reasons());
}

#[test]
fn a_burst_that_is_settled_once_means_the_same_as_one_input_after_the_other() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    world.restart();
    let ids: Vec<_> = world.machines.keys().cloned().collect();
    for (number, id) in (0..).zip(&ids) {
        let machine = &world.machines[id];
        let (incarnation, hello) = (machine.incarnation, hello(machine.boot, machine.generation));
        let (session, machine) = (SessionId(1_000 + number), id.clone());
        world.core.take(world.now(), Input::Opened { session, machine, incarnation, hello });
    }
    let effects = world.core.settle(world.now());
    let welcomes = effects.iter().filter(|effect| {
        matches!(effect, Effect::Send { message, .. } if matches!(**message, ToAgent::Welcome { .. }))
    });
    assert_eq!(welcomes.count(), 4, "{effects:#?}");
    assert!(world.core.settle(world.now()).is_empty(), "settled means settled");
}

fn refusal(world: &World) -> Option<RefusalCode> {
    world.sent.iter().rev().find_map(|message| match message {
        ToAgent::Refused(refusal) => Some(refusal.code),
        _ => None,
    })
}

#[test]
fn a_second_holder_of_an_identity_is_refused_while_the_first_lives() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let id = "demo-worker-1".parse().unwrap();
    let incarnation = world.machines[&id].incarnation;
    let clone = |incarnation, boot| Input::Opened {
        session: SessionId(9_999),
        machine: "demo-worker-1".parse().unwrap(),
        incarnation,
        hello: hello(boot, None),
    };
    world.input(clone(incarnation, BootId(77)));
    assert_eq!(refusal(&world), Some(RefusalCode::SecondHolder));
    world.input(clone(Incarnation(0), BootId(77)));
    assert_eq!(refusal(&world), Some(RefusalCode::OldIncarnation));
    // It comes again and again, and is told of once.
    world.input(clone(Incarnation(0), BootId(77)));
    let told = world.events.iter().filter(|event| event.cause.starts_with("OldIncarnation")).count();
    assert_eq!(told, 1);
    // Newer than the record: the record is old, and says nothing against the machine.
    world.input(clone(Incarnation(incarnation.0 + 1), BootId(77)));
    assert_eq!(refusal(&world), Some(RefusalCode::UnknownMachine));
    // A machine that fell silent may come back with another boot: it was rebooted.
    let machine = world.machines.get_mut(&id).unwrap();
    machine.linked = false;
    world.run(8);
    world.sent.clear();
    world.input(clone(incarnation, BootId(78)));
    assert_eq!(refusal(&world), None);
}

#[test]
fn tokens_work_once_for_one_machine_and_not_for_ever() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.machines.values_mut().for_each(|machine| machine.linked = false);
    world.step();
    let machine = world.machines[&"demo-etcd-1".parse().unwrap()].clone();
    let request = |machine_id: &str, incarnation, token: &SecretBytes| EnrolRequest {
        machine: machine_id.parse().unwrap(),
        incarnation,
        token: token.clone(),
        signing_request: vec![1],
    };
    let other = world.machines[&"demo-master-1".parse().unwrap()].clone();
    let mut check = |request: EnrolRequest, key: &str, expected: Option<RefusalCode>| {
        let input = Input::Enrol { id: EnrolId(1), request, key_hash: Some(key.to_owned()) };
        let now = world.now();
        let effects = world.core.handle(now, input);
        let refused = effects.iter().find_map(|effect| match effect {
            Effect::RefuseEnrol { refusal, .. } => Some(refusal.code),
            _ => None,
        });
        assert_eq!(refused, expected);
    };
    let good = request("demo-etcd-1", machine.incarnation, &machine.token);
    check(request("nobody-1", machine.incarnation, &machine.token), "key", Some(RefusalCode::UnknownMachine));
    check(
        request("demo-etcd-1", machine.incarnation, &SecretBytes::new(b"00".to_vec())),
        "key",
        Some(RefusalCode::WrongToken),
    );
    check(request("demo-etcd-1", machine.incarnation, &other.token), "key", Some(RefusalCode::WrongToken));
    check(good.clone(), "key", None);
    check(good.clone(), "key", None);
    check(good, "another key", Some(RefusalCode::TokenUsed));
    world.ms += 2 * 3600 * 1000;
    let machine = world.machines[&"demo-worker-1".parse().unwrap()].clone();
    let late = request("demo-worker-1", machine.incarnation, &machine.token);
    let input = Input::Enrol { id: EnrolId(1), request: late, key_hash: Some("key".to_owned()) };
    let effects = world.core.handle(world.now(), input);
    assert!(effects.iter().any(|effect| matches!(effect,
        Effect::RefuseEnrol { refusal, .. } if refusal.code == RefusalCode::TokenExpired)));
}

#[test]
fn an_orphan_at_the_provider_is_swept() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let mut orphan = world.machines[&"demo-etcd-1".parse().unwrap()].clone();
    orphan.linked = false;
    world.machines.insert("demo-lost-7".parse().unwrap(), orphan);
    world.run(1_180);
    assert!(world.machines.contains_key(&"demo-lost-7".parse().unwrap()), "nobody had time to notice");
    world.run(100);
    assert!(!world.machines.contains_key(&"demo-lost-7".parse().unwrap()));
    assert_eq!(world.machines.len(), 4);
    assert!(world.reasons().contains(&"OrphanRemoved"));
}

/// An old copy of the database was restored: the record is old, and not the machine.
#[test]
fn a_machine_that_is_newer_than_its_record_is_not_removed() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let id = "demo-worker-1".parse().unwrap();
    let machine = world.machines.get_mut(&id).unwrap();
    (machine.incarnation, machine.linked) = (Incarnation(99), false);
    world.run(2_000);
    assert_eq!(world.machines[&id].incarnation, Incarnation(99));
    assert!(world.reasons().iter().all(|reason| *reason != "OrphanRemoved"), "{:?}", world.reasons());
}

#[test]
fn a_list_that_was_begun_before_a_machine_was_made_says_nothing_about_it() {
    let mut world = World::new();
    // The list of the first tick is answered with what was there before the cluster.
    let effects = world.core.handle(world.now(), Input::Tick);
    let list = effects.iter().find_map(|effect| match effect {
        Effect::Provider { id, call: ProviderCall::List } => Some(*id),
        _ => None,
    });
    world.create(&small("demo"));
    world.run(2);
    let answer = Ok(ProviderAnswer::Machines(Vec::new()));
    world.input(Input::Provider { id: list.unwrap(), result: answer });
    assert!(!world.reasons().contains(&"MachineOff"), "{:?}", world.reasons());
}

#[test]
fn api_servers_are_asked_whether_they_are_ready_and_services_of_users_for_their_port() {
    let mut world = World::new();
    let expose = serde_json::from_value(serde_json::json!([{ "name": "web", "nodePort": 30_080 }])).unwrap();
    world.create(&ClusterSpec { expose, ..small("demo") });
    world.run(CONVERGED);
    let cluster = world.core.cluster(&"demo".parse().unwrap()).unwrap();
    let checks: Vec<_> = cluster.exposures.iter().map(|(name, it)| (name.as_str(), &it.check)).collect();
    let ready = HealthCheck::Https { path: "/readyz".to_owned() };
    assert_eq!(checks, [("api", &ready), ("web", &HealthCheck::Tcp)]);
}

#[test]
fn a_protected_cluster_is_not_deleted() {
    let mut world = World::new();
    world.create(&small("demo"));
    let name = "demo".parse().unwrap();
    let protect = |protection| ClusterChange { protection: Some(protection), ..ClusterChange::default() };
    let _ = world.core.update_cluster(&name, protect(Protection::On)).unwrap();
    let refused = world.core.delete_cluster(world.now(), &name);
    assert_eq!(refused, Err(CommandError::Protected { name: name.clone() }));
    let _ = world.core.update_cluster(&name, protect(Protection::Off)).unwrap();
    assert!(world.core.delete_cluster(world.now(), &name).is_ok());
}

#[test]
fn labels_change_one_row_and_no_machine() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let name = "demo".parse().unwrap();
    let before = world.core.cluster(&name).unwrap().row.blueprint.clone();
    let labels = |key: &str| ClusterChange {
        labels: Some([(key.to_owned(), "prod".to_owned())].into()),
        ..ClusterChange::default()
    };
    let effects = world.core.update_cluster(&name, labels("env")).unwrap();
    assert!(matches!(effects.as_slice(), [Effect::Persist(rows)] if rows.len() == 1), "{effects:?}");
    assert!(world.core.update_cluster(&name, labels("-")).is_err());
    let sent = world.sent.len();
    world.run(CONVERGED);
    let row = &world.core.cluster(&name).unwrap().row;
    assert_eq!((&row.blueprint, row.spec.labels["env"].as_str()), (&before, "prod"));
    assert!(!world.sent[sent..].iter().any(|message| matches!(message, ToAgent::Config(_))));
}

#[test]
fn access_that_is_given_is_on_disk_as_an_event() {
    let mut world = World::new();
    world.create(&small("demo"));
    let (id, at) = (0, world.now().wall);
    let (cause, outcome) = ("asked for by admin".to_owned(), "a kubeconfig".to_owned());
    let reason = "KubeconfigIssued".to_owned();
    let (cluster, severity) = (Some("demo".parse().unwrap()), Severity::Info);
    let event =
        FleetEvent { id, at, severity, reason, cluster, machine: None, incident: None, cause, outcome };
    let before = world.core.newest_event();
    let effects = world.core.audit(event);
    let [Effect::Persist(rows), Effect::Note(noted)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(noted.id, before + 1);
    assert!(rows.iter().any(|row| matches!(row, Row::Event(kept) if **kept == *noted)), "{rows:?}");
}

#[test]
fn a_machine_gets_its_whole_config_once_and_again_only_when_it_is_newer() {
    let mut world = World::new();
    world.create(&small("demo"));
    world.run(CONVERGED);
    let configs = |world: &World| world.sent.iter().filter(|m| matches!(m, ToAgent::Config(_))).count();
    assert_eq!(configs(&world), 4);
    world.restart();
    world.run(CONVERGED);
    assert_eq!(configs(&world), 4);
    let machine = world.core.machine(&"demo-etcd-1".parse().unwrap()).unwrap();
    assert!(matches!(machine.row.phase, MachinePhase::Enrolled { .. }));
    assert_eq!(world.machines[&"demo-etcd-1".parse().unwrap()].generation, Some(Generation(1)));
}
