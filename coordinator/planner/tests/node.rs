//! What machines are told: golden texts of whole configs, and rules that hold for each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "this test keeps golden files")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use common::{World, material, spec};
use keelson_model::{Blueprint, BlueprintMachine};
use keelson_planner::Wanted;
use keelson_planner::node::{HostTraits, NodeInput, nearest, node_config};
use keelson_protocol::config::{FileContent, Need, NodeConfig};
use keelson_protocol::health::CgroupVersion;
use keelson_protocol::limits::NEIGHBOURS_MAX;
use keelson_protocol::{MachineId, SecretBytes, wire};
use serde_json::json;

/// What a host of 24 GiB has to give, which differs by a little from one kernel to the next.
const MEMORY_BYTES: u64 = (24 << 30) - 300_000;
/// Set to write the golden files anew.
const UPDATE: &str = "KEELSON_UPDATE_GOLDEN";

fn config(blueprint: &Blueprint, machine: &str, cgroup: CgroupVersion) -> NodeConfig {
    let (world, material) = (World::new(), material());
    let traits = HostTraits {
        cgroup,
        may_raise_limits: cgroup == CgroupVersion::V2,
        cpus: 2,
        memory_bytes: MEMORY_BYTES,
    };
    let (release, peer_key) =
        (&world.release, &SecretBytes::new(b"(key of the peer probes, 32 by.)".to_vec()));
    let input = NodeInput { blueprint, release, material: &material, peer_key, traits };
    node_config(&input, &machine.parse().unwrap()).unwrap()
}

fn small() -> Blueprint {
    World::new().plan(&spec("small", json!({})), Wanted::Present, None).unwrap()
}

fn text(config: &NodeConfig) -> String {
    let mut text = String::new();
    for file in &config.files {
        let content = match &file.content {
            FileContent::Text(content) => content.clone(),
            FileContent::Secret(_) => "(secret)\n".to_owned(),
        };
        write!(text, "==== file {} {:o}\n{content}", file.path, file.mode).unwrap();
    }
    for certificate in &config.certificates {
        writeln!(text, "==== certificate {}\n{certificate:#?}", certificate.name).unwrap();
    }
    for unit in &config.units {
        writeln!(text, "==== unit {}\n{unit:#?}", unit.name).unwrap();
    }
    writeln!(text, "==== routes\n{:#?}\n==== balancer\n{:#?}", config.routes, config.balancer).unwrap();
    writeln!(text, "==== peers\n{:#?}", config.peers).unwrap();
    writeln!(text, "==== remedies\n{:#?}\n==== lease\n{:#?}", config.remedies, config.lease).unwrap();
    text
}

fn check_golden(name: &str, config: &NodeConfig) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = text(config);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} differs from {path}; set {UPDATE}=1 to write it anew, then read the diff"
    );
}

#[test]
fn configs_are_as_recorded() {
    let blueprint = small();
    check_golden("small-etcd", &config(&blueprint, "demo-etcd-1", CgroupVersion::V1));
    check_golden("small-master", &config(&blueprint, "demo-master-1", CgroupVersion::V1));
    check_golden("small-worker", &config(&blueprint, "demo-worker-1", CgroupVersion::V1));
    check_golden("small-worker-cgroup2", &config(&blueprint, "demo-worker-1", CgroupVersion::V2));
}

#[test]
fn every_config_passes_its_own_checks_and_fits_into_a_message() {
    let tiny = World::new().plan(&spec("tiny", json!({})), Wanted::Present, None).unwrap();
    for blueprint in [small(), tiny] {
        for id in blueprint.machines.keys() {
            let config = config(&blueprint, id.as_str(), CgroupVersion::V1);
            config.check().unwrap();
            wire::encode(&keelson_protocol::message::ToAgent::Config(Box::new(config))).unwrap();
        }
    }
}

