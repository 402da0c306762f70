//! What the coordinator asks of API servers, against a real one that has no kubelets and no controllers: the test does
//! what those would do.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use keelson_e2e::ControlPlane;
use keelson_kube::{Access, KubeClient};
use keelson_model::kubernetes::{
    Cordon, DrainForce, DrainState, KubeAnswer, KubeCall, KubeFailure, NodeReady, NodeSeen, NodeWish,
    PodWait, TaintWish,
};
use keelson_model::{Taint, TaintEffect};
use keelson_protocol::{ClusterName, MachineId, WallTime};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How long a call may take: the API server shares this machine with other tests.
const DEADLINE: Duration = Duration::from_secs(20);
/// The node that things happen to.
const NODE: &str = "plane-worker-1";

/// A control plane, and the coordinator's way to it.
struct Cluster {
    plane: ControlPlane,
    client: KubeClient,
    runtime: Runtime,
}

impl Cluster {
    fn start() -> Result<Self> {
        let plane = ControlPlane::start()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async { plane.client() })?;
        Ok(Self { plane, client, runtime })
    }

    fn perform(&self, call: &KubeCall) -> Result<KubeAnswer, KubeFailure> {
        self.runtime.block_on(self.client.perform(call, DEADLINE))
    }

    fn nodes(&self) -> Result<Vec<NodeSeen>> {
        match self.perform(&KubeCall::Nodes)? {
            KubeAnswer::Nodes(nodes) => Ok(nodes),
            other => bail!("asked for nodes, got {other:?}"),
        }
    }

    fn set(&self, wish: NodeWish) -> Result<()> {
        let answer = self.perform(&KubeCall::SetNode { node: machine(NODE)?, wish })?;
        ensure!(answer == KubeAnswer::Done, "{answer:?}");
        Ok(())
    }

    fn drained(&self, call: &KubeCall) -> Result<DrainState> {
        match self.perform(call)? {
            KubeAnswer::Drained(state) => Ok(state),
            other => bail!("asked for a drain, got {other:?}"),
        }
    }

    fn drain(&self, force: DrainForce) -> Result<DrainState> {
        self.drained(&KubeCall::Drain { node: machine(NODE)?, force })
    }

    fn evacuate(&self) -> Result<DrainState> {
        self.drained(&KubeCall::Evacuate { node: machine(NODE)? })
    }

    /// Does what a kubelet does: runs a pod.
    fn run_pod(&self, name: &str) -> Result<()> {
        let status = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
        self.plane.set_status(&["pod", name], &status)
    }

    /// Does what a kubelet does: removes pods that have ended.
    fn end_pods(&self, names: &[&str]) -> Result<()> {
        let delete = ["delete", "pod", "--force", "--grace-period=0", "--ignore-not-found"];
        self.plane.kubectl(&[&delete, names].concat()).map(|_| ())
    }

    fn version_of_node(&self) -> Result<String> {
        Ok(self.plane.get(&["node", NODE])?["metadata"]["resourceVersion"].to_string())
    }
}

fn machine(name: &str) -> Result<MachineId> {
    Ok(MachineId::new(name)?)
}

fn node() -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "labels": { "of-a-user": "yes" } } })
}

/// A pod on the node; `extra` is merged over its metadata.
fn pod(name: &str, extra: Value) -> Value {
    let mut metadata = json!({ "name": name, "namespace": "default", "labels": { "app": name } });
    for (key, value) in extra.as_object().into_iter().flatten() {
        metadata[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 30,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "main", "image": "example.org/none" }],
        },
    })
}

fn owned_by(kind: &str, name: &str) -> Value {
    json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "0-0-0", "controller": true }])
}

/// A disruption budget for pods with one label.
fn budget(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": app } } },
    })
}

/// What the controller of budgets writes: how many may go, are healthy, must be and should be.
fn counted(allowed: i32, healthy: i32, wanted: i32, expected: i32) -> Value {
    json!({
        "observedGeneration": 1, "disruptionsAllowed": allowed,
        "currentHealthy": healthy, "desiredHealthy": wanted, "expectedPods": expected,
    })
}

fn attachment(name: &str, volume: &str, finalizers: &[&str]) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": { "name": name, "finalizers": finalizers },
        "spec": { "attacher": "disk.example.org", "nodeName": NODE, "source": { "persistentVolumeName": volume } },
    })
}

/// What is left, by pod, in the words that a person reads.
fn words(state: &DrainState) -> BTreeMap<&str, String> {
    state.left.iter().map(|left| (left.pod.as_str(), left.why.to_string())).collect()
}

