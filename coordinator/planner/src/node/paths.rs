//! Where things lie on a machine. State is below `/var/lib`, sockets below `/run`, programs in the image.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use keelson_protocol::ReleaseName;

/// Port of the API servers.
pub const API_PORT: u16 = 6443;
/// Where an API server says whether it can serve. Anybody may ask, and it turns bad as soon as the server begins to shut
/// down (<https://kubernetes.io/docs/reference/using-api/health-checks/>).
pub const API_READY_PATH: &str = "/readyz";
/// A name that the certificates of all API servers carry.
pub(crate) const API_SERVER_NAME: &str = "kubernetes";
/// Port (UDP) where agents answer their peers, beside those of link and balancer.
pub const PEER_PORT: u16 = 7447;
/// Port of etcd for clients.
pub(crate) const ETCD_CLIENT_PORT: u16 = 2379;
/// Port of etcd for its peers.
pub(crate) const ETCD_PEER_PORT: u16 = 2380;
/// Port of etcd's own health and metrics, on loopback.
pub(crate) const ETCD_METRICS_PORT: u16 = 2381;
/// Port of the controller-manager.
pub(crate) const CONTROLLER_MANAGER_PORT: u16 = 10257;
/// Port of the scheduler.
pub(crate) const SCHEDULER_PORT: u16 = 10259;
/// Port of kubelet's health endpoint, on loopback.
pub(crate) const KUBELET_HEALTH_PORT: u16 = 10248;
/// Port of kube-proxy's health endpoint.
pub(crate) const PROXY_HEALTH_PORT: u16 = 10256;

/// Where the agent's balancer listens: the API server as this machine's own programs see it.
pub(crate) const BALANCER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7445));

pub(crate) const ETCD_CA: &str = "/var/lib/keelson/pki/etcd-ca.crt";
pub(crate) const KUBERNETES_CA: &str = "/var/lib/keelson/pki/kubernetes-ca.crt";
pub(crate) const CLIENT_CA: &str = "/var/lib/keelson/pki/client-ca.crt";
pub(crate) const FRONT_PROXY_CA: &str = "/var/lib/keelson/pki/front-proxy-ca.crt";
pub(crate) const SIGNER_CERTIFICATE: &str = "/var/lib/keelson/pki/signer.crt";
pub(crate) const SIGNER_KEY: &str = "/var/lib/keelson/pki/signer.key";
pub(crate) const SERVICE_ACCOUNT_KEY: &str = "/var/lib/keelson/pki/service-account.key";
pub(crate) const SERVICE_ACCOUNT_PUBLIC_KEY: &str = "/var/lib/keelson/pki/service-account.pub";
pub(crate) const ETCD_DATA: &str = "/var/lib/etcd";
pub(crate) const AUDIT_DIRECTORY: &str = "/var/lib/keelson/audit";
pub(crate) const CNI_CONFIG_DIRECTORY: &str = "/var/lib/keelson/cni/net.d";
/// Which pod has which address; in memory, as the pods' networks are.
pub(crate) const POD_ADDRESSES: &str = "/run/cni";
/// Where mirrors of registries are named, one folder for each registry (containerd, "registry host configuration"). Not the
/// directory below /etc that containerd proposes, as the root may be read-only; and one only, as pulls read no more.
pub(crate) const REGISTRY_HOSTS: &str = "/var/lib/keelson/registry-hosts";
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

pub(crate) fn release(name: &ReleaseName) -> String {
    format!("/opt/keelson/releases/{name}")
}

pub(crate) fn conf(name: &str) -> String {
    format!("/var/lib/keelson/conf/{name}")
}

pub(crate) fn certificate(name: &str) -> String {
    format!("/var/lib/keelson/pki/{name}.crt")
}

pub(crate) fn key(name: &str) -> String {
    format!("/var/lib/keelson/pki/{name}.key")
}

/// A loopback address with `port`.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
