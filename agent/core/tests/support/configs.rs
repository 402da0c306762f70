//! Configs of a machine that knows no Kubernetes.

use super::*;

pub fn file(path: &str, text: &str) -> FileSpec {
    FileSpec { path: path.to_owned(), mode: 0o600, content: FileContent::Text(text.to_owned()) }
}

pub fn probe(name: &str) -> ProbeSpec {
    let target = ProbeTarget::Unix(format!("/run/{name}"));
    ProbeSpec { name: name.to_owned(), target, expect: Expect::Answer, timeout_ms: 1_000 }
}

pub fn unit(name: &str, kind: UnitKind) -> UnitSpec {
    UnitSpec {
        name: name.to_owned(),
        description: name.to_owned(),
        kind,
        command: vec!["/bin/program".to_owned(), name.to_owned()],
        environment: Vec::new(),
        hardening: Hardening::Server,
        state_directories: vec![format!("/var/lib/{name}")],
        delegate: false,
        children_survive: false,
        open_files_max: None,
        stop_timeout_s: 10,
        watchdog_s: None,
        needs: Vec::new(),
        health: (kind != UnitKind::Oneshot).then(|| probe(name)),
        alive: None,
        restart_on: Vec::new(),
    }
}

/// A question about the node that only others can answer.
pub fn node_check() -> UnitSpec {
    UnitSpec {
        command: Vec::new(),
        state_directories: Vec::new(),
        needs: vec![Need::Unit("kubelet.service".to_owned())],
        health: Some(probe("node")),
        ..unit("node-ready", UnitKind::Check)
    }
}

pub fn certificate(name: &str) -> CertificateSpec {
    CertificateSpec {
        name: name.to_owned(),
        certificate_path: format!("/var/lib/keelson/pki/{name}.crt"),
        key_path: format!("/var/lib/keelson/pki/{name}.key"),
        issuer: Issuer::Kubernetes,
        common_name: name.to_owned(),
        organizations: Vec::new(),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        usage: Usage::Client,
        lifetime_s: 86_400,
    }
}

/// A worker in small: a oneshot, a runtime, and a kubelet that needs both, an API server, a file and a certificate.
pub fn worker(generation: u64) -> NodeConfig {
    let mut runtime = unit("containerd.service", UnitKind::Notify);
    runtime.restart_on = vec!["/var/lib/keelson/containerd.toml".to_owned()];
    runtime.needs = vec![Need::Unit("prepare.service".to_owned())];
    let mut kubelet = unit("kubelet.service", UnitKind::Exec);
    kubelet.needs =
        vec![Need::Unit("containerd.service".to_owned()), Need::Probe(probe("API server at 10.0.0.2:6443"))];
    kubelet.restart_on = vec!["/var/lib/keelson/kubelet.yaml".to_owned(), "kubelet".to_owned()];
    NodeConfig {
        generation: Generation(generation),
        machine: machine(),
        incarnation: Incarnation(1),
        cluster: "demo".parse().unwrap(),
        release: "1.37.2".parse().unwrap(),
        files: vec![
            file("/var/lib/keelson/containerd.toml", "version = 3"),
            file("/var/lib/keelson/kubelet.yaml", "a: 1"),
            file("/var/lib/keelson/other", "x"),
        ],
        certificates: vec![certificate("kubelet")],
        units: vec![kubelet, runtime, unit("prepare.service", UnitKind::Oneshot)],
        routes: vec![RouteSpec {
            destination: "10.200.2.0/24".parse().unwrap(),
            via: "10.0.0.12".parse().unwrap(),
        }],
        balancer: Some(BalancerSpec {
            listen: "127.0.0.1:6443".parse().unwrap(),
            backends: vec!["10.0.0.2:6443".parse().unwrap()],
            check: None,
        }),
        peers: Some(PeerSpec {
            listen: "10.0.0.12:7447".parse().unwrap(),
            key: SecretBytes::new(vec![7; 32]),
            neighbours: neighbours(),
        }),
        remedies: Vec::new(),
        lease: None,
    }
}

/// Neighbours of the small worker.
pub fn neighbours() -> Vec<PeerTarget> {
    let target = |number: u8| PeerTarget {
        machine: MachineId::new(format!("demo-worker-{number}")).unwrap(),
        incarnation: Incarnation(u32::from(number)),
        address: [10, 0, 0, 10 + number].into(),
    };
    [3, 4, 5].map(target).to_vec()
}
