//! What a machine may do for itself when starting a program again is no help, and when it gives up its work.
//!
//! Order is escalation: first room, because a full disk explains everything else; then etcd, which can only be short of
//! room of its own; then the state of the runtime and of the kubelet, the milder before the harsher; at last a reboot.
//! What each repair relies on is upstream's documentation or source; docs/reliability.md has the table for operators.
//!
//! Nothing is done about lock files and sockets of a program that was killed: etcd and containerd lock their databases
//! with flock(2), which the kernel lifts with the process, and containerd removes its own socket before it listens.
//! Tried with etcd 3.7.3 and containerd 2.3.6: both start after `kill -9`.

use keelson_model::Role;
use keelson_protocol::config::UnitKind;
use keelson_protocol::remedy::{Argument, LeaseSpec, RemedyAct, RemedyLimit, RemedySpec, Trigger};

use super::kube::{api_probe, http_probe};
use super::{Node, etcdctl, paths};

const CONTAINERD: &str = "containerd.service";
const KUBELET: &str = "kubelet.service";
const CONTAINERD_STATE: &str = "/var/lib/containerd";
const CONTAINERD_RUN: &str = "/run/containerd";
const KUBELET_STATE: &str = "/var/lib/kubelet";
/// Network namespaces of pods, by the name that containerd gives their folder.
const POD_NETWORKS: &str = "/run/netns";
/// Chain in which the portmap plugin keeps the ports of a host that lead to pods (containernetworking/plugins, portmap).
const HOST_PORTS: &str = "CNI-HOSTPORT-DNAT";

/// Control groups of the runtime, whose shims outlive it, and of all pods, by the names that the kubelet's two drivers
/// give them (<https://kubernetes.io/docs/setup/production-environment/container-runtimes/#cgroup-drivers>).
const CONTAINER_CGROUPS: [&str; 3] = ["system.slice/containerd.service", "kubepods.slice", "kubepods"];

/// Files in which the kubelet keeps what it decided (pkg/kubelet of Kubernetes 1.37: cpumanager, memorymanager, dra,
/// devicemanager, allocation, kuberuntime, nodeshutdown). One that cannot be read keeps it from starting; without them it
/// decides anew. Its `pki` folder is not among them: its certificates are this machine's own.
const KUBELET_FILES: [&str; 8] = [
    "cpu_manager_state",
    "memory_manager_state",
    "dra_manager_state",
    "dra_health_state",
    "device-plugins/kubelet_internal_checkpoint",
    "allocated_pods_state",
    "actuated_pods_state",
    "graceful_node_shutdown_state",
];

/// A program that fell so often in a row does so because of what it finds; with the agent's backoff that takes half a
/// minute.
const FALLS: u8 = 5;
/// One that hangs was restarted by then, four times when it starts quickly, and a quick one needs no longer to be healthy.
const STUCK_S: u16 = 180;
/// Until a runtime is healthy with empty state, or a kubelet has registered; images are imported meanwhile.
const SETTLE_S: u16 = 180;
/// The disk is tidied up from here on: the kubelet evicts pods only at the last gigabyte.
const FULL_PERCENT: u8 = 85;
/// A person must make room from here on.
const FULL_ALARM_PERCENT: u8 = 90;
/// A fleet whose kubelets all fall begins to end pods over this time. It is over before ten starts were in vain, which takes
/// five minutes and brings the coordinator to take the machine's power.
const HARSHER_SPREAD_S: u16 = 240;
/// Logs that programs have set aside are of use for a day.
const LOG_AGE_S: u32 = 24 * 3600;
/// The journal keeps so much when room runs short; its own limit is 256 MB.
const JOURNAL_KEPT: &str = "--vacuum-size=64M";
/// Time for a command that only asks, and for one that removes, in seconds.
const ASK_TIMEOUT_S: u16 = 60;
const REMOVE_TIMEOUT_S: u16 = 300;
/// Time for etcd to rewrite its largest file: 8 GB at 30 MB/s.
const DEFRAGMENT_TIMEOUT_S: u16 = 300;
/// A worker that was cut off for so long has stopped its containers; what evacuates it waits for longer.
const LEASE_S: u16 = 60;