/// The host of these machines has two CPUs and 24 GiB, and a container sees all of it.
#[test]
fn a_node_has_the_labels_and_taints_of_its_pool_and_no_more_room_than_its_machine() {
    let mut blueprint = small();
    let worker = blueprint.machines.get_mut(&"demo-worker-1".parse().unwrap()).unwrap();
    worker.labels.insert("disk".to_owned(), "fast".to_owned());
    worker.taints =
        serde_json::from_value(json!([{ "key": "only", "value": "db", "effect": "NoSchedule" }])).unwrap();
    (worker.size.cpu_millis, worker.size.memory_bytes) = (Some(500), Some(4 << 30));
    let config = config(&blueprint, "demo-worker-1", CgroupVersion::V2);
    let kubelet = config.units.iter().find(|unit| unit.name == "kubelet.service").unwrap();
    let labels = kubelet.command.iter().find(|word| word.starts_with("--node-labels=")).unwrap();
    assert!(labels.contains("disk=fast,") && labels.contains("keelson.dev/pool=worker"), "{labels}");
    let file = config.files.iter().find(|file| file.path.ends_with("/kubelet.json")).unwrap();
    let kubelet: serde_json::Value = serde_json::from_slice(file.content.bytes()).unwrap();
    assert_eq!(
        kubelet["registerWithTaints"],
        json!([{ "key": "only", "value": "db", "effect": "NoSchedule" }])
    );
    assert_eq!(kubelet["systemReserved"], json!({ "cpu": "1500m", "memory": "20Gi" }));
}

/// What a machine may do to itself follows from what others lose by it.
#[test]
fn repairs_fit_the_roles() {
    let tiny = World::new().plan(&spec("tiny", json!({})), Wanted::Present, None).unwrap();
    let blueprint = small();
    let check = |config: &NodeConfig, expected: &[&str], gives_up: bool| {
        let names: Vec<&str> = config.remedies.iter().map(|remedy| remedy.name.as_str()).collect();
        assert_eq!(names, expected, "{}", config.machine);
        assert_eq!(config.lease.is_some(), gives_up, "{}", config.machine);
    };
    let of = |machine: &str| config(&blueprint, machine, CgroupVersion::V1);
    check(&of("demo-etcd-1"), &["disk", "inodes", "etcd-space"], false);
    let state = ["containerd-state", "kubelet-files", "kubelet-directory"];
    let worker = [&["disk", "inodes"], &state[..], &["reboot"]].concat();
    check(&of("demo-worker-1"), &worker, true);
    // An API server may be the last one, which only the coordinator knows.
    check(&of("demo-master-1"), &worker[..worker.len() - 1], false);
    let all = [&["disk", "inodes", "etcd-space"], &state[..]].concat();
    check(&config(&tiny, "demo-node-1", CgroupVersion::V1), &all, false);
}

#[test]
fn a_runtime_with_empty_state_gets_all_images_again() {
    let config = config(&small(), "demo-worker-1", CgroupVersion::V1);
    let remedy = config.remedies.iter().find(|remedy| remedy.name == "containerd-state").unwrap();
    let imports = config.units.iter().filter(|unit| unit.name.starts_with("image-"));
    let imports: Vec<&String> = imports.map(|unit| &unit.name).collect();
    assert_eq!(imports.len(), 2);
    assert!(imports.iter().all(|unit| remedy.hold.contains(unit)), "{:?}", remedy.hold);
}

#[test]
fn needs_of_units_have_no_circle() {
    let tiny = World::new().plan(&spec("tiny", json!({})), Wanted::Present, None).unwrap();
    let config = config(&tiny, "demo-node-1", CgroupVersion::V1);
    let mut started: Vec<&str> = Vec::new();
    while started.len() < config.units.len() {
        let ready = config.units.iter().find(|unit| {
            !started.contains(&unit.name.as_str())
                && unit.needs.iter().all(|need| match need {
                    Need::Unit(name) => started.contains(&name.as_str()),
                    Need::Probe(_) | Need::AnyProbe(_) => true,
                })
        });
        started.push(&ready.expect("some unit must be startable").name);
    }
}