fn expect(state: &DrainState, expected: &[(&str, &str)]) -> Result<()> {
    let expected = expected.iter().map(|(pod, why)| (*pod, (*why).to_owned())).collect();
    ensure!(words(state) == expected, "left is {:#?}, expected {expected:#?}", words(state));
    Ok(())
}

#[test]
fn a_node_is_seen_as_it_is() -> Result<()> {
    let cluster = Cluster::start()?;
    let lease = |time: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": NODE, "namespace": "kube-node-lease" },
            "spec": { "holderIdentity": NODE, "renewTime": time },
        })
    };
    cluster.plane.make(&[node()])?;
    let [seen] = <[NodeSeen; 1]>::try_from(cluster.nodes()?).map_err(|nodes| anyhow::anyhow!("{nodes:?}"))?;
    ensure!((seen.ready, seen.lease, seen.boot) == (NodeReady::Unknown, None, None), "nothing was said yet");
    cluster.plane.make(&[lease("2026-01-02T03:04:05.000006Z")])?;
    let info = [
        "architecture",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "machineID",
        "operatingSystem",
        "osImage",
        "systemUUID",
    ];
    let mut info: Value =
        info.iter().map(|key| ((*key).to_owned(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    info["bootID"] = json!("boot-1");
    info["kubeletVersion"] = json!("v1.37.2");
    let ready = json!({ "type": "Ready", "status": "False", "reason": "No", "message": "no network plugin" });
    cluster.plane.set_status(&["node", NODE], &json!({ "conditions": [ready], "nodeInfo": info }))?;
    let seen = cluster.nodes()?.pop().context("no node")?;
    ensure!(seen.name == NODE && seen.ready == NodeReady::False, "{seen:?}");
    ensure!(seen.why.as_deref() == Some("no network plugin"), "{seen:?}");
    ensure!(seen.boot.as_deref() == Some("boot-1") && seen.kubelet.as_deref() == Some("v1.37.2"), "{seen:?}");
    ensure!(seen.cordon == Cordon::Open && seen.labels["of-a-user"] == "yes", "{seen:?}");
    ensure!(!seen.uid.is_empty() && !seen.created.is_empty() && !seen.is_out_of_service(), "{seen:?}");
    let before = seen.lease.context("the lease was not found")?;
    let renew = json!({ "spec": { "renewTime": "2026-01-02T03:04:05.000007Z" } }).to_string();
    cluster.plane.kubectl(&[
        "--namespace=kube-node-lease",
        "patch",
        "lease",
        NODE,
        "--type=merge",
        "--patch",
        &renew,
    ])?;
    let after = cluster.nodes()?.pop().and_then(|node| node.lease);
    ensure!(after.as_ref().is_some_and(|after| *after != before), "{before} and then {after:?}");
    let node = machine(NODE)?;
    for _ in 0..2 {
        let answer = cluster.perform(&KubeCall::DeleteNode { node: node.clone() })?;
        ensure!(answer == KubeAnswer::Done && cluster.nodes()?.is_empty(), "the node is still there");
    }
    let absent = KubeFailure::NoNode { node: node.clone() };
    for call in [
        KubeCall::SetNode { node: node.clone(), wish: NodeWish::cordon(Cordon::Cordoned) },
        KubeCall::Drain { node, force: DrainForce::Never },
    ] {
        let result = cluster.perform(&call);
        ensure!(result == Err(absent.clone()), "{result:?}");
    }
    Ok(())
}

#[test]
fn a_node_is_changed_only_where_it_is_asked_for() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.plane.make(&[node()])?;
    let taint =
        |key: &str| Taint { key: key.to_owned(), value: "x".to_owned(), effect: TaintEffect::NoSchedule };
    let before = cluster.nodes()?.pop().context("no node")?;
    ensure!(!before.taints.is_empty(), "an API server marks new nodes as not ready");
    let wish = NodeWish {
        cordon: Some(Cordon::Cordoned),
        labels: [("example.org/a".to_owned(), Some("1".to_owned())), ("absent".to_owned(), None)].into(),
        taints: vec![TaintWish::Present(taint("example.org/a"))],
    };
    cluster.set(wish.clone())?;
    let seen = cluster.nodes()?.pop().context("no node")?;
    ensure!(seen.cordon == Cordon::Cordoned && seen.labels["example.org/a"] == "1", "{seen:?}");
    ensure!(seen.labels["of-a-user"] == "yes", "{seen:?}");
    ensure!(before.taints.iter().all(|taint| seen.taints.contains(taint)), "{seen:?}");
    ensure!(seen.taints.contains(&taint("example.org/a")), "{seen:?}");
    let version = cluster.version_of_node()?;
    cluster.set(wish)?;
    ensure!(cluster.version_of_node()? == version, "what was so already was written again");
    // Everybody replaces the whole list of taints, at the same time.
    let calls: Vec<KubeCall> = (0..4)
        .map(|number| {
            let taints = vec![TaintWish::Present(taint(&format!("example.org/{number}")))];
            let wish = NodeWish { taints, ..NodeWish::default() };
            Ok(KubeCall::SetNode { node: machine(NODE)?, wish })
        })
        .collect::<Result<_>>()?;
    let (client, runtime) = (&cluster.client, &cluster.runtime);
    let changes = calls.iter().map(|call| client.perform(call, DEADLINE));
    runtime.block_on(futures::future::try_join_all(changes))?;
    let seen = cluster.nodes()?.pop().context("no node")?;
    for key in ["0", "1", "2", "3", "a"] {
        ensure!(seen.taints.contains(&taint(&format!("example.org/{key}"))), "{key} was lost: {seen:?}");
    }
    cluster.set(NodeWish {
        cordon: Some(Cordon::Open),
        labels: [("example.org/a".to_owned(), None)].into(),
        taints: (["0", "1", "2", "3", "a"].iter())
            .map(|key| TaintWish::Absent {
                key: format!("example.org/{key}"),
                effect: TaintEffect::NoSchedule,
            })
            .collect(),
    })?;
    let seen = cluster.nodes()?.pop().context("no node")?;
    ensure!(
        (seen.cordon, &seen.labels, &seen.taints) == (before.cordon, &before.labels, &before.taints),
        "{seen:?}"
    );
    Ok(())
}

/// Pods and budgets of every kind that a drain tells apart, all running.
fn make_what_drains_meet(cluster: &Cluster) -> Result<()> {
    let plane = &cluster.plane;
    let mut log = pod("log", json!({ "ownerReferences": owned_by("DaemonSet", "log") }));
    log["spec"]["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "log" } }]);
    let free = json!({
        "ownerReferences": owned_by("ReplicaSet", "web-1a"),
        "labels": { "app": "free", "pod-template-hash": "1a" },
    });
    let stateful = |name: &str| pod(name, json!({ "ownerReferences": owned_by("StatefulSet", name) }));
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "log", "namespace": "default" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeName": "volume-of-log",
            "resources": { "requests": { "storage": "1Mi" } },
        },
    });
    plane.make(&[
        node(),
        log,
        pod("picture", json!({ "annotations": { "kubernetes.io/config.mirror": "x" } })),
        pod("alone", json!({})),
        pod("done", json!({})),
        pod("free", free),
        stateful("full"),
        stateful("tight"),
        stateful("twice"),
        claim,
        attachment("stays", "volume-of-log", &[]),
        attachment("goes", "volume-of-full", &[]),
        budget("free", "free"),
        budget("full", "full"),
        budget("tight", "tight"),
        budget("first", "twice"),
        budget("second", "twice"),
    ])?;
    for name in ["log", "picture", "alone", "free", "full", "tight", "twice"] {
        cluster.run_pod(name)?;
    }
    plane.set_status(&["pod", "done"], &json!({ "phase": "Succeeded" }))?;
    for (name, status) in [
        ("free", counted(1, 2, 1, 2)),
        ("full", counted(0, 1, 1, 2)),
        ("tight", counted(0, 1, 1, 1)),
        ("first", counted(1, 2, 1, 2)),
        ("second", counted(1, 2, 1, 2)),
    ] {
        plane.set_status(&["poddisruptionbudget", name], &status)?;
    }
    Ok(())
}

