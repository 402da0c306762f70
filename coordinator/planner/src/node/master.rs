//! API server, controller-manager and scheduler of a master.

use keelson_model::Role;
use keelson_protocol::SecretBytes;
use keelson_protocol::config::{Expect, Issuer, Need, ProbeSpec, ProbeTarget, UnitSpec, Usage};
use serde_json::json;

use super::kube::{PROBE_TIMEOUT_MS, base_unit, https_probe, kubeconfig};
use super::{Node, Subject, etcd, paths};

const API_SERVER: &str = "kube-apiserver";
const ETCD_CLIENT: &str = "kube-apiserver-etcd-client";
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
const FRONT_PROXY: &str = "front-proxy-client";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const CONTROLLER_MANAGER_SERVER: &str = "kube-controller-manager-server";
const SCHEDULER: &str = "kube-scheduler";
const SCHEDULER_SERVER: &str = "kube-scheduler-server";

/// User name that API servers show to kubelets; the add-ons bind it to `system:kubelet-api-admin`.
pub(crate) const KUBELET_CLIENT_USER: &str = "keelson:kube-apiserver-kubelet-client";

/// Requests a second of the controller-manager, and how many it may make at once. With upstream's 20 and 30 it needs
/// five seconds to make the credentials of its controllers, and until then nobody can make a pod in a new cluster; the
/// API server's own priority and fairness keeps it from crowding out others.
const API_QPS: u32 = 100;
const API_BURST: u32 = 200;

/// How long an API server that stops lets watches go on. Without it it waits for them as long as systemd lets it, and a
/// cluster with one master has no API meanwhile.
const WATCHES_END: &str = "2s";
/// How long it serves on after it has begun to say that it is not ready: balancers notice within a second.
const SHUTDOWN_DELAY: &str = "2s";

/// Adds the three programs.
pub(crate) fn add(node: &mut Node) {
    certificates(node);
    api_server_files(node);
    api_server(node);
    controller_manager(node);
    scheduler(node);
}

fn certificates(node: &mut Node) {
    let network = &node.input.blueprint.network;
    let domain = format!("kubernetes.default.svc.{}", network.domain);
    let server = Subject::named("kube-apiserver")
        .dns(&["kubernetes", "kubernetes.default", "kubernetes.default.svc", &domain, "localhost"])
        .dns(&[node.machine.id.as_str()])
        .address(node.machine.address)
        .address(network.api_service())
        .address(std::net::Ipv4Addr::LOCALHOST);
    node.certificate(API_SERVER, Issuer::Kubernetes, Usage::Server, server);
    node.certificate(ETCD_CLIENT, Issuer::Etcd, Usage::Client, Subject::named(ETCD_CLIENT));
    node.certificate(KUBELET_CLIENT, Issuer::Kubernetes, Usage::Client, Subject::named(KUBELET_CLIENT_USER));
    node.certificate(FRONT_PROXY, Issuer::FrontProxy, Usage::Client, Subject::named(FRONT_PROXY));
    for (client, server, user) in [
        (CONTROLLER_MANAGER, CONTROLLER_MANAGER_SERVER, "system:kube-controller-manager"),
        (SCHEDULER, SCHEDULER_SERVER, "system:kube-scheduler"),
    ] {
        node.certificate(client, Issuer::Kubernetes, Usage::Client, Subject::named(user));
        let names = Subject::named(client).dns(&[client, "localhost"]).address(std::net::Ipv4Addr::LOCALHOST);
        node.certificate(server, Issuer::Kubernetes, Usage::Server, names);
        node.json_file(paths::conf(&format!("{client}.kubeconfig")), &kubeconfig(client));
    }
}

fn api_server_files(node: &mut Node) {
    let material = node.input.material;
    node.secret_file(paths::SERVICE_ACCOUNT_KEY, material.service_account_key.clone());
    node.text_file(paths::SERVICE_ACCOUNT_PUBLIC_KEY, material.service_account_public_key.clone());
    let encryption_key = String::from_utf8_lossy(material.encryption_key.expose_secret()).into_owned();
    let encryption = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [{ "secretbox": { "keys": [{ "name": "key1", "secret": encryption_key }] } }, { "identity": {} }],
        }],
    });
    node.secret_file(paths::conf("encryption.json"), SecretBytes::new(encryption.to_string().into_bytes()));
    let authentication = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        // Health can be asked without a certificate, so that a probe can tell "not ready" from "no access".
        "anonymous": {
            "enabled": true,
            "conditions": [{ "path": "/livez" }, { "path": "/readyz" }, { "path": "/healthz" }],
        },
    });
    node.json_file(paths::conf("authentication.json"), &authentication);
    node.json_file(paths::conf("audit-policy.json"), &audit_policy());
}

