//! The store on real files: round trips, crashes, damage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;
use std::path::Path;

use keelson_coordinator_core::{ClusterRow, Counter, MachineRow, PauseNote, Row, Saved};
use keelson_model::material::Authority;
use keelson_model::{
    Blueprint, ClusterMaterial, ClusterNetwork, ClusterSpec, FleetEvent, MachinePhase, Operation,
    OperationId, OperationKind, OperationState, Plan, PlanName, Severity,
};
use keelson_pki::SealingKey;
use keelson_protocol::{Generation, Incarnation, SecretBytes, WallTime};

use crate::migrations::STEPS;
use crate::{EventFilter, EventRange, OfIncident, SCHEMA_VERSION, Store, StoreError};

fn key() -> SealingKey {
    SealingKey::new(&SecretBytes::new(vec![7; 32])).unwrap()
}

fn cluster() -> ClusterRow {
    let spec: ClusterSpec =
        serde_json::from_str(r#"{"name": "demo", "plan": "small", "release": "1.37.2"}"#).unwrap();
    let network = ClusterNetwork {
        pods: spec.pod_network,
        services: spec.service_network,
        domain: "cluster.local".to_owned(),
    };
    let blueprint = Blueprint {
        cluster: spec.name.clone(),
        generation: Generation(1),
        parent: None,
        rendering: 1,
        release: spec.release.clone(),
        network,
        machines: BTreeMap::new(),
        next_number: BTreeMap::new(),
        expose: Vec::new(),
    };
    let (created, first_ready) = (WallTime(5), None);
    ClusterRow {
        spec,
        wanted: true,
        blueprint,
        created,
        first_ready,
        first_answer: Some(WallTime(6)),
        conditions: Vec::new(),
        repair_paused: None,
    }
}

fn material() -> ClusterMaterial {
    let authority =
        Authority { certificate: "CERT".to_owned(), key: SecretBytes::new(b"very secret key".to_vec()) };
    ClusterMaterial {
        authorities: BTreeMap::new(),
        signer: authority,
        service_account_key: SecretBytes::new(b"another secret".to_vec()),
        service_account_public_key: "PUBLIC".to_owned(),
        encryption_key: SecretBytes::new(b"third".to_vec()),
    }
}

fn machine() -> MachineRow {
    MachineRow {
        id: "demo-etcd-1".parse().unwrap(),
        cluster: "demo".parse().unwrap(),
        incarnation: Incarnation(3),
        zone: "zone-a".to_owned(),
        phase: MachinePhase::Retrying { why: "no room".to_owned(), attempts: 2, next: WallTime(9) },
        token_made: WallTime(1),
        enrolled_key: None,
        renewed_keys: vec!["ab".repeat(32)],
        agent_events: 4,
        sent: None,
        leaving_since: None,
        incident: None,
        acts: Vec::new(),
        acting: None,
        asked: keelson_coordinator_core::Asked::Person,
        renew: false,
        forced: false,
        fenced: None,
        powering: true,
    }
}

fn plan() -> Plan {
    Plan { name: PlanName("web".to_owned()), ..Plan::built_in().remove(1) }
}

fn event(id: u64, severity: Severity) -> FleetEvent {
    FleetEvent {
        incident: None,
        id,
        at: WallTime(1),
        severity,
        reason: "MachineSilent".to_owned(),
        cluster: Some("demo".parse().unwrap()),
        machine: None,
        cause: "seen".to_owned(),
        outcome: "done".to_owned(),
    }
}

fn pause() -> PauseNote {
    PauseNote { by: "somebody".to_owned(), reason: Some("the switch is exchanged".to_owned()) }
}

fn saved() -> (Saved, Vec<Row>) {
    let operation = Operation {
        id: OperationId("op-1".to_owned()),
        kind: OperationKind::CreateCluster,
        cluster: "demo".parse().unwrap(),
        detail: None,
        created: WallTime(2),
        state: OperationState::Failed { at: WallTime(3), why: "no room".to_owned() },
    };
    let rows = vec![
        Row::Cluster(Box::new(cluster())),
        Row::Material("demo".parse().unwrap(), Box::new(material())),
        Row::Machine(Box::new(machine())),
        Row::Operation(Box::new(operation.clone())),
        Row::Counter(Counter::Event, 7),
        Row::Plan(Box::new(plan())),
        Row::Pause(None, Some(pause())),
        Row::Pause(Some("demo".parse().unwrap()), Some(pause())),
    ];
    let saved = Saved {
        clusters: vec![cluster()],
        material: vec![("demo".parse().unwrap(), material())],
        machines: vec![machine()],
        operations: vec![operation],
        counters: vec![(Counter::Event, 7)],
        plans: vec![plan()],
        pauses: vec![(None, pause()), (Some("demo".parse().unwrap()), pause())],
        idempotency: Vec::new(),
    };
    (saved, rows)
}

fn bytes_below(folder: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.flatten().collect()
}

#[test]
fn what_was_written_is_read_back_after_a_restart_and_no_secret_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    let (saved, rows) = saved();
    let mut store = Store::open(&path, key()).unwrap();
    store.apply(&rows).unwrap();
    // As after kill -9: nothing is closed, the write-ahead log is still there.
    std::mem::forget(store);
    assert_eq!(Store::open(&path, key()).unwrap().load().unwrap(), saved);
    let bytes = bytes_below(folder.path());
    for secret in [b"very secret key".as_slice(), b"another secret", b"third"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn removed_rows_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("keelson.db"), key()).unwrap();
    store.apply(&saved().1).unwrap();
    let rows = [
        Row::RemoveCluster("demo".parse().unwrap()),
        Row::RemoveMachine("demo-etcd-1".parse().unwrap()),
        Row::RemoveOperation(OperationId("op-1".to_owned())),
        Row::RemovePlan(PlanName("web".to_owned())),
        Row::Pause(None, None),
        Row::Pause(Some("demo".parse().unwrap()), None),
    ];
    store.apply(&rows).unwrap();
    let left = Saved { counters: vec![(Counter::Event, 7)], ..Saved::default() };
    assert_eq!(store.load().unwrap(), left);
}

