//! What every cluster carries inside Kubernetes: DNS, and access of the API servers to kubelets.

use keelson_model::Role;
use keelson_protocol::config::{Issuer, Need, UnitKind, UnitSpec, Usage};
use serde_json::{Value, json};

use super::kube::{api_probe, base_unit, kubeconfig, oneshot};
use super::master::KUBELET_CLIENT_USER;
use super::{Node, Subject, paths};

const ADDONS: &str = "addons";

/// Group of the certificates in kubeconfigs that Keelson hands out.
pub const ADMIN_GROUP: &str = "keelson:cluster-admins";

/// Adds the manifests and the unit that applies them.
pub(crate) fn add(node: &mut Node) {
    // Member of system:masters, because it makes the bindings that everybody else needs.
    let subject = Subject::named("keelson:addons").group("system:masters");
    node.certificate(ADDONS, Issuer::Kubernetes, Usage::Client, subject);
    let config = paths::conf("addons.kubeconfig");
    node.json_file(&config, &kubeconfig(ADDONS));
    pods_welcome(node);
    // One master applies them: several at once would fight over the address of the DNS Service.
    let first = node.input.blueprint.staying(Role::Master).next();
    if first.is_some_and(|first| first.id == node.machine.id) {
        apply(node, config);
    }
}

/// Applies the manifests when they change.
fn apply(node: &mut Node, config: String) {
    let manifests = paths::conf("addons.json");
    let mut items = bindings();
    items.extend(dns(node));
    node.json_file(&manifests, &json!({ "apiVersion": "v1", "kind": "List", "items": items }));
    let kubectl = node.program("kubectl");
    let apply =
        [&kubectl, "--kubeconfig", &config, "apply", "--server-side", "--force-conflicts", "--filename"];
    let mut command: Vec<String> = apply.iter().map(|word| (*word).to_owned()).collect();
    command.push(manifests.clone());
    let environment = vec![("HOME".to_owned(), "/var/lib/keelson/addons".to_owned())];
    node.unit(UnitSpec {
        environment,
        state_directories: vec!["/var/lib/keelson/addons".to_owned()],
        needs: vec![Need::Unit("kube-apiserver.service".to_owned())],
        restart_on: vec![manifests, config, ADDONS.to_owned()],
        ..oneshot("addons", "DNS and access rules of the cluster", command)
    });
}

/// A new namespace refuses pods until the controller-manager has made its service account; a cluster is not called
/// ready before users can make pods in `default`.
fn pods_welcome(node: &mut Node) {
    let path = "/api/v1/namespaces/default/serviceaccounts/default";
    node.unit(UnitSpec {
        name: "pods-welcome".to_owned(),
        kind: UnitKind::Check,
        needs: vec![Need::Unit("kube-controller-manager.service".to_owned())],
        health: Some(api_probe("the service account of namespace default", path, Some(ADDONS))),
        ..base_unit("pods-welcome", "Pods can be made", Vec::new())
    });
}

fn bindings() -> Vec<Value> {
    let bind = |name: &str, role: &str, kind: &str, subject: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject }],
        })
    };
    vec![
        bind(
            "keelson:kube-apiserver-kubelet-client",
            "system:kubelet-api-admin",
            "User",
            KUBELET_CLIENT_USER,
        ),
        bind("keelson:cluster-admins", "cluster-admin", "Group", ADMIN_GROUP),
    ]
}

/// CoreDNS as upstream's cluster add-on has it, with the image that the machines carry.
fn dns(node: &Node) -> Vec<Value> {
    let labels = json!({ "k8s-app": "kube-dns" });
    let metadata = |name: &str| json!({ "name": name, "namespace": "kube-system", "labels": labels });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns") }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" },
            "subjects": [{ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" }],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata("coredns"),
            "data": { "Corefile": corefile(node) },
        }),
        dns_deployment(node, &metadata("coredns")),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kube-dns", "namespace": "kube-system",
                "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" },
            },
            "spec": {
                "clusterIP": node.input.blueprint.network.dns_service(),
                "selector": labels,
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
                    { "name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153 },
                ],
            },
        }),
    ]
}

/// Names of the cluster only: machines have no resolver of their own that could be asked for others.
fn corefile(node: &Node) -> String {
    let domain = &node.input.blueprint.network.domain;
    let plugins = [
        "errors".to_owned(),
        "health { lameduck 5s }".to_owned(),
        "ready".to_owned(),
        format!(
            "kubernetes {domain} in-addr.arpa ip6.arpa {{ pods insecure\n fallthrough in-addr.arpa ip6.arpa\n ttl 30 }}"
        ),
        "prometheus :9153".to_owned(),
        "cache 30".to_owned(),
        "loop".to_owned(),
        "reload".to_owned(),
        "loadbalance".to_owned(),
    ];
    let indented: Vec<String> = plugins
        .iter()
        .map(|plugin| {
            plugin.replace(" { ", " {\n        ").replace("\n ", "\n        ").replace(" }", "\n    }")
        })
        .map(|plugin| format!("    {plugin}\n"))
        .collect();
    format!(".:53 {{\n{}}}\n", indented.concat())
}

fn dns_deployment(node: &Node, metadata: &Value) -> Value {
    let image = node.input.release.images.get("coredns").cloned().unwrap_or_default();
    let replicas = node.input.blueprint.with_role(Role::Worker).count().clamp(1, 2);
    let labels = json!({ "k8s-app": "kube-dns" });
    let http = |path: &str, port: u16| json!({ "httpGet": { "path": path, "port": port, "scheme": "HTTP" } });
    let mut liveness = http("/health", 8080);
    liveness["initialDelaySeconds"] = json!(60);
    liveness["timeoutSeconds"] = json!(5);
    let mut readiness = http("/ready", 8181);
    readiness["periodSeconds"] = json!(2);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "priorityClassName": "system-cluster-critical",
                    "serviceAccountName": "coredns",
                    "dnsPolicy": "Default",
                    "nodeSelector": { "kubernetes.io/os": "linux" },
                    "tolerations": [
                        { "key": "CriticalAddonsOnly", "operator": "Exists" },
                        { "key": super::worker::MASTER_TAINT, "effect": "NoSchedule" },
                    ],
                    "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 100,
                        "podAffinityTerm": { "labelSelector": { "matchLabels": labels }, "topologyKey": "kubernetes.io/hostname" },
                    }] } },
                    "containers": [{
                        "name": "coredns",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "resources": { "limits": { "memory": "170Mi" }, "requests": { "cpu": "100m", "memory": "70Mi" } },
                        "ports": [
                            { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                            { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" },
                            { "name": "metrics", "containerPort": 9153, "protocol": "TCP" },
                        ],
                        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns", "readOnly": true }],
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] },
                            "readOnlyRootFilesystem": true,
                        },
                        "livenessProbe": liveness,
                        "readinessProbe": readiness,
                    }],
                    "volumes": [{ "name": "config", "configMap": {
                        "name": "coredns", "items": [{ "key": "Corefile", "path": "Corefile" }],
                    } }],
                },
            },
        },
    })
}