#[test]
fn secrets_stay_out_of_texts_and_command_lines() {
    let blueprint = small();
    for id in blueprint.machines.keys() {
        let shown = text(&config(&blueprint, id.as_str(), CgroupVersion::V1));
        for secret in [
            "(service account key)",
            "(encryption key)",
            "(signer key)",
            "(Kubernetes key)",
            "key of the peer",
        ] {
            assert!(!shown.contains(secret), "{id} shows {secret}");
        }
    }
}

#[test]
fn keys_of_authorities_never_leave_the_coordinator() {
    let blueprint = small();
    for id in blueprint.machines.keys() {
        let config = config(&blueprint, id.as_str(), CgroupVersion::V1);
        for file in &config.files {
            let content = String::from_utf8_lossy(file.content.bytes());
            for key in ["(Kubernetes key)", "(Etcd key)", "(FrontProxy key)"] {
                assert!(!content.contains(key), "{id}: {} holds {key}", file.path);
            }
        }
    }
}

/// A blueprint with these machines: name and zone of each.
fn placed(machines: &[(&str, &str)]) -> Blueprint {
    let mut blueprint = small();
    let like = blueprint.machines.values().next().unwrap().clone();
    blueprint.machines = machines
        .iter()
        .map(|(id, zone)| {
            let id: MachineId = id.parse().unwrap();
            (id.clone(), BlueprintMachine { id, zone: (*zone).to_owned(), ..like.clone() })
        })
        .collect();
    blueprint
}

#[test]
fn neighbours_are_two_of_the_zone_then_all_zones_in_turn() {
    let blueprint = placed(&[
        ("m1", "a"),
        ("m2", "b"),
        ("m3", "c"),
        ("m4", "a"),
        ("m5", "b"),
        ("m6", "c"),
        ("m7", "a"),
        ("m8", "a"),
        ("m9", "b"),
    ]);
    let check = |id: &str, count_max: usize, expected: &[&str]| {
        let machine = &blueprint.machines[&id.parse().unwrap()];
        let near = nearest(&blueprint, machine, count_max, |_| true);
        assert_eq!(near.iter().map(|other| other.id.as_str()).collect::<Vec<_>>(), expected, "{id}");
    };
    check("m1", 8, &["m4", "m7", "m2", "m3", "m5", "m6", "m9", "m8"]);
    check("m2", 8, &["m5", "m9", "m3", "m4", "m6", "m7", "m8", "m1"]);
    check("m8", 8, &["m1", "m4", "m9", "m3", "m2", "m6", "m5", "m7"]);
    check("m6", 3, &["m3", "m7", "m9"]);
    check("m6", 0, &[]);
    let even = |machine: &BlueprintMachine| machine.id.as_str().ends_with(['2', '4', '6', '8']);
    let fit = nearest(&blueprint, &blueprint.machines[&"m1".parse().unwrap()], 3, even);
    assert_eq!(fit.iter().map(|other| other.id.as_str()).collect::<Vec<_>>(), ["m4", "m8", "m2"]);
}

#[test]
fn no_machine_is_everybodys_neighbour() {
    let names: Vec<String> = (100..400).map(|number| format!("m{number}")).collect();
    let zones = ["a", "b", "c"];
    let machines: Vec<(&str, &str)> =
        names.iter().enumerate().map(|(index, name)| (name.as_str(), zones[index % 3])).collect();
    let blueprint = placed(&machines);
    let mut asked_by: BTreeMap<&MachineId, usize> = BTreeMap::new();
    for machine in blueprint.machines.values() {
        let near = nearest(&blueprint, machine, NEIGHBOURS_MAX, |_| true);
        assert_eq!(near.len(), NEIGHBOURS_MAX);
        assert!(near.iter().all(|other| other.id != machine.id));
        near.iter().for_each(|other| *asked_by.entry(&other.id).or_default() += 1);
    }
    assert_eq!(asked_by.len(), 300, "everybody is somebody's neighbour");
    assert!(asked_by.values().all(|count| *count <= 2 * NEIGHBOURS_MAX), "{asked_by:?}");
}
