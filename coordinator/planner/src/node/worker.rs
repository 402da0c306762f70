//! containerd, kubelet and kube-proxy of a machine that runs pods, and the seam to the pod network.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keelson_model::Role;
use keelson_model::quantity::{bytes_text, cpu_text};
use keelson_protocol::config::{
    Expect, Hardening, Issuer, Need, ProbeSpec, ProbeTarget, UnitKind, UnitSpec, Usage,
};
use keelson_protocol::health::CgroupVersion;
use serde_json::json;

use super::kube::{PROBE_TIMEOUT_MS, api_probe, api_ready, base_unit, http_probe, kubeconfig, oneshot};
use super::{Node, Subject, paths};

const KUBELET: &str = "kubelet";
const KUBELET_SERVER: &str = "kubelet-server";
const KUBE_PROXY: &str = "kube-proxy";
/// What is kept from pods is a multiple of this, in bytes: the memory that a kernel has to give differs by some hundred
/// kilobytes from one to the next, and each change restarts the kubelet.
const RESERVED_STEP_BYTES: u64 = 64 << 20;
/// A kubelet whose loop has stood still for five minutes says no more that it works, and is ended after so long at most
/// (pkg/kubelet/watchdog of Kubernetes 1.37): it does so every 90 seconds, and a machine may stand still for a while.
const KUBELET_WATCHDOG_S: u32 = 180;
/// Most processes and threads of one pod, so that none takes those of the whole machine; OpenShift's limit.
const POD_PIDS_MAX: u32 = 4_096;
/// Where the cluster's DNS takes connections (RFC 7766).
const DNS_PORT: u16 = 53;

/// Taint of masters, so that users' pods keep away (Kubernetes "well-known labels, annotations and taints").
pub(crate) const MASTER_TAINT: &str = "node-role.kubernetes.io/control-plane";

/// Adds all three programs, images and pod network.
pub(crate) fn add(node: &mut Node) {
    containerd(node);
    let images = images(node);
    pod_network(node);
    kubelet(node, &images);
    services(node);
    node_ready(node);
    dns_answers(node);
}

fn containerd(node: &mut Node) {
    let config = paths::conf("containerd.toml");
    node.text_file(&config, containerd_config(node));
    let bin = format!("{}/bin", paths::release(&node.input.blueprint.release));
    let command = vec![node.program("containerd"), format!("--config={config}")];
    node.unit(UnitSpec {
        kind: UnitKind::Notify,
        hardening: Hardening::Host,
        // The shims are found on the path, and so are the tools that they call.
        environment: vec![("PATH".to_owned(), format!("{bin}:/usr/sbin:/usr/bin:/sbin:/bin"))],
        delegate: true,
        children_survive: true,
        health: Some(ProbeSpec {
            name: "containerd".to_owned(),
            target: ProbeTarget::Unix(paths::CONTAINERD_SOCKET.to_owned()),
            expect: Expect::Answer,
            timeout_ms: PROBE_TIMEOUT_MS,
        }),
        restart_on: vec![config],
        ..base_unit("containerd", "Container runtime", command)
    });
}

/// containerd's configuration, version 3 (containerd 2.x).
fn containerd_config(node: &Node) -> String {
    let release = paths::release(&node.input.blueprint.release);
    // Those of the node image cannot be pulled again. The kubelet removes what nothing uses and nobody has pinned before it
    // evicts a pod, whatever its thresholds for images say.
    let mut pinned = node.input.release.images.clone();
    let pause = pinned.remove("pause").unwrap_or_default();
    pinned.insert("sandbox".to_owned(), pause);
    let systemd_cgroup = node.input.traits.cgroup == CgroupVersion::V2;
    let mut config = json!({
        "version": 3,
        "root": "/var/lib/containerd",
        "state": "/run/containerd",
        // With a damaged database containerd runs on and answers without this plugin, which is all that the kubelet needs of
        // it: the kubelet would fall, and be mended, for its fault.
        "required_plugins": ["io.containerd.grpc.v1.cri"],
        "plugins": {
            "io.containerd.cri.v1.images": {
                "snapshotter": "overlayfs",
                "pinned_images": pinned,
                "registry": { "config_path": paths::REGISTRY_HOSTS },
            },
            "io.containerd.cri.v1.runtime": {
                "restrict_oom_score_adj": !node.input.traits.may_raise_limits,
                "containerd": {
                    "default_runtime_name": "runc",
                    "runtimes": { "runc": {
                        "runtime_type": "io.containerd.runc.v2",
                        "options": { "BinaryName": format!("{release}/bin/runc"), "SystemdCgroup": systemd_cgroup },
                    }},
                },
                "cni": { "bin_dirs": [format!("{release}/cni/bin")], "conf_dir": paths::CNI_CONFIG_DIRECTORY },
            },
            "io.containerd.internal.v1.opt": { "path": "/var/lib/containerd/opt" },
        },
    });
    if node.input.traits.may_raise_limits {
        // Without containerd no pod of the machine can be mended: of all programs the kernel takes it last.
        config["oom_score"] = json!(-999);
    }
    toml::to_string(&config).expect("this document has no null and no mixed array")
}

