//! Nodes: looking at them, marking them, removing them.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use keelson_model::kubernetes::short_why;
use keelson_model::kubernetes::{Cordon, KubeFailure, NodeReady, NodeSeen, NodeWish, TaintWish};
use keelson_model::{Taint as NodeTaint, TaintEffect};
use keelson_protocol::MachineId;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

use crate::{FIELD_MANAGER, failure, list};

/// Where kubelets keep their leases.
const LEASES: &str = "kube-node-lease";
/// How often a change of taints is tried when somebody else changes the same node: Kubernetes' own controllers do so
/// a few times when a node comes or goes.
const SET_TRIES_MAX: usize = 5;

/// All nodes, by name.
pub(crate) async fn all(client: &Client) -> Result<Vec<NodeSeen>, KubeFailure> {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let (nodes, leases) = futures::try_join!(
        list::all(&nodes, ListParams::default()),
        list::all(&leases, ListParams::default())
    )?;
    let renewed: BTreeMap<String, String> = leases.into_iter().filter_map(renewed).collect();
    let mut seen: Vec<NodeSeen> = nodes.into_iter().map(|node| see(node, &renewed)).collect();
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// Brings a node to what is wanted. Writes nothing when it is so already.
pub(crate) async fn set(client: &Client, node: &MachineId, wish: &NodeWish) -> Result<(), KubeFailure> {
    let nodes: Api<Node> = Api::all(client.clone());
    let no_node = || KubeFailure::NoNode { node: node.clone() };
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let mut conflict = None;
    for _ in 0..SET_TRIES_MAX {
        let found = nodes.get_opt(node.as_str()).await.map_err(|error| failure::of(&error))?;
        let Some(patch) = patch(&found.ok_or_else(no_node)?, wish) else { return Ok(()) };
        match nodes.patch(node.as_str(), &params, &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Err(no_node()),
            Err(kube::Error::Api(status)) if status.is_conflict() => conflict = Some(failure::said(&status)),
            Err(error) => return Err(failure::of(&error)),
        }
    }
    Err(KubeFailure::Busy { why: conflict.unwrap_or_default() })
}

/// Removes a node. Its lease and its pods are then removed by Kubernetes' own collectors.
pub(crate) async fn delete(client: &Client, node: &MachineId) -> Result<(), KubeFailure> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.delete(node.as_str(), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(failure::of(&error)),
    }
}

/// Name of a lease's node, and when the lease was renewed.
fn renewed(lease: Lease) -> Option<(String, String)> {
    Some((lease.metadata.name?, lease.spec?.renew_time?.0.to_string()))
}

fn see(node: Node, renewed: &BTreeMap<String, String>) -> NodeSeen {
    let name = node.metadata.name.unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let status = node.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = conditions.iter().find(|condition| condition.type_ == "Ready");
    let ready = ready(condition);
    let why = condition.and_then(|condition| condition.message.as_deref());
    let info = status.node_info.unwrap_or_default();
    NodeSeen {
        lease: renewed.get(&name).cloned(),
        uid: node.metadata.uid.unwrap_or_default(),
        ready,
        why: why.filter(|_| ready != NodeReady::True).map(short_why),
        cordon: if spec.unschedulable == Some(true) { Cordon::Cordoned } else { Cordon::Open },
        labels: node.metadata.labels.unwrap_or_default(),
        taints: spec.taints.unwrap_or_default().iter().filter_map(see_taint).collect(),
        boot: Some(info.boot_id).filter(|text| !text.is_empty()),
        kubelet: Some(info.kubelet_version).filter(|text| !text.is_empty()),
        created: node.metadata.creation_timestamp.map(|time| time.0.to_string()).unwrap_or_default(),
        name,
    }
}

fn ready(condition: Option<&NodeCondition>) -> NodeReady {
    match condition.map(|condition| condition.status.as_str()) {
        Some("True") => NodeReady::True,
        Some("False") => NodeReady::False,
        Some(_) | None => NodeReady::Unknown,
    }
}