/// Who changed what: metadata of every change, nothing of reads, and never the content of a Secret.
fn audit_policy() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "nonResourceURLs": ["/livez*", "/readyz*", "/healthz*", "/version", "/openapi/*"] },
            { "level": "None", "resources": [
                { "group": "coordination.k8s.io", "resources": ["leases"] },
                { "group": "", "resources": ["events"] },
                { "group": "events.k8s.io", "resources": ["events"] },
            ]},
            { "level": "None", "verbs": ["get", "list", "watch"] },
            { "level": "Metadata" },
        ],
    })
}

fn api_server(node: &mut Node) {
    let network = node.input.blueprint.network.clone();
    let issuer = format!("https://kubernetes.default.svc.{}", network.domain);
    let flags = [
        ("advertise-address", node.machine.address.to_string()),
        ("secure-port", paths::API_PORT.to_string()),
        ("etcd-servers", etcd::client_urls(node).join(",")),
        ("etcd-cafile", paths::ETCD_CA.to_owned()),
        ("etcd-certfile", paths::certificate(ETCD_CLIENT)),
        ("etcd-keyfile", paths::key(ETCD_CLIENT)),
        ("tls-cert-file", paths::certificate(API_SERVER)),
        ("tls-private-key-file", paths::key(API_SERVER)),
        ("client-ca-file", paths::CLIENT_CA.to_owned()),
        ("authentication-config", paths::conf("authentication.json")),
        ("kubelet-certificate-authority", paths::KUBERNETES_CA.to_owned()),
        ("kubelet-client-certificate", paths::certificate(KUBELET_CLIENT)),
        ("kubelet-client-key", paths::key(KUBELET_CLIENT)),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("service-cluster-ip-range", network.services.to_string()),
        ("service-account-issuer", issuer),
        ("service-account-signing-key-file", paths::SERVICE_ACCOUNT_KEY.to_owned()),
        ("service-account-key-file", paths::SERVICE_ACCOUNT_PUBLIC_KEY.to_owned()),
        ("encryption-provider-config", paths::conf("encryption.json")),
        ("audit-policy-file", paths::conf("audit-policy.json")),
        ("audit-log-path", format!("{}/audit.log", paths::AUDIT_DIRECTORY)),
        ("audit-log-maxage", "30".to_owned()),
        ("audit-log-maxbackup", "5".to_owned()),
        ("audit-log-maxsize", "100".to_owned()),
        ("requestheader-client-ca-file", paths::FRONT_PROXY_CA.to_owned()),
        ("requestheader-allowed-names", FRONT_PROXY.to_owned()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
        ("requestheader-group-headers", "X-Remote-Group".to_owned()),
        ("requestheader-username-headers", "X-Remote-User".to_owned()),
        ("proxy-client-cert-file", paths::certificate(FRONT_PROXY)),
        ("proxy-client-key-file", paths::key(FRONT_PROXY)),
        ("allow-privileged", "true".to_owned()),
        ("profiling", "false".to_owned()),
        ("shutdown-watch-termination-grace-period", WATCHES_END.to_owned()),
    ];
    let mut command = command(node, API_SERVER, &flags);
    if node.input.blueprint.staying(Role::Master).count() > 1 {
        // Balancers see that it is on its way out and lead clients elsewhere before it stops to listen.
        command.push(format!("--shutdown-delay-duration={SHUTDOWN_DELAY}"));
    }
    let members = node.input.blueprint.staying(Role::Etcd).map(|member| ProbeSpec {
        name: format!("etcd on {}", member.id),
        target: ProbeTarget::Tcp((member.address, paths::ETCD_CLIENT_PORT).into()),
        expect: Expect::Answer,
        timeout_ms: PROBE_TIMEOUT_MS,
    });
    let needs = vec![Need::AnyProbe(members.collect())];
    node.unit(UnitSpec {
        state_directories: vec![paths::AUDIT_DIRECTORY.to_owned()],
        needs,
        health: Some(https_probe(
            "kube-apiserver",
            paths::API_PORT,
            paths::API_READY_PATH,
            paths::API_SERVER_NAME,
        )),
        // Without etcd it is not ready, and a restart would make its clients connect anew for nothing.
        alive: Some(https_probe(
            "kube-apiserver itself",
            paths::API_PORT,
            "/livez?exclude=etcd",
            paths::API_SERVER_NAME,
        )),
        restart_on: [
            paths::ETCD_CA,
            paths::CLIENT_CA,
            paths::KUBERNETES_CA,
            paths::FRONT_PROXY_CA,
            paths::SERVICE_ACCOUNT_KEY,
            paths::SERVICE_ACCOUNT_PUBLIC_KEY,
            &paths::conf("authentication.json"),
            &paths::conf("encryption.json"),
            &paths::conf("audit-policy.json"),
            API_SERVER,
            ETCD_CLIENT,
            KUBELET_CLIENT,
            FRONT_PROXY,
        ]
        .map(str::to_owned)
        .to_vec(),
        ..base_unit(API_SERVER, "Kubernetes API server", command)
    });
}

fn controller_manager(node: &mut Node) {
    let material = node.input.material;
    node.text_file(paths::SIGNER_CERTIFICATE, material.signer.certificate.clone());
    node.secret_file(paths::SIGNER_KEY, material.signer.key.clone());
    let config = paths::conf("kube-controller-manager.kubeconfig");
    let network = &node.input.blueprint.network;
    let flags = [
        ("kubeconfig", config.clone()),
        ("authentication-kubeconfig", config.clone()),
        ("authorization-kubeconfig", config.clone()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("tls-cert-file", paths::certificate(CONTROLLER_MANAGER_SERVER)),
        ("tls-private-key-file", paths::key(CONTROLLER_MANAGER_SERVER)),
        ("client-ca-file", paths::CLIENT_CA.to_owned()),
        ("requestheader-client-ca-file", paths::FRONT_PROXY_CA.to_owned()),
        ("cluster-name", node.input.blueprint.cluster.to_string()),
        ("cluster-cidr", network.pods.to_string()),
        ("service-cluster-ip-range", network.services.to_string()),
        ("allocate-node-cidrs", "false".to_owned()),
        ("use-service-account-credentials", "true".to_owned()),
        ("service-account-private-key-file", paths::SERVICE_ACCOUNT_KEY.to_owned()),
        ("root-ca-file", paths::KUBERNETES_CA.to_owned()),
        ("cluster-signing-cert-file", paths::SIGNER_CERTIFICATE.to_owned()),
        ("cluster-signing-key-file", paths::SIGNER_KEY.to_owned()),
        ("kube-api-qps", API_QPS.to_string()),
        ("kube-api-burst", API_BURST.to_string()),
        ("profiling", "false".to_owned()),
    ];
    let command = command(node, CONTROLLER_MANAGER, &flags);
    node.unit(UnitSpec {
        needs: vec![Need::Unit(format!("{API_SERVER}.service"))],
        health: Some(https_probe(
            CONTROLLER_MANAGER,
            paths::CONTROLLER_MANAGER_PORT,
            "/healthz",
            CONTROLLER_MANAGER,
        )),
        restart_on: [
            &config,
            paths::CLIENT_CA,
            paths::FRONT_PROXY_CA,
            paths::SERVICE_ACCOUNT_KEY,
            paths::KUBERNETES_CA,
            paths::SIGNER_CERTIFICATE,
            paths::SIGNER_KEY,
            CONTROLLER_MANAGER,
            CONTROLLER_MANAGER_SERVER,
        ]
        .map(str::to_owned)
        .to_vec(),
        ..base_unit(CONTROLLER_MANAGER, "Kubernetes controller-manager", command)
    });
}

fn scheduler(node: &mut Node) {
    let config = paths::conf("kube-scheduler.kubeconfig");
    let flags = [
        ("kubeconfig", config.clone()),
        ("authentication-kubeconfig", config.clone()),
        ("authorization-kubeconfig", config.clone()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("tls-cert-file", paths::certificate(SCHEDULER_SERVER)),
        ("tls-private-key-file", paths::key(SCHEDULER_SERVER)),
        ("client-ca-file", paths::CLIENT_CA.to_owned()),
        ("requestheader-client-ca-file", paths::FRONT_PROXY_CA.to_owned()),
        ("profiling", "false".to_owned()),
    ];
    let command = command(node, SCHEDULER, &flags);
    node.unit(UnitSpec {
        needs: vec![Need::Unit(format!("{API_SERVER}.service"))],
        health: Some(https_probe(SCHEDULER, paths::SCHEDULER_PORT, "/healthz", SCHEDULER)),
        restart_on: [&config, paths::CLIENT_CA, paths::FRONT_PROXY_CA, SCHEDULER, SCHEDULER_SERVER]
            .map(str::to_owned)
            .to_vec(),
        ..base_unit(SCHEDULER, "Kubernetes scheduler", command)
    });
}

fn command(node: &Node, program: &str, flags: &[(&str, String)]) -> Vec<String> {
    let mut command = vec![node.program(program)];
    command.extend(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
    command
}