/// Adds what fits the machine's roles.
pub(crate) fn add(node: &mut Node) {
    let roles = node.machine.roles.clone();
    let pods = node.machine.pods.is_some();
    let mut remedies = room(node, pods);
    if roles.contains(&Role::Etcd) {
        remedies.push(nospace(node));
    }
    if pods {
        remedies.push(containerd(node));
        remedies.extend(kubelet());
        // A reboot takes an etcd member or an API server away, and a machine cannot know whether the others can spare it: on
        // those, this last rung is the coordinator's, which asks all of them first.
        if !roles.contains(&Role::Etcd) && !roles.contains(&Role::Master) {
            remedies.push(reboot());
        }
    }
    node.config.remedies = remedies;
    // Masters keep running: their containers are their own, and an API server that nobody reaches harms nobody.
    if pods && !roles.contains(&Role::Etcd) && !roles.contains(&Role::Master) {
        node.config.lease = Some(lease());
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(command: Vec<String>, timeout_s: u16) -> RemedyAct {
    RemedyAct::Run { command, argument: None, done_when: None, timeout_s }
}

fn end_containers() -> RemedyAct {
    RemedyAct::EndProcesses { cgroups: words(&CONTAINER_CGROUPS) }
}

/// Makes room. Disk and inodes are two remedies, so that each says which of the two ran short; both do the same.
fn room(node: &Node, pods: bool) -> Vec<RemedySpec> {
    let mut acts = vec![run(words(&["/usr/bin/journalctl", JOURNAL_KEPT]), ASK_TIMEOUT_S)];
    let old = |directory: &str, name_contains: &str| RemedyAct::RemoveOld {
        directory: directory.to_owned(),
        name_contains: name_contains.to_owned(),
        age_min_s: LOG_AGE_S,
    };
    // `0.log.20260102-030405` and `.gz` of the kubelet, `x.log.1` of everybody else.
    acts.push(old("/var/log", ".log."));
    if node.machine.roles.contains(&Role::Master) {
        // The one in use is audit.log; the API server's own rotation has put dates into the names of the others.
        acts.push(old(paths::AUDIT_DIRECTORY, "audit-"));
    }
    if pods {
        acts.push(RemedyAct::RemoveAside { directories: words(&[CONTAINERD_STATE, KUBELET_STATE]) });
        acts.push(unused_images(node));
    }
    let (percent, alarm_percent) = (FULL_PERCENT, FULL_ALARM_PERCENT);
    let limit =
        RemedyLimit { per_hour_max: 1, per_day_max: 6, cooldown_s: 3_600, spread_s: 30, settle_s: 60 };
    let remedy = |name: &str, when: Trigger| RemedySpec {
        name: name.to_owned(),
        when: vec![when],
        hold: Vec::new(),
        acts: acts.clone(),
        limit,
    };
    vec![
        remedy("disk", Trigger::DiskFull { percent, alarm_percent }),
        remedy("inodes", Trigger::InodesFull { percent, alarm_percent }),
    ]
}

/// Images that no container uses and that were pulled. `ctr images prune --all` would remove those of the node image as
/// well, which nobody can pull again; containerd notes the registry with the content of each image that was pulled, and
/// not with what was imported.
fn unused_images(node: &Node) -> RemedyAct {
    let ctr = |arguments: &[&str]| {
        let mut command = vec![node.program("ctr"), "--namespace=k8s.io".to_owned()];
        command.extend(words(arguments));
        command
    };
    RemedyAct::Sweep {
        list: ctr(&["images", "list"]),
        used: ctr(&["containers", "list"]),
        source: ctr(&["content", "list"]),
        source_says: "containerd.io/distribution.source.".to_owned(),
        remove: ctr(&["images", "remove", "--sync"]),
        timeout_s: REMOVE_TIMEOUT_S,
    }
}

/// etcd refuses writes because its file has reached its quota: history is dropped, the file is rewritten, the alarm is
/// taken back (<https://etcd.io/docs/v3.6/op-guide/maintenance/#space-quota>).
///
/// Each member does this for itself, and no machine can make the others wait. That is acceptable: the cluster takes no
/// writes as long as the alarm stands, so a member that stands still for the seconds of its rewriting takes away reads
/// only; the spread makes two at once unlikely; and the cooldown leaves the next turn to a member whose file is still
/// large, should the alarm come again because of it.
fn nospace(node: &Node) -> RemedySpec {
    let release = &node.input.blueprint.release;
    let local = |arguments: &[&str], timeout_s: u16| etcdctl::local_command(release, timeout_s, arguments);
    let compact = RemedyAct::Run {
        command: local(&["compaction", "--physical"], ASK_TIMEOUT_S),
        argument: Some(Argument {
            command: local(&["endpoint", "status"], ASK_TIMEOUT_S),
            pointer: "/0/Status/header/revision".to_owned(),
        }),
        // Another member was faster.
        done_when: Some("required revision has been compacted".to_owned()),
        timeout_s: DEFRAGMENT_TIMEOUT_S,
    };
    RemedySpec {
        name: "etcd-space".to_owned(),
        when: vec![Trigger::Says {
            // Serializable: this member alone answers, so that a lost quorum is no part of it.
            probe: http_probe("etcd's room", paths::ETCD_METRICS_PORT, "/health?serializable=true"),
            text: "NOSPACE".to_owned(),
            every_s: 60,
        }],
        hold: Vec::new(),
        acts: vec![
            compact,
            run(local(&["defrag"], DEFRAGMENT_TIMEOUT_S), DEFRAGMENT_TIMEOUT_S + 10),
            run(local(&["alarm", "disarm"], ASK_TIMEOUT_S), ASK_TIMEOUT_S),
        ],
        limit: RemedyLimit { per_hour_max: 2, per_day_max: 4, cooldown_s: 900, spread_s: 60, settle_s: 60 },
    }
}

/// The runtime does not come up with what it finds: it gets empty state, and images are imported again. Its containers
/// go, because their file systems do.
fn containerd(node: &Node) -> RemedySpec {
    let mut hold = words(&[KUBELET, CONTAINERD]);
    // Every oneshot that needs the runtime put something into it.
    let needs = |unit: &keelson_protocol::config::UnitSpec| {
        unit.needs.contains(&keelson_protocol::config::Need::Unit(CONTAINERD.to_owned()))
    };
    let imports = node.config.units.iter().filter(|unit| unit.kind == UnitKind::Oneshot && needs(unit));
    hold.extend(imports.map(|unit| unit.name.clone()));
    RemedySpec {
        name: "containerd-state".to_owned(),
        when: vec![failing(CONTAINERD)],
        hold,
        acts: vec![
            end_containers(),
            RemedyAct::Unmount { below: words(&[CONTAINERD_RUN, CONTAINERD_STATE, POD_NETWORKS]) },
            RemedyAct::MoveAside { directory: CONTAINERD_STATE.to_owned() },
            // Nobody remembers the pods any more, to give back their addresses and ports.
            RemedyAct::MoveAside { directory: paths::POD_ADDRESSES.to_owned() },
            RemedyAct::Run {
                command: words(&["/usr/sbin/iptables", "--wait", "--table=nat", "--flush", HOST_PORTS]),
                argument: None,
                done_when: Some("No chain/target/match by that name".to_owned()),
                timeout_s: ASK_TIMEOUT_S,
            },
        ],
        limit: state_limit(),
    }
}

/// The kubelet does not come up with what it finds: first without its small files, which costs nothing but decisions;
/// then with an empty directory, for which its pods have to end.
fn kubelet() -> [RemedySpec; 2] {
    let remedy = |name: &str, acts: Vec<RemedyAct>| RemedySpec {
        name: name.to_owned(),
        when: vec![failing(KUBELET)],
        hold: words(&[KUBELET]),
        acts,
        limit: state_limit(),
    };
    let files = KUBELET_FILES.map(|file| format!("{KUBELET_STATE}/{file}")).to_vec();
    let directory = vec![
        end_containers(),
        RemedyAct::Unmount { below: words(&[KUBELET_STATE]) },
        RemedyAct::MoveAside { directory: KUBELET_STATE.to_owned() },
    ];
    let mut harsher = remedy("kubelet-directory", directory);
    // The shims of the pods that end are the runtime's.
    harsher.hold = words(&[KUBELET, CONTAINERD]);
    // What makes the kubelets of a whole fleet fall at once may come from the API: their pods run on meanwhile, and must not all
    // end in one moment.
    harsher.limit.spread_s = HARSHER_SPREAD_S;
    [remedy("kubelet-files", vec![RemedyAct::RemoveFiles { paths: files }]), harsher]
}

/// The last rung. A whole fleet that sees the same trouble does not go down in one moment.
fn reboot() -> RemedySpec {
    let given_up = |unit: &str| Trigger::GivenUp { unit: unit.to_owned(), times: 2, stuck_s: 3_600 };
    RemedySpec {
        name: "reboot".to_owned(),
        when: vec![given_up(CONTAINERD), given_up(KUBELET)],
        hold: Vec::new(),
        acts: vec![RemedyAct::Reboot],
        limit: RemedyLimit {
            per_hour_max: 1,
            per_day_max: 2,
            cooldown_s: 3_600,
            spread_s: 300,
            settle_s: 600,
        },
    }
}

fn failing(unit: &str) -> Trigger {
    Trigger::Failing { unit: unit.to_owned(), falls: FALLS, stuck_s: STUCK_S }
}

/// State is thrown away at most twice a day: a third time it is not the state.
fn state_limit() -> RemedyLimit {
    RemedyLimit { per_hour_max: 1, per_day_max: 2, cooldown_s: 3_600, spread_s: 0, settle_s: SETTLE_S }
}

/// Stateful pods of a worker that nobody reaches may run elsewhere once it has stopped its own.
fn lease() -> LeaseSpec {
    LeaseSpec {
        lost_after_s: LEASE_S,
        probe: api_probe("the API server", paths::API_READY_PATH, None),
        units: words(&[KUBELET, CONTAINERD]),
        cgroups: words(&CONTAINER_CGROUPS),
    }
}