#[test]
fn another_sealing_key_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    Store::open(&path, key()).unwrap().apply(&saved().1).unwrap();
    let other = SealingKey::new(&SecretBytes::new(vec![8; 32])).unwrap();
    assert!(matches!(Store::open(&path, other).unwrap().load(), Err(StoreError::Seal(_))));
}

#[test]
fn a_newer_file_is_refused_and_stays_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(connection);
    let before = bytes_below(folder.path());
    let refused = Store::open(&path, key());
    assert!(matches!(refused, Err(StoreError::Newer { .. })), "{refused:?}");
    assert_eq!(bytes_below(folder.path()), before);
}

#[test]
fn a_file_of_the_first_version_keeps_everything_and_takes_plans() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(STEPS[0]).unwrap();
    let row = serde_json::to_string(&cluster()).unwrap();
    connection.execute("INSERT INTO clusters VALUES ('demo', ?1)", [row]).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    let mut store = Store::open(&path, key()).unwrap();
    assert_eq!(store.load().unwrap(), Saved { clusters: vec![cluster()], ..Saved::default() });
    store.apply(&[Row::Plan(Box::new(plan()))]).unwrap();
    drop(store);
    let saved = Store::open(&path, key()).unwrap().load().unwrap();
    assert_eq!((saved.plans, saved.clusters), (vec![plan()], vec![cluster()]));
}

#[test]
fn a_damaged_file_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    std::fs::write(&path, vec![0x55; 8192]).unwrap();
    let refused = Store::open(&path, key());
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

#[test]
fn events_are_filtered_and_ordered() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("keelson.db"), key()).unwrap();
    let severities = [Severity::Info, Severity::Warning, Severity::Alarm, Severity::Info];
    let rows: Vec<Row> =
        (1_u64..).zip(severities).map(|(id, severity)| Row::Event(Box::new(event(id, severity)))).collect();
    store.apply(&rows).unwrap();
    let check = |range, severity_min, count_max, expected: &[u64]| {
        let (cluster, machine, incident) = (None, None, OfIncident::Whatever);
        let filter = EventFilter { range, severity_min, cluster, machine, incident, count_max };
        let ids: Vec<u64> = store.events(&filter).unwrap().iter().map(|event| event.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    };
    check(EventRange::After(0), Severity::Info, 10, &[1, 2, 3, 4]);
    check(EventRange::After(2), Severity::Info, 1, &[3]);
    check(EventRange::Newest, Severity::Info, 2, &[3, 4]);
    check(EventRange::After(0), Severity::Warning, 10, &[2, 3]);
    assert_eq!(store.oldest_event().unwrap(), Some(1));
}

#[test]
fn an_event_that_cannot_be_read_does_not_keep_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    let mut store = Store::open(&path, key()).unwrap();
    let rows: Vec<Row> = (1..=3).map(|id| Row::Event(Box::new(event(id, Severity::Info)))).collect();
    store.apply(&rows).unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE events SET row = '{}' WHERE id = 2", []).unwrap();
    let filter = EventFilter {
        range: EventRange::After(0),
        severity_min: Severity::Info,
        cluster: None,
        machine: None,
        incident: OfIncident::Whatever,
        count_max: 10,
    };
    let ids: Vec<u64> = store.events(&filter).unwrap().iter().map(|event| event.id).collect();
    assert_eq!(ids, [1, 3]);
}

#[test]
fn events_of_an_incident_are_found_also_in_a_file_of_the_second_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keelson.db");
    let of = |id, incident| FleetEvent { incident, ..event(id, Severity::Info) };
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&STEPS[..2].concat()).unwrap();
    for (id, incident) in [(1_i64, Some(7)), (2, None)] {
        let row = serde_json::to_string(&of(id as u64, incident)).unwrap();
        connection
            .execute("INSERT INTO events VALUES (?1, 0, NULL, NULL, ?2)", rusqlite::params![id, row])
            .unwrap();
    }
    connection.pragma_update(None, "user_version", 2).unwrap();
    drop(connection);
    let mut store = Store::open(&path, key()).unwrap();
    let rows: Vec<Row> =
        [of(3, Some(7)), of(4, Some(8)), of(5, None)].map(|e| Row::Event(Box::new(e))).into();
    store.apply(&rows).unwrap();
    let check = |incident, expected: &[u64]| {
        let (range, severity_min) = (EventRange::Newest, Severity::Info);
        let filter =
            EventFilter { range, severity_min, cluster: None, machine: None, incident, count_max: 10 };
        let ids: Vec<u64> = store.events(&filter).unwrap().iter().map(|event| event.id).collect();
        assert_eq!(ids, expected, "{incident:?}");
    };
    check(OfIncident::Whatever, &[1, 2, 3, 4, 5]);
    check(OfIncident::Any, &[1, 3, 4]);
    check(OfIncident::Number(7), &[1, 3]);
    check(OfIncident::Number(9), &[]);
}