const FULL: &str = "may not be evicted: disruption budget full wants 1 of 2 pods healthy, 1 are";
const TIGHT: &str = "may not be evicted: disruption budget tight wants 1 of 1 pods healthy, 1 are, so it never allows one to go";
const TWICE: &str = "can never be evicted: disruption budgets first and second all select it";
const BLOCKED: [(&str, &str); 3] = [("full", FULL), ("tight", TIGHT), ("twice", TWICE)];

#[test]
fn a_drain_evicts_what_may_go_and_says_what_blocks_the_others() -> Result<()> {
    let cluster = Cluster::start()?;
    make_what_drains_meet(&cluster)?;
    let ending = [("alone", "is ending"), ("done", "is ending"), ("free", "is ending")];
    let state = cluster.drain(DrainForce::Never)?;
    expect(&state, &[&BLOCKED[..], &ending[..]].concat())?;
    ensure!(state.volumes_attached == 1 && state.more == 0, "{state:?}");
    let find = |name: &str| state.left.iter().find(|left| left.pod == name).context("it is not left");
    ensure!(find("alone")?.owner.is_none(), "nobody makes it again");
    let owner = find("free")?.owner.as_ref().map(ToString::to_string);
    ensure!(owner.as_deref() == Some("Deployment web"), "{owner:?}");
    let PodWait::Budget(seen) = &find("tight")?.why else { bail!("{state:?}") };
    ensure!((seen.allowed, seen.healthy, seen.wanted, seen.expected) == (0, 1, 1, 1), "{seen:?}");
    ensure!(seen.message.contains("needs 1 healthy pods and has 1 currently"), "{seen:?}");
    let order: Vec<&str> = state.left.iter().take(3).map(|left| left.pod.as_str()).collect();
    ensure!(order == ["tight", "twice", "full"], "what needs a person comes first: {order:?}");
    ensure!(cluster.nodes()?.iter().all(|node| node.cordon == Cordon::Cordoned), "it is not cordoned");
    // Those that are told to end are not evicted a second time, which the budget would refuse. The API server has
    // removed the finished one itself.
    expect(&cluster.drain(DrainForce::Never)?, &[&BLOCKED[..], &ending[..1], &ending[2..]].concat())?;
    cluster.end_pods(&["alone", "free"])?;
    expect(&cluster.drain(DrainForce::Never)?, &BLOCKED)?;
    // A pod of the budget became healthy elsewhere.
    cluster.plane.set_status(&["poddisruptionbudget", "full"], &counted(1, 2, 1, 2))?;
    expect(&cluster.drain(DrainForce::Never)?, &[("full", "is ending"), BLOCKED[1], BLOCKED[2]])
}

