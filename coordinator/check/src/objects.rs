//! What a check makes in a cluster.

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use serde_json::{Value, json};

/// The image of the pods. Every node image carries it, so that nothing has to be pulled.
pub const PROBE_IMAGE: &str = "registry.keelson.internal/probe:0.1.0";
/// The program in it.
pub(crate) const PROBE: &str = "/probe";
/// The label of the namespaces, with value `true`.
pub(crate) const LABEL: &str = "keelson.internal/check";
/// Name of the Service and the secret, and label `app` of the pods.
pub(crate) const NAME: &str = "probe";
/// Where the server in the pods listens.
pub(crate) const PORT: u16 = 8080;
/// The file of the secret in the pods.
pub(crate) const SECRET_FILE: &str = "/secret/word";
/// A directory in the pods to write to.
pub(crate) const SCRATCH: &str = "/scratch";
/// User and group of the pods: the id that Kubernetes documents use for "nonroot".
const NONROOT_ID: u32 = 65_532;

pub(crate) fn namespace(name: &str) -> Namespace {
    typed(json!({
        "metadata": {
            "name": name,
            "labels": { LABEL: "true", "pod-security.kubernetes.io/enforce": "restricted" },
        },
    }))
}

pub(crate) fn secret(word: &str) -> Secret {
    typed(json!({ "metadata": { "name": NAME }, "stringData": { "word": word } }))
}

pub(crate) fn service() -> Service {
    typed(json!({
        "metadata": { "name": NAME },
        "spec": { "selector": { "app": NAME }, "ports": [{ "port": 80, "targetPort": PORT }] },
    }))
}

/// A pod for one node: chosen by the scheduler, as any pod, but there and nowhere else, whatever the node's taints are.
pub(crate) fn pod(name: &str, node: &str) -> Pod {
    typed(json!({
        "metadata": { "name": name, "labels": { "app": NAME } },
        "spec": {
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [node] }] },
            ]}}},
            "tolerations": [{ "operator": "Exists" }],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": NONROOT_ID,
                "runAsGroup": NONROOT_ID,
                "fsGroup": NONROOT_ID,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": NAME,
                "image": PROBE_IMAGE,
                "args": ["serve"],
                "ports": [{ "containerPort": PORT }],
                "readinessProbe": { "httpGet": { "path": "/", "port": PORT }, "periodSeconds": 1 },
                "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
                "volumeMounts": [
                    { "name": "secret", "mountPath": "/secret", "readOnly": true },
                    { "name": "scratch", "mountPath": SCRATCH },
                ],
            }],
            "volumes": [
                { "name": "secret", "secret": { "secretName": NAME } },
                { "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } },
            ],
        },
    }))
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("objects in this file have the form that Kubernetes documents")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_the_documented_form() {
        assert_eq!(namespace("a").metadata.name.as_deref(), Some("a"));
        assert!(secret("x").string_data.unwrap().contains_key("word"));
        assert_eq!(service().spec.unwrap().ports.unwrap()[0].port, 80);
        let spec = pod("probe-0", "node").spec.unwrap();
        assert_eq!(spec.containers[0].image.as_deref(), Some(PROBE_IMAGE));
    }
}
