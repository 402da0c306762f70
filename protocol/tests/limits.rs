//! Every limit of the messages, just kept and just broken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::fmt::Debug;

use keelson_protocol::config::{FileContent, FileSpec, NodeConfig, RouteSpec, UnitKind};
use keelson_protocol::health::Heartbeat;
use keelson_protocol::limits;
use keelson_protocol::message::{
    BulkReply, BulkRequest, EnrolReply, EnrolRequest, ShellFrame, ToAgent, ToCoordinator,
};
use keelson_protocol::peer::PeerSaid;
use keelson_protocol::remedy::{RemedyAct, RemedySpec, Trigger};
use keelson_protocol::wire::{
    DecodeError, EncodeError, Message, NoCommonVersion, ProtocolVersion, VERSION_MAX, VERSION_MIN, decode,
    encode, frame_length, negotiate,
};
use keelson_protocol::{BootId, Generation, SecretBytes};
use support::samples;

#[test]
fn lengths_are_checked_before_anything_is_read() {
    fn check<M: Message + Debug>(bytes_max: usize) {
        assert_eq!(M::BYTES_MAX, bytes_max, "{}", M::NAME);
        let prefix = |bytes: usize| u32::try_from(bytes).unwrap().to_be_bytes();
        assert_eq!(frame_length::<M>(prefix(bytes_max)), Ok(bytes_max));
        for bytes in [bytes_max + 1, u32::MAX as usize] {
            let expected = DecodeError::TooLarge { name: M::NAME, bytes, bytes_max };
            assert_eq!(frame_length::<M>(prefix(bytes)), Err(expected));
        }
        for bytes in 0..3 {
            assert_eq!(frame_length::<M>(prefix(bytes)), Err(DecodeError::TooShort { name: M::NAME, bytes }));
        }
        let large = vec![0; bytes_max + 1];
        let expected = DecodeError::TooLarge { name: M::NAME, bytes: bytes_max + 1, bytes_max };
        assert_eq!(decode::<M>(&large).unwrap_err(), expected);
    }
    check::<Heartbeat>(128);
    check::<EnrolRequest>(16 * 1024);
    check::<EnrolReply>(16 * 1024);
    check::<ToCoordinator>(256 * 1024);
    check::<ToAgent>(4 * 1024 * 1024);
    check::<BulkRequest>(16 * 1024);
    check::<BulkReply>(16 * 1024);
    check::<ShellFrame>(16 * 1024 + 64);
}

#[test]
fn the_largest_heartbeat_fits() {
    let state = keelson_protocol::health::NodeState::Failed;
    let largest = Heartbeat {
        sequence: u64::MAX,
        boot: BootId(u128::MAX),
        generation: Generation(u64::MAX),
        state,
        report: u64::MAX,
    };
    let bytes = encode(&largest).unwrap().len();
    assert!(bytes <= limits::HEARTBEAT_BYTES_MAX, "{bytes}");
    assert_eq!(bytes, 53);
}

#[test]
fn a_frame_of_a_terminal_carries_a_whole_buffer() {
    let data = |bytes| encode(&ShellFrame::Data(vec![0; bytes]));
    assert!(data(limits::BULK_HEAD_BYTES_MAX).is_ok());
    assert!(matches!(data(limits::BULK_HEAD_BYTES_MAX + 64), Err(EncodeError::TooLarge { .. })));
}