/// One unit for each image archive; returns their names.
fn images(node: &mut Node) -> Vec<String> {
    let mut units = Vec::new();
    for (name, archive) in &node.input.release.archives {
        let ctr = node.program("ctr");
        let command =
            [&ctr, "--namespace=k8s.io", "images", "import", "--local", archive].map(str::to_owned).to_vec();
        let unit = UnitSpec {
            needs: vec![Need::Unit("containerd.service".to_owned())],
            ..oneshot(&format!("image-{name}"), &format!("Container image {name}"), command)
        };
        units.push(unit.name.clone());
        node.unit(unit);
    }
    units
}

/// The seam of the pod network: reference CNI plugins here, routes between machines in the config.
fn pod_network(node: &mut Node) {
    let Some(pods) = node.machine.pods else { return };
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": pods.to_string() }]], "dataDir": paths::POD_ADDRESSES },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    node.json_file(format!("{}/10-pods.conflist", paths::CNI_CONFIG_DIRECTORY), &list);
}

fn kubelet(node: &mut Node, images: &[String]) {
    let id = node.machine.id.clone();
    let subject = || Subject::named(format!("system:node:{id}")).group("system:nodes");
    node.certificate(KUBELET, Issuer::Kubernetes, Usage::Client, subject());
    let server = subject().dns(&[id.as_str()]).address(node.machine.address);
    node.certificate(KUBELET_SERVER, Issuer::Kubernetes, Usage::Server, server);
    let kubeconfig_path = paths::conf("kubelet.kubeconfig");
    node.json_file(&kubeconfig_path, &kubeconfig(KUBELET));
    let config = paths::conf("kubelet.json");
    node.json_file(&config, &kubelet_config(node));
    let own = node.machine.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let labels = own.chain([
        ("topology.kubernetes.io/zone", node.machine.zone.as_str()),
        ("keelson.dev/pool", node.machine.pool.0.as_str()),
    ]);
    let labels: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
    let command = vec![
        node.program("kubelet"),
        format!("--config={config}"),
        format!("--kubeconfig={kubeconfig_path}"),
        format!("--hostname-override={id}"),
        format!("--node-ip={}", node.machine.address),
        format!("--node-labels={}", labels.join(",")),
    ];
    let mut needs = vec![Need::Unit("containerd.service".to_owned())];
    needs.extend(images.iter().map(|unit| Need::Unit(unit.clone())));
    needs.push(api_ready());
    node.unit(UnitSpec {
        hardening: Hardening::Host,
        children_survive: true,
        needs,
        health: Some(http_probe(KUBELET, paths::KUBELET_HEALTH_PORT, "/healthz")),
        watchdog_s: Some(KUBELET_WATCHDOG_S),
        restart_on: [
            &config,
            &kubeconfig_path,
            paths::CLIENT_CA,
            paths::KUBERNETES_CA,
            KUBELET,
            KUBELET_SERVER,
        ]
        .map(str::to_owned)
        .to_vec(),
        ..base_unit(KUBELET, "Kubernetes node agent", command)
    });
}

fn kubelet_config(node: &Node) -> serde_json::Value {
    let machine = node.machine;
    let v2 = node.input.traits.cgroup == CgroupVersion::V2;
    let worker = machine.roles.contains(&Role::Worker);
    let mut taints =
        if worker { Vec::new() } else { vec![json!({ "key": MASTER_TAINT, "effect": "NoSchedule" })] };
    taints.extend(machine.taints.iter().map(|taint| json!(taint)));
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": paths::CLIENT_CA },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": paths::certificate(KUBELET_SERVER),
        "tlsPrivateKeyFile": paths::key(KUBELET_SERVER),
        "rotateCertificates": false,
        "cgroupDriver": if v2 { "systemd" } else { "cgroupfs" },
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [node.input.blueprint.network.dns_service()],
        "clusterDomain": node.input.blueprint.network.domain,
        "containerRuntimeEndpoint": format!("unix://{}", paths::CONTAINERD_SOCKET),
        "providerID": format!("keelson://{}/{}", node.input.blueprint.cluster, machine.id),
        "registerWithTaints": taints,
        "serializeImagePulls": false,
        // Images come from the node image and cannot be pulled again, so they must never be collected.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // In bytes, not percent: a machine's disk may be a folder of a large disk that others fill too.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
            "nodefs.inodesFree": "1%",
            "pid.available": "10%",
        },
        "podPidsLimit": POD_PIDS_MAX,
    });
    let reserved = beyond_the_machine(node);
    if !reserved.is_empty() {
        config["systemReserved"] = json!(reserved);
    }
    if !node.input.traits.may_raise_limits {
        config["oomScoreAdj"] = json!(0);
        config["featureGates"] = json!({ "KubeletInUserNamespace": true });
    }
    config
}

