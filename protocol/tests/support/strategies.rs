//! Arbitrary messages: every one that [`keelson_protocol::wire::encode`] accepts can come out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use keelson_protocol::config::{
    BalancerCheck, BalancerSpec, CertificateSpec, ClientFiles, Expect, FileContent, FileSpec, Hardening,
    Issuer, Need, NodeConfig, PeerSpec, ProbeSpec, ProbeTarget, RouteSpec, UnitKind, UnitSpec, Usage,
};
use keelson_protocol::health::{
    AgentEvent, CertificateHealth, CgroupVersion, DiskFact, EventKind, Facts, HealthReport, Heartbeat,
    NodeState, Pressure, ReleaseFact, UnitHealth, UnitState,
};
use keelson_protocol::limits::{ACT_TIMEOUT_S_MAX, NEIGHBOURS_MAX, PEER_TARGETS_MAX};
use keelson_protocol::message::{
    BulkReply, BulkRequest, EnrolReply, EnrolRequest, Refusal, RefusalCode, ShellFrame, ToAgent,
    ToCoordinator,
};
use keelson_protocol::peer::{Datagram, DatagramKind, PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::remedy::{Argument, LeaseSpec, RemedyAct, RemedyLimit, RemedySpec, Trigger};
use keelson_protocol::wire::ProtocolVersion;
use keelson_protocol::{
    BootId, ClusterName, Generation, Incarnation, MachineId, ReleaseName, SecretBytes, WallTime,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Any text, with whatever Unicode has.
fn text() -> impl Strategy<Value = String> {
    "\\PC{0,24}|\\p{any}{0,8}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

fn wall() -> impl Strategy<Value = WallTime> {
    any::<i64>().prop_map(WallTime)
}

fn generation() -> impl Strategy<Value = Generation> {
    any::<u64>().prop_map(Generation)
}

fn machine() -> impl Strategy<Value = MachineId> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|name| MachineId::new(name).unwrap())
}

fn release() -> impl Strategy<Value = ReleaseName> {
    "[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?".prop_map(|name| ReleaseName::new(name).unwrap())
}

fn cluster() -> impl Strategy<Value = ClusterName> {
    "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?".prop_map(|name| ClusterName::new(name).unwrap())
}

fn node_state() -> impl Strategy<Value = NodeState> {
    use NodeState::{Applying, Degraded, Failed, Idle, Ready};
    select(vec![Ready, Idle, Applying, Degraded, Failed])
}

/// Any heartbeat.
pub(crate) fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    (any::<u64>(), any::<u128>(), generation(), node_state(), any::<u64>()).prop_map(
        |(sequence, boot, generation, state, report)| Heartbeat {
            sequence,
            boot: BootId(boot),
            generation,
            state,
            report,
        },
    )
}