#[test]
fn a_forced_drain_deletes_what_is_refused_and_ends_when_volumes_are_detached() -> Result<()> {
    let cluster = Cluster::start()?;
    make_what_drains_meet(&cluster)?;
    let state = cluster.drain(DrainForce::AfterRefusal)?;
    let forced =
        BLOCKED.map(|(pod, why)| (pod, format!("was deleted although it was not to be evicted: {why}")));
    for (pod, why) in &forced {
        ensure!(words(&state).get(pod) == Some(why), "{:#?}", words(&state));
    }
    let grace = cluster.plane.get(&["pod", "tight"])?["metadata"]["deletionGracePeriodSeconds"].clone();
    ensure!(grace == 30, "it has {grace} s to end");
    cluster.end_pods(&["alone", "free", "full", "tight", "twice"])?;
    let state = cluster.drain(DrainForce::Never)?;
    ensure!(state.left.is_empty() && state.volumes_attached == 1 && !state.is_drained(), "{state:?}");
    cluster.plane.kubectl(&["delete", "volumeattachment", "goes"])?;
    let state = cluster.drain(DrainForce::Never)?;
    ensure!(state.is_drained(), "{state:?}");
    let stays = cluster.plane.kubectl(&["get", "pods", "--output", "name"])?;
    ensure!(stays == "pod/log\npod/picture\n", "{stays}");
    Ok(())
}

#[test]
fn an_evacuation_waits_for_nobody() -> Result<()> {
    let cluster = Cluster::start()?;
    let plane = &cluster.plane;
    plane.make(&[
        node(),
        pod("log", json!({ "ownerReferences": owned_by("DaemonSet", "log") })),
        pod("db-0", json!({ "ownerReferences": owned_by("StatefulSet", "db") })),
        pod("ending", json!({})),
        pod("kept", json!({ "finalizers": ["example.org/kept"] })),
        budget("db", "db-0"),
        attachment("free", "one", &[]),
        attachment("kept", "two", &["example.org/kept"]),
    ])?;
    for name in ["log", "db-0", "ending", "kept"] {
        cluster.run_pod(name)?;
    }
    plane.kubectl(&["delete", "pod", "ending", "--wait=false"])?;
    // The second time finds it done.
    for _ in 0..2 {
        let state = cluster.evacuate()?;
        expect(&state, &[("kept", "is ending, kept by example.org/kept")])?;
        ensure!(state.volumes_attached == 1, "{state:?}");
        let left = plane.kubectl(&["get", "pods", "--output", "name"])?;
        ensure!(left == "pod/kept\npod/log\n", "{left}");
        ensure!(cluster.nodes()?.iter().all(NodeSeen::is_out_of_service), "it is not marked");
    }
    cluster.set(NodeWish::in_service())?;
    ensure!(!cluster.nodes()?.iter().any(NodeSeen::is_out_of_service), "it is still marked");
    // A node that is gone has left things behind.
    cluster.perform(&KubeCall::DeleteNode { node: machine(NODE)? })?;
    for object in ["pod/kept", "volumeattachment/kept"] {
        plane.kubectl(&[
            "patch",
            object,
            "--type=merge",
            "--patch",
            r#"{"metadata":{"finalizers":null}}"#,
        ])?;
    }
    plane.make(&[pod("late", json!({}))])?;
    let state = cluster.evacuate()?;
    ensure!(state.is_drained() && cluster.nodes()?.is_empty(), "{state:?}");
    Ok(())
}