#[test]
fn envelopes_that_are_not_ours_are_refused_with_a_reason() {
    fn check(bytes: &[u8], expected: &str) {
        assert_eq!(decode::<BulkReply>(bytes).unwrap_err().to_string(), expected, "{bytes:?}");
    }
    check(&[], "0 bytes are too few for bulk reply");
    check(&[0, 1], "2 bytes are too few for bulk reply");
    let hint = "is not understood here: 1 to 1 are; upgrade the older side";
    check(&[0, 0, 7, 0], &format!("protocol version 0 {hint}"));
    check(&[0, 2, 7, 0], &format!("protocol version 2 {hint}"));
    check(&[0xff, 0xff, 7, 0], &format!("protocol version 65535 {hint}"));
    check(&[0, 1, 1, 0], "kind 1 came where bulk reply was expected");
    check(&[0, 1, 7], "bulk reply is malformed");
    check(&[0, 1, 7, 2], "bulk reply is malformed");
    check(&[0, 1, 7, 0, 0], "bulk reply is malformed");
    check(&[0, 1, 7, 1, 2, 0xc3, 0x28], "bulk reply is malformed");
    check(&[0, 1, 7, 1, 0xff, 0xff, 0xff, 0xff, 0x0f], "bulk reply is malformed");
}

#[test]
fn names_in_messages_are_checked() {
    let mut bytes = encode(&samples::enrol_request()).unwrap();
    assert_eq!(&bytes[4..8], b"demo");
    bytes[4] = b'D';
    let expected = DecodeError::Malformed { name: EnrolRequest::NAME };
    assert_eq!(decode::<EnrolRequest>(&bytes), Err(expected));
}

#[test]
fn counts_of_a_config_are_limited() {
    fn check(change: impl FnOnce(&mut NodeConfig), expected: &str) {
        let mut config = samples::config();
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        let message = ToAgent::Config(Box::new(config));
        let why = expected.to_owned();
        assert_eq!(encode(&message), Err(EncodeError::Invalid { name: ToAgent::NAME, why }));
    }
    let file =
        |path: &str| FileSpec { path: path.into(), mode: 0o600, content: FileContent::Text(String::new()) };
    let route = RouteSpec { destination: "10.0.0.0/8".parse().unwrap(), via: [10, 0, 0, 1].into() };
    check(|c| c.files = vec![file("/run/x"); 513], "files: 513, at most 512 are allowed");
    check(
        |c| c.certificates = vec![c.certificates[0].clone(); 65],
        "certificates: 65, at most 64 are allowed",
    );
    check(|c| c.units = vec![c.units[0].clone(); 65], "units: 65, at most 64 are allowed");
    check(|c| c.routes = vec![route; 5_001], "routes: 5001, at most 5000 are allowed");
    let large = FileContent::Text("x".repeat(limits::FILE_BYTES_MAX + 1));
    check(|c| c.files[0].content = large, "/var/lib/kubernetes/ca.crt: 1048577, at most 1048576 are allowed");
    for path in ["/etc/passwd", "/run/../etc/passwd", "/var/lib//x", "/run/", "run/x", "/var/lib/./x", ""] {
        let expected = format!("path `{path}` is not a plain path below /var/lib/ or /run/");
        check(|c| c.files[0].path = path.into(), &expected);
        check(|c| c.certificates[0].key_path = path.into(), &expected);
        check(|c| c.units[0].state_directories = vec![path.into()], &expected);
    }
    check(
        |c| c.units[1].needs = vec![keelson_protocol::config::Need::Unit("x.service".into())],
        "unit kubelet.service needs x.service, which the config does not have",
    );
    check(
        |c| c.units[0].restart_on = vec!["/run/no".into()],
        "unit containerd.service restarts on /run/no, which the config does not have",
    );
    check(|c| c.units[0].name = "../x.service".into(), "unit name `../x.service` is not a plain name");
    check(|c| c.units[0].name = "x".into(), "unit name `x` does not end with .service");
    check(|c| c.units[0].kind = UnitKind::Check, "check containerd.service must have a probe and no program");
    let neighbour = |c: &NodeConfig| c.peers.as_ref().unwrap().neighbours[0].clone();
    check(
        |c| c.peers.as_mut().unwrap().neighbours = vec![neighbour(c); 9],
        "neighbours: 9, at most 8 are allowed",
    );
    check(
        |c| c.peers.as_mut().unwrap().neighbours[0].machine = c.machine.clone(),
        "demo-worker-1 is its own neighbour",
    );
    check(|c| c.peers.as_mut().unwrap().listen.set_port(0), "peers cannot ask at port 0");
    check(
        |c| c.peers.as_mut().unwrap().key = SecretBytes::new(vec![7; 31]),
        "the key of peer probes has 31 bytes, it must have 32",
    );
    check(
        |c| c.units[0].command = vec!["sh".into()],
        "unit containerd.service: the program must be an absolute path",
    );
}