/// Any enrolment.
pub(crate) fn enrol_request() -> impl Strategy<Value = EnrolRequest> {
    (machine(), any::<u32>(), bytes(), bytes()).prop_map(|(machine, incarnation, token, signing_request)| {
        EnrolRequest {
            machine,
            incarnation: Incarnation(incarnation),
            token: SecretBytes::new(token),
            signing_request,
        }
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    use RefusalCode::{
        BadSigningRequest, Busy, OldIncarnation, SecondHolder, TokenExpired, TokenUsed, UnknownMachine,
        Version, WrongToken,
    };
    let codes = vec![
        UnknownMachine,
        WrongToken,
        TokenUsed,
        TokenExpired,
        OldIncarnation,
        SecondHolder,
        Version,
        BadSigningRequest,
        Busy,
    ];
    (select(codes), text()).prop_map(|(code, text)| Refusal { code, text })
}

fn chain() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(bytes(), 0..4)
}

/// Any answer to an enrolment.
pub(crate) fn enrol_reply() -> impl Strategy<Value = EnrolReply> {
    prop_oneof![
        chain().prop_map(|chain| EnrolReply::Accepted { chain }),
        refusal().prop_map(EnrolReply::Refused),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let software = (text(), text(), text(), select(vec![CgroupVersion::V1, CgroupVersion::V2]));
    let hardware = (any::<bool>(), any::<u32>(), any::<u64>(), any::<u128>());
    let disk = (text(), any::<u64>()).prop_map(|(mount, bytes)| DiskFact { mount, bytes });
    let image = (release(), text()).prop_map(|(name, digest)| ReleaseFact { name, digest });
    (software, hardware, vec(disk, 0..3), option::of(text()), vec(image, 0..3)).prop_map(
        |(software, hardware, disks, image_digest, releases)| {
            let (agent_version, kernel, os, cgroup) = software;
            let (may_raise_limits, cpus, memory_bytes, boot) = hardware;
            Facts {
                agent_version,
                kernel,
                os,
                cgroup,
                may_raise_limits,
                cpus,
                memory_bytes,
                disks,
                image_digest,
                releases,
                boot: BootId(boot),
            }
        },
    )
}

fn unit_health() -> impl Strategy<Value = UnitHealth> {
    let state = prop_oneof![
        text().prop_map(|on| UnitState::Waiting { on }),
        Just(UnitState::Starting),
        Just(UnitState::Healthy),
        text().prop_map(|why| UnitState::Unhealthy { why }),
        text().prop_map(|why| UnitState::Down { why }),
        text().prop_map(|why| UnitState::GivenUp { why }),
    ];
    (text(), state, wall(), any::<u32>()).prop_map(|(name, state, since, restarts)| UnitHealth {
        name,
        state,
        since,
        restarts,
    })
}

fn health() -> impl Strategy<Value = HealthReport> {
    let pressure = any::<(u8, u8, u8)>().prop_map(|(disk, inodes, memory)| Pressure {
        disk_used_percent: disk,
        inodes_used_percent: inodes,
        memory_available_percent: memory,
    });
    let certificate = (text(), wall()).prop_map(|(name, not_after)| CertificateHealth { name, not_after });
    let head = (any::<u64>(), wall(), generation(), node_state());
    let offset = option::of(any::<i64>());
    (head, vec(unit_health(), 0..12), pressure, vec(certificate, 0..4), offset).prop_map(
        |((sequence, at, generation, state), units, pressure, certificates, clock_offset_ms)| HealthReport {
            sequence,
            at,
            generation,
            state,
            units,
            pressure,
            certificates,
            clock_offset_ms,
        },
    )
}

fn event() -> impl Strategy<Value = AgentEvent> {
    let kinds = vec![
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
    (any::<u64>(), wall(), select(kinds), text(), text(), text()).prop_map(
        |(sequence, at, kind, subject, cause, outcome)| AgentEvent {
            sequence,
            at,
            kind,
            subject,
            cause,
            outcome,
        },
    )
}

/// Any message to the coordinator.
pub(crate) fn to_coordinator() -> impl Strategy<Value = ToCoordinator> {
    let hello = (any::<(u16, u16, u128)>(), option::of(generation()), facts()).prop_map(
        |((min, max, boot), generation, facts)| ToCoordinator::Hello {
            version_min: ProtocolVersion(min),
            version_max: ProtocolVersion(max),
            boot: BootId(boot),
            generation,
            facts: Box::new(facts),
        },
    );
    prop_oneof![
        hello,
        health().prop_map(|report| ToCoordinator::Health(Box::new(report))),
        vec(event(), 0..10).prop_map(ToCoordinator::Events),
        (text(), generation(), bytes()).prop_map(|(name, generation, signing_request)| {
            ToCoordinator::SignCertificate { name, generation, signing_request }
        }),
        bytes().prop_map(|signing_request| ToCoordinator::RenewLink { signing_request }),
        wall().prop_map(|asked_at| ToCoordinator::TimeRequest { asked_at }),
        (any::<u64>(), vec(peer_answer(), 0..=PEER_TARGETS_MAX))
            .prop_map(|(id, answers)| ToCoordinator::PeersProbed { id, answers }),
    ]
}

fn path() -> impl Strategy<Value = String> {
    "(/var/lib|/run)(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,8}){1,3}"
}

fn file() -> impl Strategy<Value = FileSpec> {
    let content = prop_oneof![
        text().prop_map(FileContent::Text),
        bytes().prop_map(|bytes| FileContent::Secret(SecretBytes::new(bytes))),
    ];
    (path(), any::<u32>(), content).prop_map(|(path, mode, content)| FileSpec { path, mode, content })
}

fn certificate() -> impl Strategy<Value = CertificateSpec> {
    let issuers = select(vec![Issuer::Kubernetes, Issuer::Etcd, Issuer::FrontProxy]);
    let usages = select(vec![Usage::Server, Usage::Client, Usage::Both]);
    let names = (text(), text(), vec(text(), 0..3), vec(text(), 0..3), vec(any::<IpAddr>(), 0..3));
    (names, path(), path(), issuers, usages, any::<u32>()).prop_map(
        |(names, certificate_path, key_path, issuer, usage, lifetime_s)| {
            let (name, common_name, organizations, dns_names, addresses) = names;
            CertificateSpec {
                name,
                certificate_path,
                key_path,
                issuer,
                common_name,
                organizations,
                dns_names,
                addresses,
                usage,
                lifetime_s,
            }
        },
    )
}

fn probe() -> impl Strategy<Value = ProbeSpec> {
    let address = any::<SocketAddr>().prop_map(without_flow);
    let client =
        (text(), text()).prop_map(|(certificate_path, key_path)| ClientFiles { certificate_path, key_path });
    let target = prop_oneof![
        address.clone().prop_map(ProbeTarget::Tcp),
        text().prop_map(ProbeTarget::Unix),
        (address.clone(), text()).prop_map(|(address, path)| ProbeTarget::Http { address, path }),
        (address, text(), text(), text(), option::of(client)).prop_map(
            |(address, path, server_name, ca_path, client)| ProbeTarget::Https {
                address,
                path,
                server_name,
                ca_path,
                client,
            }
        ),
    ];
    (text(), target, select(vec![Expect::Answer, Expect::NodeReady]), any::<u32>())
        .prop_map(|(name, target, expect, timeout_ms)| ProbeSpec { name, target, expect, timeout_ms })
}

/// serde keeps address and port of a socket address only. Flow label and scope have no meaning between machines.
fn without_flow(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// A unit whose references are filled in by [`config`].
fn unit() -> impl Strategy<Value = UnitSpec> {
    let kind = select(vec![UnitKind::Exec, UnitKind::Notify, UnitKind::Oneshot, UnitKind::Check]);
    let hardening = select(vec![Hardening::Host, Hardening::Server]);
    let need = prop_oneof![probe().prop_map(Need::Probe), vec(probe(), 0..3).prop_map(Need::AnyProbe)];
    let needs = vec(need, 0..2);
    let limits =
        (any::<bool>(), any::<bool>(), option::of(any::<u32>()), any::<u32>(), option::of(any::<u32>()));
    let head = ("[a-zA-Z0-9_.@-]{1,16}\\.service", text(), kind, command(), hardening);
    let environment = vec((text(), text()), 0..3);
    let probes = (option::of(probe()), option::of(probe()));
    (head, environment, vec(path(), 0..3), limits, needs, probes).prop_map(
        |(head, environment, state_directories, limits, needs, (health, alive))| {
            let (name, description, kind, command, hardening) = head;
            let (delegate, children_survive, open_files_max, stop_timeout_s, watchdog_s) = limits;
            let (command, health) = match kind {
                UnitKind::Check => (Vec::new(), health.or_else(|| Some(tcp_probe()))),
                UnitKind::Exec | UnitKind::Notify | UnitKind::Oneshot => (command, health),
            };
            UnitSpec {
                name,
                description,
                kind,
                command,
                environment,
                hardening,
                state_directories,
                delegate,
                children_survive,
                open_files_max,
                stop_timeout_s,
                watchdog_s,
                needs,
                health,
                alive,
                restart_on: vec![],
            }
        },
    )
}

/// A check must have a probe.
fn tcp_probe() -> ProbeSpec {
    let target = ProbeTarget::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
    ProbeSpec { name: "port".into(), target, expect: Expect::Answer, timeout_ms: 1 }
}

fn balancer() -> impl Strategy<Value = BalancerSpec> {
    let address = any::<SocketAddr>().prop_map(without_flow);
    let check = (text(), text(), text()).prop_map(|(path, server_name, ca_path)| BalancerCheck {
        path,
        server_name,
        ca_path,
    });
    (address.clone(), vec(address, 0..4), option::of(check))
        .prop_map(|(listen, backends, check)| BalancerSpec { listen, backends, check })
}

fn route() -> impl Strategy<Value = RouteSpec> {
    (any::<Ipv4Addr>(), 0_u8..=32, any::<Ipv4Addr>()).prop_map(|(address, prefix, via)| RouteSpec {
        destination: format!("{address}/{prefix}").parse().unwrap(),
        via,
    })
}

fn peer_target() -> impl Strategy<Value = PeerTarget> {
    (machine(), any::<u32>(), any::<Ipv4Addr>()).prop_map(|(machine, incarnation, address)| PeerTarget {
        machine,
        incarnation: Incarnation(incarnation),
        address,
    })
}

fn peer_answer() -> impl Strategy<Value = PeerAnswer> {
    let said = prop_oneof![
        any::<u32>().prop_map(|round_trip_us| PeerSaid::Answered { round_trip_us }),
        Just(PeerSaid::Refused),
        Just(PeerSaid::Silent),
        text().prop_map(|why| PeerSaid::Failed { why }),
    ];
    (machine(), said).prop_map(|(machine, said)| PeerAnswer { machine, said })
}

fn peers() -> impl Strategy<Value = PeerSpec> {
    let listen =
        (any::<Ipv4Addr>(), 1..=u16::MAX).prop_map(|(address, port)| SocketAddrV4::new(address, port));
    (listen, vec(any::<u8>(), 32), vec(peer_target(), 0..=NEIGHBOURS_MAX))
        .prop_map(|(listen, key, neighbours)| PeerSpec { listen, key: SecretBytes::new(key), neighbours })
}

fn trigger() -> impl Strategy<Value = Trigger> {
    let percents = (1_u8..=50, 50_u8..=100);
    prop_oneof![
        (percents.clone()).prop_map(|(percent, alarm_percent)| Trigger::DiskFull { percent, alarm_percent }),
        percents.prop_map(|(percent, alarm_percent)| Trigger::InodesFull { percent, alarm_percent }),
        (probe(), "[a-z]{1,8}", 1..=u16::MAX).prop_map(|(probe, text, every_s)| Trigger::Says {
            probe,
            text,
            every_s
        }),
    ]
}

fn command() -> impl Strategy<Value = Vec<String>> {
    ("/[a-z/]{1,12}", vec(text(), 0..4)).prop_map(|(program, mut arguments)| {
        arguments.insert(0, program);
        arguments
    })
}

fn act() -> impl Strategy<Value = RemedyAct> {
    let argument = (command(), text()).prop_map(|(command, pointer)| Argument { command, pointer });
    let run = (command(), option::of(argument), option::of("[a-z ]{1,8}"), 1..=ACT_TIMEOUT_S_MAX);
    let tables = (command(), command(), command(), command());
    prop_oneof![
        run.prop_map(|(command, argument, done_when, timeout_s)| RemedyAct::Run {
            command,
            argument,
            done_when,
            timeout_s
        }),
        vec("[a-z.]{1,4}x(/[a-z]{1,4})?", 0..3).prop_map(|cgroups| RemedyAct::EndProcesses { cgroups }),
        vec(path(), 0..3).prop_map(|below| RemedyAct::Unmount { below }),
        path().prop_map(|directory| RemedyAct::MoveAside { directory }),
        vec(path(), 0..3).prop_map(|directories| RemedyAct::RemoveAside { directories }),
        vec(path(), 0..3).prop_map(|paths| RemedyAct::RemoveFiles { paths }),
        (path(), "[a-z]{1,4}", any::<u32>()).prop_map(|(directory, name_contains, age_min_s)| {
            RemedyAct::RemoveOld { directory, name_contains, age_min_s }
        }),
        (tables, "[a-z]{1,4}", 1..=ACT_TIMEOUT_S_MAX).prop_map(
            |((list, used, source, remove), source_says, timeout_s)| RemedyAct::Sweep {
                list,
                used,
                source,
                source_says,
                remove,
                timeout_s
            }
        ),
        Just(RemedyAct::Reboot),
    ]
}

fn remedy() -> impl Strategy<Value = RemedySpec> {
    let limit = (1_u8..=4, 4_u8..=9, any::<u32>(), any::<(u16, u16)>());
    (vec(trigger(), 1..4), vec(act(), 1..6), limit).prop_map(|(when, acts, limit)| {
        let (per_hour_max, per_day_max, cooldown_s, (spread_s, settle_s)) = limit;
        let limit = RemedyLimit { per_hour_max, per_day_max, cooldown_s, spread_s, settle_s };
        RemedySpec { name: "mend".into(), when, hold: Vec::new(), acts, limit }
    })
}

fn lease() -> impl Strategy<Value = LeaseSpec> {
    (1..=u16::MAX, probe()).prop_map(|(lost_after_s, probe)| LeaseSpec {
        lost_after_s,
        probe,
        units: Vec::new(),
        cgroups: vec!["kubepods".into()],
    })
}

/// Any config that passes its own check.
pub(crate) fn config() -> impl Strategy<Value = NodeConfig> {
    let ids = (generation(), machine(), any::<u32>(), cluster(), release());
    let parts = (vec(file(), 0..5), vec(certificate(), 0..4), vec(unit(), 0..5));
    let network = (vec(route(), 0..5), option::of(balancer()), option::of(peers()));
    let repairs = (vec(remedy(), 0..2), option::of(lease()));
    (ids, parts, network, repairs).prop_map(|(ids, parts, (routes, balancer, mut peers), repairs)| {
        let (generation, machine, incarnation, cluster, release) = ids;
        let (files, certificates, mut units) = parts;
        if let Some(peers) = &mut peers {
            peers.neighbours.retain(|neighbour| neighbour.machine != machine);
        }
        let names: Vec<String> = units.iter().map(|unit| unit.name.clone()).collect();
        let inputs = files.iter().map(|file| file.path.clone());
        let inputs: Vec<String> = inputs.chain(certificates.iter().map(|c| c.name.clone())).collect();
        for (index, unit) in units.iter_mut().enumerate() {
            unit.needs.extend(names.iter().take(index).cloned().map(Need::Unit));
            unit.restart_on = inputs.iter().skip(index).cloned().collect();
        }
        let (mut remedies, mut lease) = repairs;
        // What runs can be held down; a check does not run.
        let run = |unit: &&UnitSpec| unit.kind != UnitKind::Check;
        let programs: Vec<String> = units.iter().filter(run).map(|unit| unit.name.clone()).collect();
        remedies.iter_mut().for_each(|remedy| {
            remedy.hold.clone_from(&programs);
            if let Some(unit) = programs.first().cloned() {
                remedy.when.push(Trigger::GivenUp { unit: unit.clone(), times: 2, stuck_s: 9 });
                remedy.when.push(Trigger::Failing { unit, falls: 3, stuck_s: 9 });
            }
        });
        lease.iter_mut().for_each(|lease| lease.units.clone_from(&programs));
        NodeConfig {
            generation,
            machine,
            incarnation: Incarnation(incarnation),
            cluster,
            release,
            files,
            certificates,
            units,
            routes,
            balancer,
            peers,
            remedies,
            lease,
        }
    })
}

/// Any message to an agent.
pub(crate) fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        (any::<u16>(), wall())
            .prop_map(|(version, now)| ToAgent::Welcome { version: ProtocolVersion(version), now }),
        refusal().prop_map(ToAgent::Refused),
        config().prop_map(|config| ToAgent::Config(Box::new(config))),
        (text(), chain()).prop_map(|(name, chain)| ToAgent::Certificate { name, chain }),
        (text(), text()).prop_map(|(name, why)| ToAgent::CertificateRefused { name, why }),
        chain().prop_map(|chain| ToAgent::LinkRenewed { chain }),
        any::<u64>().prop_map(|through| ToAgent::EventsStored { through }),
        (wall(), wall()).prop_map(|(asked_at, now)| ToAgent::Time { asked_at, now }),
        (any::<u64>(), vec(peer_target(), 0..=PEER_TARGETS_MAX))
            .prop_map(|(id, targets)| ToAgent::ProbePeers { id, targets }),
    ]
}

/// Any head of a bulk stream.
pub(crate) fn bulk_request() -> impl Strategy<Value = BulkRequest> {
    prop_oneof![
        (option::of(text()), any::<u32>(), any::<bool>())
            .prop_map(|(unit, lines, follow)| BulkRequest::Journal { unit, lines, follow }),
        Just(BulkRequest::Status),
        (vec(text(), 0..5), text(), any::<u16>(), any::<u16>()).prop_map(
            |(command, terminal, rows, columns)| BulkRequest::Shell { command, terminal, rows, columns }
        ),
    ]
}

/// Any answer to the head of a bulk stream.
pub(crate) fn bulk_reply() -> impl Strategy<Value = BulkReply> {
    prop_oneof![Just(BulkReply::Accepted), text().prop_map(|why| BulkReply::Refused { why })]
}

/// Any frame of a terminal.
pub(crate) fn shell_frame() -> impl Strategy<Value = ShellFrame> {
    prop_oneof![
        bytes().prop_map(ShellFrame::Data),
        any::<(u16, u16)>().prop_map(|(rows, columns)| ShellFrame::Resize { rows, columns }),
        any::<i32>().prop_map(|code| ShellFrame::Exit { code }),
        bytes().prop_map(ShellFrame::Error),
        Just(ShellFrame::EndOfInput),
    ]
}

/// Any peer probe.
pub(crate) fn peer_datagram() -> impl Strategy<Value = Datagram> {
    let kind = select(vec![DatagramKind::Ping, DatagramKind::Pong]);
    (kind, any::<u64>(), machine(), machine(), any::<u32>()).prop_map(
        |(kind, nonce, asker, asked, incarnation)| Datagram {
            kind,
            nonce,
            asker,
            asked,
            incarnation: Incarnation(incarnation),
        },
    )
}