/// What the kubelet of a machine with limits sees and the machine does not have, as a container sees its whole host:
/// nothing of it is for pods.
fn beyond_the_machine(node: &Node) -> BTreeMap<&'static str, String> {
    let (seen, size) = (node.input.traits, node.machine.size);
    let millis = size.cpu_millis.map(|own| seen.cpus.saturating_mul(1_000).saturating_sub(own));
    let bytes = size.memory_bytes.map(|own| seen.memory_bytes.saturating_sub(own));
    let steps = bytes.map(|bytes| bytes.div_ceil(RESERVED_STEP_BYTES)).filter(|steps| *steps > 0);
    let cpu = millis.filter(|millis| *millis > 0).map(|millis| ("cpu", cpu_text(millis)));
    let memory = steps.map(|steps| ("memory", bytes_text(steps * RESERVED_STEP_BYTES)));
    cpu.into_iter().chain(memory).collect()
}

/// The seam of Services: kube-proxy here.
fn services(node: &mut Node) {
    node.certificate(KUBE_PROXY, Issuer::Kubernetes, Usage::Client, Subject::named("system:kube-proxy"));
    let kubeconfig_path = paths::conf("kube-proxy.kubeconfig");
    node.json_file(&kubeconfig_path, &kubeconfig(KUBE_PROXY));
    let config_path = paths::conf("kube-proxy.json");
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": node.input.blueprint.network.pods.to_string(),
        "hostnameOverride": node.machine.id,
        "clientConnection": { "kubeconfig": kubeconfig_path },
        // The sysctls behind these belong to the host of a container machine; zero leaves them alone.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "oomScoreAdj": 0,
    });
    node.json_file(&config_path, &config);
    let command = vec![node.program("kube-proxy"), format!("--config={config_path}")];
    node.unit(UnitSpec {
        hardening: Hardening::Host,
        needs: vec![api_ready()],
        health: Some(http_probe(KUBE_PROXY, paths::PROXY_HEALTH_PORT, "/livez")),
        restart_on: [&config_path, &kubeconfig_path, paths::KUBERNETES_CA, KUBE_PROXY]
            .map(str::to_owned)
            .to_vec(),
        ..base_unit(KUBE_PROXY, "Kubernetes Services", command)
    });
}

/// Kubernetes' own word on this node, so that a machine is not called ready before, and is not called ready when its
/// kubelet answers and the node is not.
fn node_ready(node: &mut Node) {
    let id = node.machine.id.clone();
    let probe = api_probe(format!("node {id} to be Ready"), format!("/api/v1/nodes/{id}"), Some(KUBELET));
    node.unit(UnitSpec {
        name: "node-ready".to_owned(),
        kind: UnitKind::Check,
        hardening: Hardening::Host,
        needs: vec![Need::Unit("kubelet.service".to_owned())],
        health: Some(ProbeSpec { expect: Expect::NodeReady, ..probe }),
        ..base_unit("node-ready", "Kubernetes calls this node ready", Vec::new())
    });
}

/// Names of Services resolve on this node: the cluster's DNS takes connections at its Service address, which leads through
/// this node's kube-proxy and the pod network to a CoreDNS that says it is ready. Without it a cluster was called ready
/// whose first pods found no names.
fn dns_answers(node: &mut Node) {
    let address = SocketAddr::from((node.input.blueprint.network.dns_service(), DNS_PORT));
    node.unit(UnitSpec {
        name: "dns-answers".to_owned(),
        kind: UnitKind::Check,
        hardening: Hardening::Host,
        needs: vec![Need::Unit("kube-proxy.service".to_owned()), Need::Unit("node-ready".to_owned())],
        health: Some(ProbeSpec {
            name: "the cluster's DNS".to_owned(),
            target: ProbeTarget::Tcp(address),
            expect: Expect::Answer,
            timeout_ms: PROBE_TIMEOUT_MS,
        }),
        ..base_unit("dns-answers", "Names of Services resolve", Vec::new())
    });
}