#[test]
fn a_remedy_can_do_nothing_outside_of_its_limits() {
    fn check(change: impl FnOnce(&mut RemedySpec), expected: &str) {
        let mut config = samples::config();
        change(&mut config.remedies[0]);
        assert_eq!(config.check(), Err(format!("remedy containerd-state: {expected}")));
    }
    fn act(act: RemedyAct, expected: &str) {
        check(|remedy| remedy.acts = vec![act], expected);
    }
    let place = |path: &str| format!("path `{path}` is not a plain path below /var/lib/ or /run/");
    check(|r| r.hold = vec!["x.service".into()], "the config does not have x.service");
    check(|r| r.acts = vec![], "it has no trigger or no act");
    check(|r| r.acts = vec![RemedyAct::Reboot; 17], "acts: 17, at most 16 are allowed");
    let often = "it may be done at least once an hour, and as often a day as an hour";
    check(|r| r.limit.per_hour_max = 0, often);
    check(|r| r.limit.per_day_max = 0, often);
    check(
        |r| r.when = vec![Trigger::DiskFull { percent: 90, alarm_percent: 85 }],
        "90 and 85 are no percentages in order",
    );
    check(
        |r| r.when = vec![Trigger::InodesFull { percent: 90, alarm_percent: 101 }],
        "90 and 101 are no percentages in order",
    );
    let unit = || "containerd.service".to_owned();
    let early = "it is due before anything has happened; count at least 1";
    check(|r| r.when = vec![Trigger::Failing { unit: unit(), falls: 0, stuck_s: 9 }], early);
    check(|r| r.when = vec![Trigger::GivenUp { unit: unit(), times: 0, stuck_s: 9 }], early);
    for path in ["/", "/var/lib", "/var/lib/", "/etc/passwd", "/var/lib/../../etc"] {
        act(RemedyAct::MoveAside { directory: path.into() }, &place(path));
        act(RemedyAct::RemoveFiles { paths: vec![path.into()] }, &place(path));
        act(RemedyAct::Unmount { below: vec![path.into()] }, &place(path));
        act(RemedyAct::RemoveAside { directories: vec![path.into()] }, &place(path));
        let old = RemedyAct::RemoveOld { directory: path.into(), name_contains: ".log".into(), age_min_s: 1 };
        act(old, &place(path));
    }
    for cgroup in ["", "/", "..", "a/../b", "a//b", "."] {
        let expected = format!("`{cgroup}` is no control group below the root");
        act(RemedyAct::EndProcesses { cgroups: vec![cgroup.into()] }, &expected);
    }
    let run = |program: &str, timeout_s| RemedyAct::Run {
        command: vec![program.into()],
        argument: None,
        done_when: None,
        timeout_s,
    };
    act(run("sh", 1), "the program of a command must be an absolute path");
    act(run("/bin/sh", 901), "a command may take 1 s to 900 s, not 901 s");
    let mut any = run("/bin/sh", 1);
    if let RemedyAct::Run { done_when, .. } = &mut any {
        *done_when = Some(String::new());
    }
    act(any, "any failure of a command counts as done");
    let mut config = samples::config();
    config.remedies.push(config.remedies[0].clone());
    let twice = "`containerd-state` is no name for a remedy, or not the only one".to_owned();
    assert_eq!(config.check(), Err(twice));
    config.remedies.truncate(1);
    config.lease.as_mut().unwrap().cgroups = vec!["/".into()];
    assert_eq!(config.check(), Err("lease: `/` is no control group below the root".to_owned()));
    config.lease.as_mut().unwrap().lost_after_s = 0;
    let silence = "lease: it is lost at the first silence; give it at least 1 s".to_owned();
    assert_eq!(config.check(), Err(silence));
}