/// Something that admission asks about a pod, and that never answers.
fn hung_webhook(of: &str, address: SocketAddr) -> Value {
    let rule = |operation: &str, resource: &str| {
        json!({
            "apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": [resource],
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "hung" },
        "webhooks": [{
            "name": "hung.example.org",
            "clientConfig": { "url": format!("https://{address}/") },
            "rules": [rule("CREATE", "pods/eviction"), rule("DELETE", "pods")],
            "matchConditions": [{ "name": "one", "expression": format!("request.name == '{of}'") }],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 30,
            "admissionReviewVersions": ["v1"],
        }],
    })
}

/// What is known of the others is told, and drained, although nothing is ever heard of one.
#[test]
fn a_pod_whose_webhook_hangs_hides_no_other() -> Result<()> {
    let cluster = Cluster::start()?;
    make_what_drains_meet(&cluster)?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    cluster.plane.make(&[pod("hung", json!({})), hung_webhook("hung", silent.local_addr()?)])?;
    cluster.run_pod("hung")?;
    // The API server needs a moment to hear of the webhook: nothing is asked of it until it has kept a pod from going.
    let keeps = ["delete", "pod", "hung", "--dry-run=server", "--request-timeout=2s"];
    while cluster.plane.kubectl(&keeps).is_ok() {}
    let hung = ("hung", "will be asked to go again: the API server did not answer within 3000 ms");
    let ending = [("alone", "is ending"), ("done", "is ending"), ("free", "is ending"), hung];
    expect(&cluster.drain(DrainForce::Never)?, &[&BLOCKED[..], &ending[..]].concat())?;
    cluster.end_pods(&["alone", "free", "done"])?;
    let hung = ("hung", "will be asked to go again: the API server did not answer within 1500 ms");
    expect(&cluster.evacuate()?, &[hung])
}

#[test]
fn a_cluster_that_does_not_want_to_or_cannot_is_told_apart() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.plane.make(&[node()])?;
    let perform = |cluster: &Cluster, access: &Access, call: &KubeCall| {
        cluster.runtime.block_on(async { anyhow::Ok(KubeClient::new(access)?.perform(call, DEADLINE).await) })
    };
    let good = cluster.plane.access().clone();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let foreign = keelson_pki::new_cluster_material(&ClusterName::new("foreign")?, WallTime(now))?;
    let life = Duration::from_secs(60);
    let (certificate, key) =
        keelson_pki::admin_certificate(&foreign, "x", "system:masters", WallTime(now), life)?;
    let stranger = Access { certificate, key, ..good.clone() };
    let result = perform(&cluster, &stranger, &KubeCall::Nodes)?;
    ensure!(
        matches!(&result, Err(failure @ KubeFailure::Denied { .. }) if failure.needs_person()),
        "{result:?}"
    );
    let authority = foreign.authorities.values().next().context("no authority")?.certificate.clone();
    let mistrusting = Access { authority, ..good };
    let result = perform(&cluster, &mistrusting, &KubeCall::Nodes)?;
    ensure!(
        matches!(&result, Err(KubeFailure::Unreachable { why }) if why.contains("certificate")),
        "{result:?}"
    );
    let wish =
        NodeWish { labels: [("no key!".to_owned(), Some(String::new()))].into(), ..NodeWish::default() };
    let result = cluster.perform(&KubeCall::SetNode { node: machine(NODE)?, wish });
    ensure!(matches!(&result, Err(KubeFailure::Refused { why }) if why.contains("no key!")), "{result:?}");
    cluster.plane.kill_api_server();
    let began = Instant::now();
    let result = cluster.perform(&KubeCall::Nodes);
    ensure!(matches!(&result, Err(KubeFailure::Unreachable { .. })), "{result:?}");
    ensure!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    Ok(())
}