fn see_taint(taint: &Taint) -> Option<NodeTaint> {
    let effects = [TaintEffect::PreferNoSchedule, TaintEffect::NoSchedule, TaintEffect::NoExecute];
    let effect = effects.into_iter().find(|effect| effect.as_str() == taint.effect)?;
    Some(NodeTaint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
}

/// The merge patch (RFC 7396) that brings `node` to `wish`; `None` when it is there already.
fn patch(node: &Node, wish: &NodeWish) -> Option<Value> {
    let (mut metadata, mut spec) = (Map::new(), Map::new());
    let has = node.metadata.labels.as_ref();
    let labels: Map<String, Value> = wish
        .labels
        .iter()
        .filter(|(key, value)| has.and_then(|labels| labels.get(*key)) != value.as_ref())
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), Value::Object(labels));
    }
    let is_cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    match (wish.cordon, is_cordoned) {
        (Some(Cordon::Cordoned), false) => drop(spec.insert("unschedulable".to_owned(), json!(true))),
        (Some(Cordon::Open), true) => drop(spec.insert("unschedulable".to_owned(), Value::Null)),
        (Some(Cordon::Cordoned), true) | (Some(Cordon::Open), false) | (None, _) => {}
    }
    let old = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let new = taints(old, &wish.taints);
    if new != old {
        // The list is replaced as a whole: only with the version that was read is nobody else's taint lost.
        metadata.insert("resourceVersion".to_owned(), json!(node.metadata.resource_version));
        spec.insert("taints".to_owned(), json!(new));
    }
    let parts = [("metadata", metadata), ("spec", spec)].into_iter().filter(|(_, part)| !part.is_empty());
    let patch: Map<String, Value> =
        parts.map(|(name, part)| (name.to_owned(), Value::Object(part))).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn taints(old: &[Taint], wishes: &[TaintWish]) -> Vec<Taint> {
    let mut taints = old.to_vec();
    for wish in wishes {
        match wish {
            TaintWish::Absent { key, effect } => {
                taints.retain(|taint| taint.key != *key || taint.effect != effect.as_str());
            }
            TaintWish::Present(wanted) => {
                let same =
                    |taint: &&mut Taint| taint.key == wanted.key && taint.effect == wanted.effect.as_str();
                let value = Some(wanted.value.clone()).filter(|value| !value.is_empty());
                match taints.iter_mut().find(same) {
                    Some(taint) => taint.value = value,
                    None => taints.push(Taint {
                        key: wanted.key.clone(),
                        value,
                        effect: wanted.effect.as_str().to_owned(),
                        time_added: None,
                    }),
                }
            }
        }
    }
    taints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(spec: Value, labels: Value) -> Node {
        let metadata = json!({ "name": "one", "resourceVersion": "7", "labels": labels });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn present(key: &str, value: &str) -> TaintWish {
        let effect = TaintEffect::NoExecute;
        TaintWish::Present(NodeTaint { key: key.to_owned(), value: value.to_owned(), effect })
    }

    fn absent(key: &str, effect: TaintEffect) -> TaintWish {
        TaintWish::Absent { key: key.to_owned(), effect }
    }

    fn labels(pairs: &[(&str, Option<&str>)]) -> NodeWish {
        let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        NodeWish { labels: labels.collect(), ..NodeWish::default() }
    }

    #[test]
    fn a_patch_touches_only_what_is_named_and_differs() {
        let check = |spec: Value, wish: NodeWish, expected: Option<Value>| {
            let node = node(spec, json!({ "a": "1", "b": "2" }));
            assert_eq!(patch(&node, &wish), expected, "{wish:?}");
        };
        let taints = |taints: Vec<TaintWish>| NodeWish { taints, ..NodeWish::default() };
        let cordoned = || json!({ "unschedulable": true });
        check(json!({}), NodeWish::default(), None);
        check(
            json!({}),
            NodeWish::cordon(Cordon::Cordoned),
            Some(json!({ "spec": { "unschedulable": true } })),
        );
        check(cordoned(), NodeWish::cordon(Cordon::Cordoned), None);
        check(cordoned(), NodeWish::cordon(Cordon::Open), Some(json!({ "spec": { "unschedulable": null } })));
        check(json!({}), NodeWish::cordon(Cordon::Open), None);
        check(json!({}), labels(&[("a", Some("1")), ("c", None)]), None);
        check(
            json!({}),
            labels(&[("a", Some("3")), ("b", None)]),
            Some(json!({ "metadata": { "labels": { "a": "3", "b": null } } })),
        );
        let other = json!({ "key": "x", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z" });
        let mine = json!({ "key": "x", "effect": "NoExecute", "value": "1" });
        check(json!({ "taints": [other, mine] }), taints(vec![present("x", "1")]), None);
        check(
            json!({ "taints": [other] }),
            taints(vec![present("x", "1")]),
            Some(json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": [other, mine] } })),
        );
        check(
            json!({ "taints": [other, mine] }),
            taints(vec![absent("x", TaintEffect::NoExecute), absent("y", TaintEffect::NoExecute)]),
            Some(json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": [other] } })),
        );
        check(json!({ "taints": [other] }), NodeWish::in_service(), None);
    }

    #[test]
    fn a_node_that_said_nothing_is_unknown() {
        let check = |conditions: Value, expected| {
            let status = json!({ "conditions": conditions });
            let node =
                serde_json::from_value(json!({ "metadata": { "name": "one" }, "status": status })).unwrap();
            let seen = see(node, &BTreeMap::new());
            assert_eq!((seen.ready, seen.why.as_deref()), expected);
            assert_eq!((seen.lease, seen.boot), (None, None));
        };
        let ready = |status: &str| json!([{ "type": "Ready", "status": status, "message": "as it is" }]);
        check(json!([]), (NodeReady::Unknown, None));
        check(ready("True"), (NodeReady::True, None));
        check(ready("False"), (NodeReady::False, Some("as it is")));
        check(ready("Unknown"), (NodeReady::Unknown, Some("as it is")));
    }
}
