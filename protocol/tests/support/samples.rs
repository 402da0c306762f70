//! One message of every variant, with every field set to something that shows: their encodings are the golden bytes.
//!
//! A new variant or field goes to the end of its list here. A sample never changes after its release.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use keelson_protocol::config::{
    BalancerCheck, BalancerSpec, CertificateSpec, ClientFiles, Expect, FileContent, FileSpec, Hardening,
    Issuer, Need, NodeConfig, PeerSpec, ProbeSpec, ProbeTarget, RouteSpec, UnitKind, UnitSpec, Usage,
};
use keelson_protocol::health::{
    AgentEvent, CertificateHealth, CgroupVersion, DiskFact, EventKind, Facts, HealthReport, Heartbeat,
    NodeState, Pressure, ReleaseFact, UnitHealth, UnitState,
};
use keelson_protocol::message::{
    BulkReply, BulkRequest, EnrolReply, EnrolRequest, Refusal, RefusalCode, ShellFrame, ToAgent,
    ToCoordinator,
};
use keelson_protocol::peer::{
    DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, Datagram, DatagramKind, PeerAnswer, PeerKey, PeerSaid, PeerTarget,
};
use keelson_protocol::remedy::{Argument, LeaseSpec, RemedyAct, RemedyLimit, RemedySpec, Trigger};
use keelson_protocol::wire::{Message, ProtocolVersion, encode};
use keelson_protocol::{
    BootId, ClusterName, Generation, Incarnation, MachineId, ReleaseName, SecretBytes, WallTime,
};

