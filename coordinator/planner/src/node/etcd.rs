//! The etcd member of a machine.

use keelson_model::{BlueprintMachine, Role};
use keelson_protocol::config::{Issuer, UnitKind, UnitSpec, Usage};

use super::kube::{base_unit, http_probe};
use super::{Node, Subject, paths};

const SERVER: &str = "etcd-server";
const PEER: &str = "etcd-peer";

/// Size at which etcd refuses writes, in bytes: etcd's own recommended maximum.
const QUOTA_BYTES: u64 = 8 * 1024 * 1024 * 1024;

fn client_url(machine: &BlueprintMachine) -> String {
    format!("https://{}:{}", machine.address, paths::ETCD_CLIENT_PORT)
}

fn peer_url(machine: &BlueprintMachine) -> String {
    format!("https://{}:{}", machine.address, paths::ETCD_PEER_PORT)
}

/// URLs of all members, for the API server.
pub(crate) fn client_urls(node: &Node) -> Vec<String> {
    node.input.blueprint.with_role(Role::Etcd).map(client_url).collect()
}

/// Adds certificates and unit of the member.
pub(crate) fn add(node: &mut Node) {
    let machine = node.machine;
    let names = |subject: Subject| subject.dns(&[machine.id.as_str(), "localhost"]).address(machine.address);
    let server = names(Subject::named(machine.id.as_str())).address(std::net::Ipv4Addr::LOCALHOST);
    node.certificate(SERVER, Issuer::Etcd, Usage::Both, server);
    node.certificate(PEER, Issuer::Etcd, Usage::Both, names(Subject::named(machine.id.as_str())));
    let members: Vec<String> = node
        .input
        .blueprint
        .with_role(Role::Etcd)
        .map(|member| format!("{}={}", member.id, peer_url(member)))
        .collect();
    let flags = [
        ("name", machine.id.to_string()),
        ("data-dir", paths::ETCD_DATA.to_owned()),
        (
            "listen-client-urls",
            format!("{},https://127.0.0.1:{}", client_url(machine), paths::ETCD_CLIENT_PORT),
        ),
        ("advertise-client-urls", client_url(machine)),
        ("listen-peer-urls", peer_url(machine)),
        ("initial-advertise-peer-urls", peer_url(machine)),
        ("listen-metrics-urls", format!("http://127.0.0.1:{}", paths::ETCD_METRICS_PORT)),
        ("initial-cluster", members.join(",")),
        ("initial-cluster-state", "new".to_owned()),
        ("initial-cluster-token", node.input.blueprint.cluster.to_string()),
        ("client-cert-auth", "true".to_owned()),
        ("trusted-ca-file", paths::ETCD_CA.to_owned()),
        ("cert-file", paths::certificate(SERVER)),
        ("key-file", paths::key(SERVER)),
        ("peer-client-cert-auth", "true".to_owned()),
        ("peer-trusted-ca-file", paths::ETCD_CA.to_owned()),
        ("peer-cert-file", paths::certificate(PEER)),
        ("peer-key-file", paths::key(PEER)),
        ("quota-backend-bytes", QUOTA_BYTES.to_string()),
    ];
    let mut command = vec![node.program("etcd")];
    command.extend(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
    node.unit(UnitSpec {
        kind: UnitKind::Notify,
        state_directories: vec![paths::ETCD_DATA.to_owned()],
        health: Some(http_probe("etcd", paths::ETCD_METRICS_PORT, "/readyz")),
        restart_on: vec![paths::ETCD_CA.to_owned(), SERVER.to_owned(), PEER.to_owned()],
        ..base_unit("etcd", "etcd, the cluster's state", command)
    });
}