#[test]
fn counts_of_reports_are_limited() {
    let (_, health) = samples::to_coordinator().remove(2);
    let ToCoordinator::Health(mut report) = health else { panic!("{health:?}") };
    report.units = vec![report.units[0].clone(); limits::UNITS_MAX];
    assert!(encode(&ToCoordinator::Health(report.clone())).is_ok());
    report.units.push(report.units[0].clone());
    let error = encode(&ToCoordinator::Health(report)).unwrap_err();
    assert!(error.to_string().contains("health of 65 units, at most 64"), "{error}");

    let (_, events) = samples::to_coordinator().remove(3);
    let ToCoordinator::Events(events) = events else { panic!("{events:?}") };
    let many = |count| ToCoordinator::Events(events.iter().cycle().take(count).cloned().collect());
    assert!(encode(&many(limits::EVENTS_BUFFERED_MAX)).is_ok());
    let error = encode(&many(limits::EVENTS_BUFFERED_MAX + 1)).unwrap_err();
    assert!(error.to_string().contains("1001 events, at most 1000"), "{error}");
}

#[test]
fn counts_and_reasons_of_peer_probes_are_limited() {
    let (_, probe) = samples::to_agent().pop().unwrap();
    let ToAgent::ProbePeers { id, targets } = probe else { panic!("{probe:?}") };
    let many = |count| ToAgent::ProbePeers { id, targets: vec![targets[0].clone(); count] };
    assert!(encode(&many(limits::PEER_TARGETS_MAX)).is_ok());
    let error = encode(&many(limits::PEER_TARGETS_MAX + 1)).unwrap_err();
    assert!(error.to_string().contains("17 peers to ask, at most 16"), "{error}");

    let (_, probed) = samples::to_coordinator().pop().unwrap();
    let ToCoordinator::PeersProbed { id, mut answers } = probed else { panic!("{probed:?}") };
    let failed = |bytes| PeerSaid::Failed { why: "x".repeat(bytes) };
    answers = vec![answers[0].clone(); limits::PEER_TARGETS_MAX];
    answers[0].said = failed(limits::PEER_WHY_BYTES_MAX);
    assert!(encode(&ToCoordinator::PeersProbed { id, answers: answers.clone() }).is_ok());
    answers[0].said = failed(limits::PEER_WHY_BYTES_MAX + 1);
    let error = encode(&ToCoordinator::PeersProbed { id, answers: answers.clone() }).unwrap_err();
    assert!(error.to_string().contains("a reason of 257 bytes why demo-worker-2"), "{error}");
    answers[0].said = PeerSaid::Silent;
    answers.push(answers[0].clone());
    let error = encode(&ToCoordinator::PeersProbed { id, answers }).unwrap_err();
    assert!(error.to_string().contains("answers of 17 peers, at most 16"), "{error}");
}

#[test]
fn both_sides_speak_the_lower_of_the_two_newest_versions() {
    fn check(min: u16, max: u16, expected: Option<u16>) {
        let (min, max) = (ProtocolVersion(min), ProtocolVersion(max));
        let expected = expected.map(ProtocolVersion).ok_or(NoCommonVersion { min, max });
        assert_eq!(negotiate(min, max), expected, "{min} to {max}");
    }
    assert_eq!((VERSION_MIN.0, VERSION_MAX.0), (1, 1), "this table is for version 1");
    check(1, 1, Some(1));
    check(1, 9, Some(1));
    check(0, 1, Some(1));
    check(0, 9, Some(1));
    check(0, 0, None);
    check(2, 9, None);
    // A range that is upside down has nothing in it.
    check(9, 1, None);
    let text = negotiate(ProtocolVersion(2), ProtocolVersion(3)).unwrap_err().to_string();
    assert_eq!(text, "the other side speaks link versions 2 to 3, this one 1 to 1; upgrade the older side");
}
