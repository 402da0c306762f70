//! The etcd member of a machine.

use std::net::Ipv4Addr;

use keelson_model::{BlueprintMachine, Role, SeatBegins};
use keelson_protocol::MachineId;
use keelson_protocol::config::{Issuer, UnitKind, UnitSpec, Usage};

use super::kube::{base_unit, http_probe};
use super::{Node, Subject, paths};

pub(crate) const SERVER: &str = "etcd-server";
const PEER: &str = "etcd-peer";

/// Size at which etcd refuses writes, in bytes: etcd's own recommended maximum.
const QUOTA_BYTES: u64 = 8 * 1024 * 1024 * 1024;

pub(crate) fn client_url(machine: &BlueprintMachine) -> String {
    format!("https://{}:{}", machine.address, paths::ETCD_CLIENT_PORT)
}

/// URLs of all members that stay, for the API server.
pub(crate) fn client_urls(node: &Node) -> Vec<String> {
    node.input.blueprint.staying(Role::Etcd).map(client_url).collect()
}

/// Name of a machine's member. One that joins later carries its incarnation, so that the member of a machine that was
/// made anew is told from the lost one before it, which had the same address.
#[must_use]
pub fn member_name(machine: &BlueprintMachine) -> String {
    match machine.seat.as_ref().map(|seat| seat.begins) {
        Some(SeatBegins::Joining) => format!("{}-i{}", machine.id, machine.incarnation),
        Some(SeatBegins::Founding) | None => machine.id.to_string(),
    }
}

/// Address of a machine's member for its peers; as long as the machine has its address, so has the member.
#[must_use]
pub fn member_url(address: Ipv4Addr) -> String {
    format!("https://{address}:{}", paths::ETCD_PEER_PORT)
}

/// Value of `--initial-cluster`: the members at this member's first start.
fn initial_cluster(machine: &BlueprintMachine) -> (String, &'static str) {
    let Some(seat) = &machine.seat else { return (String::new(), "new") };
    let member = |(id, address): (&MachineId, &Ipv4Addr)| {
        let name = if *id == machine.id { member_name(machine) } else { id.to_string() };
        format!("{name}={}", member_url(*address))
    };
    let members: Vec<String> = seat.members.iter().map(member).collect();
    let state = match seat.begins {
        SeatBegins::Founding => "new",
        SeatBegins::Joining => "existing",
    };
    (members.join(","), state)
}

/// Adds certificates and unit of the member.
pub(crate) fn add(node: &mut Node) {
    let machine = node.machine;
    let names = |subject: Subject| subject.dns(&[machine.id.as_str(), "localhost"]).address(machine.address);
    let server = names(Subject::named(machine.id.as_str())).address(std::net::Ipv4Addr::LOCALHOST);
    node.certificate(SERVER, Issuer::Etcd, Usage::Both, server);
    node.certificate(PEER, Issuer::Etcd, Usage::Both, names(Subject::named(machine.id.as_str())));
    let (members, state) = initial_cluster(machine);
    let peer_url = member_url(machine.address);
    let flags = [
        ("name", member_name(machine)),
        ("data-dir", paths::ETCD_DATA.to_owned()),
        (
            "listen-client-urls",
            format!("{},https://127.0.0.1:{}", client_url(machine), paths::ETCD_CLIENT_PORT),
        ),
        ("advertise-client-urls", client_url(machine)),
        ("listen-peer-urls", peer_url.clone()),
        ("initial-advertise-peer-urls", peer_url),
        ("listen-metrics-urls", format!("http://127.0.0.1:{}", paths::ETCD_METRICS_PORT)),
        ("initial-cluster", members),
        ("initial-cluster-state", state.to_owned()),
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
        // Without a quorum no member is ready; one that answers this waits for the others, and they for it.
        alive: Some(http_probe("etcd itself", paths::ETCD_METRICS_PORT, "/livez")),
        restart_on: vec![paths::ETCD_CA.to_owned(), SERVER.to_owned(), PEER.to_owned()],
        ..base_unit("etcd", "etcd, the cluster's state", command)
    });
}
