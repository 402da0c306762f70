//! What the Kubernetes programs share: kubeconfigs, probes of the API server, units of servers.

use keelson_protocol::config::{
    BalancerCheck, ClientFiles, Expect, Hardening, Need, ProbeSpec, ProbeTarget, UnitKind, UnitSpec,
};
use serde_json::{Value, json};

use super::paths;

/// Time that a health probe may take, in milliseconds: an API server under load answers `/readyz` within a second.
pub(crate) const PROBE_TIMEOUT_MS: u32 = 3_000;
/// Time that a unit may take to stop, in seconds: systemd's default is 90, too long for a repair.
pub(crate) const STOP_TIMEOUT_S: u32 = 30;
/// Open files of servers; upstream's units ask for a million, machines may allow less.
pub(crate) const OPEN_FILES_MAX: u32 = 16_384;

/// A kubeconfig for a program on this machine, which reaches the API server through the agent's balancer.
pub(crate) fn kubeconfig(user: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "local",
            "cluster": {
                "server": format!("https://{}", paths::BALANCER),
                "certificate-authority": paths::KUBERNETES_CA,
            },
        }],
        "users": [{
            "name": user,
            "user": { "client-certificate": paths::certificate(user), "client-key": paths::key(user) },
        }],
        "contexts": [{ "name": "local", "context": { "cluster": "local", "user": user } }],
        "current-context": "local",
    })
}

/// A kubeconfig for a person outside the cluster, with certificate and key inside. Texts are PEM, encoded by the
/// caller in base64 as kubectl expects.
#[must_use]
pub fn admin_kubeconfig(cluster: &str, server: &str, ca: &str, certificate: &str, key: &str) -> Value {
    let name = format!("keelson-{cluster}");
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": name,
            "cluster": { "server": server, "certificate-authority-data": ca },
        }],
        "users": [{
            "name": name,
            "user": { "client-certificate-data": certificate, "client-key-data": key },
        }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    })
}

/// Asks the API server through the balancer.
pub(crate) fn api_probe(name: impl Into<String>, path: impl Into<String>, user: Option<&str>) -> ProbeSpec {
    ProbeSpec {
        name: name.into(),
        target: ProbeTarget::Https {
            address: paths::BALANCER,
            path: path.into(),
            server_name: paths::API_SERVER_NAME.to_owned(),
            ca_path: paths::KUBERNETES_CA.to_owned(),
            client: user.map(|user| ClientFiles {
                certificate_path: paths::certificate(user),
                key_path: paths::key(user),
            }),
        },
        expect: Expect::Answer,
        timeout_ms: PROBE_TIMEOUT_MS,
    }
}

/// The API server answers, wherever it is.
pub(crate) fn api_ready() -> Need {
    Need::Probe(api_probe("the API server", paths::API_READY_PATH, None))
}

/// Asks each API server behind the balancer.
pub(crate) fn api_check() -> BalancerCheck {
    BalancerCheck {
        path: paths::API_READY_PATH.to_owned(),
        server_name: paths::API_SERVER_NAME.to_owned(),
        ca_path: paths::KUBERNETES_CA.to_owned(),
    }
}

/// Asks a server on this machine over plain HTTP.
pub(crate) fn http_probe(name: &str, port: u16, path: &str) -> ProbeSpec {
    ProbeSpec {
        name: name.to_owned(),
        target: ProbeTarget::Http { address: paths::loopback(port), path: path.to_owned() },
        expect: Expect::Answer,
        timeout_ms: PROBE_TIMEOUT_MS,
    }
}

/// Asks a server on this machine over HTTPS.
pub(crate) fn https_probe(name: &str, port: u16, path: &str, server_name: &str) -> ProbeSpec {
    ProbeSpec {
        name: name.to_owned(),
        target: ProbeTarget::Https {
            address: paths::loopback(port),
            path: path.to_owned(),
            server_name: server_name.to_owned(),
            ca_path: paths::KUBERNETES_CA.to_owned(),
            client: None,
        },
        expect: Expect::Answer,
        timeout_ms: PROBE_TIMEOUT_MS,
    }
}

/// A unit with the settings that all programs of a cluster share; callers change what differs.
pub(crate) fn base_unit(name: &str, description: &str, command: Vec<String>) -> UnitSpec {
    UnitSpec {
        name: format!("{name}.service"),
        description: description.to_owned(),
        kind: UnitKind::Exec,
        command,
        environment: Vec::new(),
        hardening: Hardening::Server,
        state_directories: Vec::new(),
        delegate: false,
        children_survive: false,
        open_files_max: Some(OPEN_FILES_MAX),
        stop_timeout_s: STOP_TIMEOUT_S,
        watchdog_s: None,
        needs: Vec::new(),
        health: None,
        alive: None,
        restart_on: Vec::new(),
    }
}

/// A unit that runs once.
pub(crate) fn oneshot(name: &str, description: &str, command: Vec<String>) -> UnitSpec {
    UnitSpec { kind: UnitKind::Oneshot, hardening: Hardening::Host, ..base_unit(name, description, command) }
}