/// A golden file: decoder, name of the sample, bytes.
pub(crate) type Golden = (&'static str, String, Vec<u8>);

/// Every sample, encoded.
pub(crate) fn all() -> Vec<Golden> {
    let mut all = Vec::new();
    add(&mut all, "heartbeat", heartbeats());
    add(&mut all, "enrol_request", vec![("request".into(), enrol_request())]);
    add(&mut all, "enrol_reply", enrol_replies());
    add(&mut all, "to_coordinator", to_coordinator());
    add(&mut all, "to_agent", to_agent());
    add(&mut all, "bulk_request", bulk_requests());
    add(
        &mut all,
        "bulk_reply",
        vec![
            ("accepted".into(), BulkReply::Accepted),
            ("refused".into(), BulkReply::Refused { why: "no such unit".into() }),
        ],
    );
    add(
        &mut all,
        "shell_frame",
        vec![
            ("data".into(), ShellFrame::Data(b"ls -l\r\n".to_vec())),
            ("resize".into(), ShellFrame::Resize { rows: 50, columns: 132 }),
            ("exit".into(), ShellFrame::Exit { code: -1 }),
            ("error".into(), ShellFrame::Error(b"no such file".to_vec())),
            ("end-of-input".into(), ShellFrame::EndOfInput),
        ],
    );
    let probes = peer_datagrams();
    all.extend(probes.into_iter().map(|(name, probe)| ("peer_datagram", name, probe.encode(&peer_key()))));
    all
}

fn add<M: Message>(all: &mut Vec<Golden>, decoder: &'static str, samples: Vec<(String, M)>) {
    for (name, message) in samples {
        all.push((decoder, name, encode(&message).unwrap()));
    }
}

/// One heartbeat for each state of a machine.
pub(crate) fn heartbeats() -> Vec<(String, Heartbeat)> {
    let states =
        [NodeState::Ready, NodeState::Idle, NodeState::Applying, NodeState::Degraded, NodeState::Failed];
    let sample = |state| Heartbeat {
        sequence: 86_400,
        boot: BootId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        generation: Generation(300),
        state,
        report: 17,
    };
    states.into_iter().map(|state| (state.to_string(), sample(state))).collect()
}

/// An enrolment.
pub(crate) fn enrol_request() -> EnrolRequest {
    EnrolRequest {
        machine: machine(),
        incarnation: Incarnation(2),
        token: SecretBytes::new(b"single-use token".to_vec()),
        signing_request: vec![0x30, 0x03, 0x02, 0x01, 0x00],
    }
}

/// Every answer to an enrolment, with every code of a refusal.
pub(crate) fn enrol_replies() -> Vec<(String, EnrolReply)> {
    let codes = [
        RefusalCode::UnknownMachine,
        RefusalCode::WrongToken,
        RefusalCode::TokenUsed,
        RefusalCode::TokenExpired,
        RefusalCode::OldIncarnation,
        RefusalCode::SecondHolder,
        RefusalCode::Version,
        RefusalCode::BadSigningRequest,
        RefusalCode::Busy,
    ];
    let refused = codes.into_iter().map(|code| {
        let refusal = Refusal { code, text: "what to do".into() };
        (format!("refused-{code:?}"), EnrolReply::Refused(refusal))
    });
    let accepted = ("accepted".to_owned(), EnrolReply::Accepted { chain: vec![vec![1, 2], vec![3]] });
    std::iter::once(accepted).chain(refused).collect()
}

/// Every message to the coordinator.
pub(crate) fn to_coordinator() -> Vec<(String, ToCoordinator)> {
    let hello = |generation, cgroup| ToCoordinator::Hello {
        version_min: ProtocolVersion(1),
        version_max: ProtocolVersion(300),
        boot: BootId(7),
        generation,
        facts: Box::new(facts(cgroup)),
    };
    vec![
        ("hello".into(), hello(Some(Generation(5)), CgroupVersion::V2)),
        ("hello-new".into(), hello(None, CgroupVersion::V1)),
        ("health".into(), ToCoordinator::Health(Box::new(health()))),
        ("events".into(), ToCoordinator::Events(events())),
        (
            "sign_certificate".into(),
            ToCoordinator::SignCertificate {
                name: "kubelet-client".into(),
                generation: Generation(5),
                signing_request: vec![0x30, 0x00],
            },
        ),
        ("renew_link".into(), ToCoordinator::RenewLink { signing_request: vec![0x30, 0x01, 0x05] }),
        ("time_request".into(), ToCoordinator::TimeRequest { asked_at: WallTime(1_767_225_600_123) }),
        ("peers_probed".into(), ToCoordinator::PeersProbed { id: 300, answers: peer_answers() }),
    ]
}

/// Every message to an agent.
pub(crate) fn to_agent() -> Vec<(String, ToAgent)> {
    let chain = vec![vec![0x30, 0x02, 0x05, 0x00], vec![0x30, 0x00]];
    vec![
        ("welcome".into(), ToAgent::Welcome { version: ProtocolVersion(1), now: WallTime(-1) }),
        (
            "refused".into(),
            ToAgent::Refused(Refusal { code: RefusalCode::SecondHolder, text: "who are you".into() }),
        ),
        ("config".into(), ToAgent::Config(Box::new(config()))),
        ("config-check".into(), ToAgent::Config(Box::new(config_with_check()))),
        ("certificate".into(), ToAgent::Certificate { name: "kubelet".into(), chain: chain.clone() }),
        (
            "certificate_refused".into(),
            ToAgent::CertificateRefused { name: "kubelet".into(), why: "not in the blueprint".into() },
        ),
        ("link_renewed".into(), ToAgent::LinkRenewed { chain }),
        ("events_stored".into(), ToAgent::EventsStored { through: 128 }),
        ("time".into(), ToAgent::Time { asked_at: WallTime(5), now: WallTime(6) }),
        ("probe_peers".into(), ToAgent::ProbePeers { id: 300, targets: peer_targets() }),
    ]
}

/// Every head of a bulk stream.
pub(crate) fn bulk_requests() -> Vec<(String, BulkRequest)> {
    let journal = |unit: Option<&str>, follow| BulkRequest::Journal {
        unit: unit.map(str::to_owned),
        lines: 1_000,
        follow,
    };
    let shell = BulkRequest::Shell {
        command: vec!["/bin/sh".into(), "-l".into()],
        terminal: "xterm-256color".into(),
        rows: 24,
        columns: 300,
    };
    vec![
        ("journal-unit".into(), journal(Some("kubelet.service"), true)),
        ("journal-all".into(), journal(None, false)),
        ("status".into(), BulkRequest::Status),
        ("shell".into(), shell),
    ]
}

/// The key of all peer probes in tests.
pub(crate) fn peer_key() -> PeerKey {
    PeerKey::new(&SecretBytes::new(vec![7; 32])).unwrap()
}

/// A ping and its pong, and the two that are as short and as long as they may be.
pub(crate) fn peer_datagrams() -> Vec<(String, Datagram)> {
    let ping = Datagram {
        kind: DatagramKind::Ping,
        nonce: 0x0123_4567_89ab_cdef,
        asker: machine(),
        asked: MachineId::new("demo-master-1").unwrap(),
        incarnation: Incarnation(0x0102_0304),
    };
    let of_length = |bytes| {
        let id = MachineId::new("x".repeat(bytes)).unwrap();
        Datagram { asker: id.clone(), asked: id, ..ping.clone() }
    };
    let (shortest, longest) = (of_length(1), of_length(63));
    assert_eq!(shortest.encode(&peer_key()).len(), DATAGRAM_BYTES_MIN);
    assert_eq!(longest.encode(&peer_key()).len(), DATAGRAM_BYTES_MAX);
    vec![
        ("pong".into(), ping.pong()),
        ("ping".into(), ping),
        ("shortest".into(), shortest),
        ("longest".into(), longest),
    ]
}

/// One answer of every kind.
fn peer_answers() -> Vec<PeerAnswer> {
    let said = [
        PeerSaid::Answered { round_trip_us: 212 },
        PeerSaid::Refused,
        PeerSaid::Silent,
        PeerSaid::Failed { why: "no buffer space".into() },
    ];
    let answer = |(number, said)| PeerAnswer {
        machine: MachineId::new(format!("demo-worker-{number}")).unwrap(),
        said,
    };
    (2..).zip(said).map(answer).collect()
}

fn peer_targets() -> Vec<PeerTarget> {
    let target = |name: &str, incarnation, last| PeerTarget {
        machine: MachineId::new(name).unwrap(),
        incarnation: Incarnation(incarnation),
        address: Ipv4Addr::new(10, 0, 0, last),
    };
    vec![target("demo-worker-2", 1, 13), target("demo-master-1", 300, 11)]
}

fn machine() -> MachineId {
    MachineId::new("demo-worker-1").unwrap()
}

fn facts(cgroup: CgroupVersion) -> Facts {
    Facts {
        agent_version: "0.1.0".into(),
        kernel: "6.1.0-41-cloud-amd64".into(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        cgroup,
        may_raise_limits: true,
        cpus: 4,
        memory_bytes: 8 << 30,
        disks: vec![DiskFact { mount: "/var".into(), bytes: 40_000_000_000 }],
        image_digest: Some("sha256:0123".into()),
        releases: vec![ReleaseFact {
            name: ReleaseName::new("1.37.2").unwrap(),
            digest: "sha256:4567".into(),
        }],
        boot: BootId(u128::MAX),
    }
}

fn health() -> HealthReport {
    let states = [
        UnitState::Waiting { on: "etcd at 10.0.0.2:2379".into() },
        UnitState::Starting,
        UnitState::Healthy,
        UnitState::Unhealthy { why: "503".into() },
        UnitState::Down { why: "exit code 1".into() },
        UnitState::GivenUp { why: "exit code 1, 5 times".into() },
    ];
    let unit = |(index, state)| UnitHealth {
        name: format!("unit-{index}.service"),
        state,
        since: WallTime(1_767_225_600_000),
        restarts: 3,
    };
    HealthReport {
        sequence: 9,
        at: WallTime(1_767_225_600_500),
        generation: Generation(5),
        state: NodeState::Degraded,
        units: states.into_iter().enumerate().map(unit).collect(),
        pressure: Pressure { disk_used_percent: 81, inodes_used_percent: 7, memory_available_percent: 55 },
        certificates: vec![CertificateHealth {
            name: "kubelet".into(),
            not_after: WallTime(1_767_312_000_000),
        }],
        clock_offset_ms: Some(-1_234),
    }
}

fn events() -> Vec<AgentEvent> {
    let kinds = [
        EventKind::AgentStarted,
        EventKind::ConfigAccepted,
        EventKind::ConfigRefused,
        EventKind::UnitStarted,
        EventKind::UnitHealthy,
        EventKind::UnitFailed,
        EventKind::Repaired,
        EventKind::RepairWithheld,
        EventKind::CertificateIssued,
        EventKind::CertificateRefused,
        EventKind::Pressure,
        EventKind::ActionFailed,
        EventKind::EventsDropped,
        EventKind::PeersLost,
        EventKind::PeersBack,
        EventKind::RepairFailed,
        EventKind::Fenced,
        EventKind::FenceLifted,
        EventKind::ClockWrong,
        EventKind::RepairDue,
    ];
    let event = |(sequence, kind)| AgentEvent {
        sequence,
        at: WallTime(1_767_225_600_000),
        kind,
        subject: "kubelet.service".into(),
        cause: "probe failed 3 times".into(),
        outcome: "restarted".into(),
    };
    (1..).zip(kinds).map(event).collect()
}

/// A config with every kind of everything.
pub(crate) fn config() -> NodeConfig {
    let ca = FileSpec {
        path: "/var/lib/kubernetes/ca.crt".into(),
        mode: 0o644,
        content: FileContent::Text("-----BEGIN CERTIFICATE-----\n".into()),
    };
    let key = FileSpec {
        path: "/run/keelson/encryption.yaml".into(),
        mode: 0o600,
        content: FileContent::Secret(SecretBytes::new(vec![0, 255, 128])),
    };
    let certificates = [
        (Issuer::Kubernetes, Usage::Server),
        (Issuer::Etcd, Usage::Both),
        (Issuer::FrontProxy, Usage::Client),
    ];
    NodeConfig {
        generation: Generation(5),
        machine: machine(),
        incarnation: Incarnation(2),
        cluster: ClusterName::new("demo").unwrap(),
        release: ReleaseName::new("1.37.2").unwrap(),
        files: vec![ca, key],
        certificates: certificates.into_iter().map(|(issuer, usage)| certificate(issuer, usage)).collect(),
        units: units(),
        routes: vec![RouteSpec {
            destination: "10.244.3.0/24".parse().unwrap(),
            via: Ipv4Addr::new(10, 0, 0, 13),
        }],
        balancer: Some(BalancerSpec {
            listen: "127.0.0.1:7443".parse().unwrap(),
            backends: vec!["10.0.0.11:6443".parse().unwrap(), "[fd00::11]:6443".parse().unwrap()],
            check: Some(BalancerCheck {
                path: "/readyz".to_owned(),
                server_name: "kubernetes".to_owned(),
                ca_path: "/var/lib/kubernetes/ca.crt".to_owned(),
            }),
        }),
        peers: Some(PeerSpec {
            listen: "10.0.0.12:7447".parse().unwrap(),
            key: SecretBytes::new(vec![7; 32]),
            neighbours: peer_targets(),
        }),
        remedies: vec![remedy()],
        lease: Some(LeaseSpec {
            lost_after_s: 60,
            probe: units().remove(0).health.unwrap(),
            units: vec!["kubelet.service".into()],
            cgroups: vec!["kubepods.slice".into()],
        }),
    }
}

/// A remedy with every trigger and every act.
fn remedy() -> RemedySpec {
    let command = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let directory = "/var/lib/containerd".to_owned();
    RemedySpec {
        name: "containerd-state".into(),
        when: vec![
            Trigger::Failing { unit: "containerd.service".into(), falls: 5, stuck_s: 180 },
            Trigger::GivenUp { unit: "kubelet.service".into(), times: 2, stuck_s: 1_800 },
            Trigger::DiskFull { percent: 85, alarm_percent: 90 },
            Trigger::InodesFull { percent: 85, alarm_percent: 90 },
            Trigger::Says { probe: units().remove(0).health.unwrap(), text: "NOSPACE".into(), every_s: 60 },
        ],
        hold: vec!["kubelet.service".into(), "once@1.service".into()],
        acts: vec![
            RemedyAct::Run {
                command: command(&["/bin/etcdctl", "compaction"]),
                argument: Some(Argument {
                    command: command(&["/bin/etcdctl", "status"]),
                    pointer: "/0/revision".into(),
                }),
                done_when: Some("compacted".into()),
                timeout_s: 60,
            },
            RemedyAct::EndProcesses { cgroups: vec!["system.slice/containerd.service".into()] },
            RemedyAct::Unmount { below: vec![directory.clone()] },
            RemedyAct::MoveAside { directory: directory.clone() },
            RemedyAct::RemoveAside { directories: vec![directory] },
            RemedyAct::RemoveFiles { paths: vec!["/var/lib/kubelet/cpu_manager_state".into()] },
            RemedyAct::RemoveOld {
                directory: "/var/log".into(),
                name_contains: ".log.".into(),
                age_min_s: 3_600,
            },
            RemedyAct::Sweep {
                list: command(&["/bin/list"]),
                used: command(&["/bin/used"]),
                source: command(&["/bin/source"]),
                source_says: "distribution".into(),
                remove: command(&["/bin/remove"]),
                timeout_s: 300,
            },
            RemedyAct::Reboot,
        ],
        limit: RemedyLimit {
            per_hour_max: 1,
            per_day_max: 2,
            cooldown_s: 1_800,
            spread_s: 60,
            settle_s: 180,
        },
    }
}

fn certificate(issuer: Issuer, usage: Usage) -> CertificateSpec {
    CertificateSpec {
        name: format!("{issuer:?}").to_lowercase(),
        certificate_path: format!("/var/lib/kubernetes/{issuer:?}.crt"),
        key_path: format!("/var/lib/kubernetes/{issuer:?}.key"),
        issuer,
        common_name: "system:node:demo-worker-1".into(),
        organizations: vec!["system:nodes".into()],
        dns_names: vec!["demo-worker-1".into()],
        addresses: vec![IpAddr::from([10, 0, 0, 12]), "fd00::12".parse().unwrap()],
        usage,
        lifetime_s: 86_400,
    }
}

/// The kind of unit that came after the first ones.
fn config_with_check() -> NodeConfig {
    let mut config = config();
    let check = UnitSpec {
        name: "node-ready".into(),
        kind: UnitKind::Check,
        command: vec![],
        restart_on: vec![],
        ..units().remove(1)
    };
    config.units.push(check);
    config
}

fn units() -> Vec<UnitSpec> {
    let address: SocketAddr = "10.0.0.11:6443".parse().unwrap();
    let probe = |name: &str, target, expect| ProbeSpec { name: name.into(), target, expect, timeout_ms: 500 };
    let https = ProbeTarget::Https {
        address,
        path: "/livez".into(),
        server_name: "kubernetes".into(),
        ca_path: "/var/lib/kubernetes/ca.crt".into(),
        client: Some(ClientFiles {
            certificate_path: "/var/lib/kubernetes/probe.crt".into(),
            key_path: "/var/lib/kubernetes/probe.key".into(),
        }),
    };
    let base = UnitSpec {
        name: "containerd.service".into(),
        description: "containers".into(),
        kind: UnitKind::Notify,
        command: vec!["/opt/keelson/bin/containerd".into(), "--config=/run/x".into()],
        environment: vec![("GOGC".into(), "50".into())],
        hardening: Hardening::Host,
        state_directories: vec!["/var/lib/containerd".into()],
        delegate: true,
        children_survive: true,
        open_files_max: Some(20_000),
        stop_timeout_s: 30,
        watchdog_s: None,
        needs: vec![],
        health: Some(probe("socket", ProbeTarget::Unix("/run/containerd.sock".into()), Expect::Answer)),
        alive: None,
        restart_on: vec!["/var/lib/kubernetes/ca.crt".into(), "etcd".into()],
    };
    let kubelet = UnitSpec {
        name: "kubelet.service".into(),
        kind: UnitKind::Exec,
        needs: vec![
            Need::Unit("containerd.service".into()),
            Need::Probe(probe("port", ProbeTarget::Tcp(address), Expect::Answer)),
            Need::AnyProbe(vec![probe("either", ProbeTarget::Tcp(address), Expect::Answer)]),
        ],
        health: Some(probe("node", https, Expect::NodeReady)),
        alive: Some(probe("lives", ProbeTarget::Tcp(address), Expect::Answer)),
        open_files_max: None,
        watchdog_s: Some(180),
        ..base.clone()
    };
    let once = UnitSpec {
        name: "once@1.service".into(),
        kind: UnitKind::Oneshot,
        hardening: Hardening::Server,
        delegate: false,
        children_survive: false,
        health: Some(probe("http", ProbeTarget::Http { address, path: "/healthz".into() }, Expect::Answer)),
        ..base.clone()
    };
    vec![base, kubelet, once]
}

// The compiler names whoever adds a variant without a sample: each of these matches is total.
const _: fn(&ToCoordinator) = |message| match message {
    ToCoordinator::Hello { .. }
    | ToCoordinator::Health(_)
    | ToCoordinator::Events(_)
    | ToCoordinator::SignCertificate { .. }
    | ToCoordinator::RenewLink { .. }
    | ToCoordinator::TimeRequest { .. }
    | ToCoordinator::PeersProbed { .. } => {}
};
const _: fn(&ToAgent) = |message| match message {
    ToAgent::Welcome { .. }
    | ToAgent::Refused(_)
    | ToAgent::Config(_)
    | ToAgent::Certificate { .. }
    | ToAgent::CertificateRefused { .. }
    | ToAgent::LinkRenewed { .. }
    | ToAgent::EventsStored { .. }
    | ToAgent::Time { .. }
    | ToAgent::ProbePeers { .. } => {}
};
const _: fn(&BulkRequest) = |message| match message {
    BulkRequest::Journal { .. } | BulkRequest::Status | BulkRequest::Shell { .. } => {}
};
const _: fn(&ShellFrame) = |message| match message {
    ShellFrame::Data(_)
    | ShellFrame::Resize { .. }
    | ShellFrame::Exit { .. }
    | ShellFrame::Error(_)
    | ShellFrame::EndOfInput => {}
};
const _: fn(&EventKind) = |kind| match kind {
    EventKind::AgentStarted
    | EventKind::ConfigAccepted
    | EventKind::ConfigRefused
    | EventKind::UnitStarted
    | EventKind::UnitHealthy
    | EventKind::UnitFailed
    | EventKind::Repaired
    | EventKind::RepairWithheld
    | EventKind::CertificateIssued
    | EventKind::CertificateRefused
    | EventKind::Pressure
    | EventKind::ActionFailed
    | EventKind::EventsDropped
    | EventKind::PeersLost
    | EventKind::PeersBack
    | EventKind::RepairFailed
    | EventKind::Fenced
    | EventKind::FenceLifted
    | EventKind::ClockWrong
    | EventKind::RepairDue => {}
};
const _: fn(&UnitKind) = |kind| match kind {
    UnitKind::Exec | UnitKind::Notify | UnitKind::Oneshot | UnitKind::Check => {}
};
const _: fn(&RefusalCode) = |code| match code {
    RefusalCode::UnknownMachine
    | RefusalCode::WrongToken
    | RefusalCode::TokenUsed
    | RefusalCode::TokenExpired
    | RefusalCode::OldIncarnation
    | RefusalCode::SecondHolder
    | RefusalCode::Version
    | RefusalCode::BadSigningRequest
    | RefusalCode::Busy => {}
};
const _: fn(&PeerSaid) = |said| match said {
    PeerSaid::Answered { .. } | PeerSaid::Refused | PeerSaid::Silent | PeerSaid::Failed { .. } => {}
};
const _: fn(&Trigger) = |trigger| match trigger {
    Trigger::Failing { .. }
    | Trigger::GivenUp { .. }
    | Trigger::DiskFull { .. }
    | Trigger::InodesFull { .. }
    | Trigger::Says { .. } => {}
};
const _: fn(&RemedyAct) = |act| match act {
    RemedyAct::Run { .. }
    | RemedyAct::EndProcesses { .. }
    | RemedyAct::Unmount { .. }
    | RemedyAct::MoveAside { .. }
    | RemedyAct::RemoveAside { .. }
    | RemedyAct::RemoveFiles { .. }
    | RemedyAct::RemoveOld { .. }
    | RemedyAct::Sweep { .. }
    | RemedyAct::Reboot => {}
};
