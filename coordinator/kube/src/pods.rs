//! Which pods must go, and what a refused eviction means. Pure.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_model::kubernetes::{BudgetSeen, PodLeft, PodOwner, PodWait};
use kube::core::{Selector, SelectorExt, Status};

use crate::failure;

/// The annotation of pods that a kubelet runs from a file: their objects are only a picture.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The label with which a Deployment tells its ReplicaSets apart; their names end in its value.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// The cause by which an answer tells that a disruption budget refused an eviction (policy/v1).
const BUDGET_CAUSE: &str = "DisruptionBudget";
/// The cause by which an answer tells that the namespace is being removed: its pods go by themselves in a moment.
const NAMESPACE_CAUSE: &str = "NamespaceTerminating";

/// What a drain does with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It belongs to the node and stays on it.
    Stays,
    /// It was told to end already.
    Ending,
    /// It must go.
    Goes,
}

/// What a drain does with a pod: as `kubectl drain --force --ignore-daemonsets --delete-emptydir-data`, which also
/// removes finished pods, so that nobody looks for the logs of a pod on a node that is gone.
pub(crate) fn fate(pod: &Pod) -> Fate {
    let is_mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let is_daemon =
        controller(pod).is_some_and(|owner| owner.kind == "DaemonSet" && owner.api_version == "apps/v1");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_finished = matches!(phase, Some("Succeeded" | "Failed"));
    if is_mirror || (is_daemon && !is_finished) {
        Fate::Stays
    } else if pod.metadata.deletion_timestamp.is_some() {
        Fate::Ending
    } else {
        Fate::Goes
    }
}

/// A pod that is left, for the answer.
pub(crate) fn left(pod: &Pod, why: PodWait) -> PodLeft {
    PodLeft {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        owner: owner(pod),
        why,
    }
}

/// The wait for a pod that was told to end.
pub(crate) fn ending(pod: &Pod) -> PodWait {
    PodWait::Ending { finalizers: pod.metadata.finalizers.clone().unwrap_or_default() }
}

fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

/// The controller as its user knows it. A ReplicaSet of a Deployment is recognised by the name that its controller
/// gives it, which costs no request.
fn owner(pod: &Pod) -> Option<PodOwner> {
    let owner = controller(pod)?;
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-')));
    Some(match deployment {
        Some(name) => PodOwner { kind: "Deployment".to_owned(), name: name.to_owned() },
        None => PodOwner { kind: owner.kind.clone(), name: owner.name.clone() },
    })
}

/// What the API server answered to an eviction or a removal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The pod ends.
    Accepted,
    /// The pod is not there any more, or another one has its name.
    Gone,
    /// It stays.
    Refused(Refusal),
}

/// A refusal, as far as it can be told from the answer alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    kind: RefusalKind,
    message: String,
}

impl Refusal {
    /// Of a pod that nobody has said anything about yet.
    pub(crate) fn for_now(message: String) -> Self {
        Self { kind: RefusalKind::ForNow, message }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum RefusalKind {
    /// By a disruption budget.
    Budget,
    /// The API server failed; that is also how it answers when several budgets select a pod.
    Failed,
    /// Only for now: it asks to slow down, or the pod's namespace is being removed.
    ForNow,
    /// By anything else: rights, a webhook.
    Other,
}

/// What an answer of the API server means for the pod that it is about.
pub(crate) fn verdict(status: &Status) -> Verdict {
    let has_cause = |reason: &str| {
        status
            .details
            .as_ref()
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
    };
    let kind = match status.code {
        // 409: the pod that was seen is not there, one of the same name is. Perhaps it is on another node.
        404 | 409 => return Verdict::Gone,
        403 | 429 if has_cause(BUDGET_CAUSE) => RefusalKind::Budget,
        403 if has_cause(NAMESPACE_CAUSE) => RefusalKind::ForNow,
        429 => RefusalKind::ForNow,
        500.. => RefusalKind::Failed,
        _ if status.is_success() => return Verdict::Accepted,
        _ => RefusalKind::Other,
    };
    Verdict::Refused(Refusal { kind, message: failure::said(status) })
}

/// Why a pod waits whose eviction was refused. `budgets` are those of its namespace.
pub(crate) fn wait(pod: &Pod, refusal: Refusal, budgets: &[PodDisruptionBudget]) -> PodWait {
    let Refusal { kind, message } = refusal;
    let selecting: Vec<&PodDisruptionBudget> = budgets.iter().filter(|budget| selects(budget, pod)).collect();
    match (kind, selecting.as_slice()) {
        (RefusalKind::Budget | RefusalKind::Failed, [_, _, ..]) => {
            PodWait::Budgets { names: selecting.iter().map(|budget| name(budget)).collect() }
        }
        (RefusalKind::Budget, [budget]) => PodWait::Budget(see(budget, message)),
        // The budget was removed meanwhile.
        (RefusalKind::Budget, []) | (RefusalKind::Failed | RefusalKind::ForNow, _) => {
            PodWait::Postponed { why: message }
        }
        (RefusalKind::Other, _) => PodWait::Refused { why: message },
    }
}

fn name(budget: &PodDisruptionBudget) -> String {
    budget.metadata.name.clone().unwrap_or_default()
}

fn see(budget: &PodDisruptionBudget, message: String) -> BudgetSeen {
    let status = budget.status.clone().unwrap_or_default();
    BudgetSeen {
        name: name(budget),
        allowed: status.disruptions_allowed.unwrap_or(0),
        healthy: status.current_healthy.unwrap_or(0),
        wanted: status.desired_healthy.unwrap_or(0),
        expected: status.expected_pods.unwrap_or(0),
        message,
    }
}

/// Whether a budget counts a pod: an empty selector selects all pods of the namespace, an absent one none.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    // Kubernetes passes over budgets whose selector it does not understand.
    let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    selector.is_some_and(|selector| selector.matches(&labels))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(metadata: Value, phase: &str) -> Pod {
        let mut whole = json!({ "name": "web-1", "namespace": "shop", "labels": { "app": "web" } });
        for (key, value) in metadata.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({ "metadata": whole, "status": { "phase": phase } })).unwrap()
    }

    fn owned(api_version: &str, kind: &str, name: &str) -> Value {
        let owner =
            json!({ "apiVersion": api_version, "kind": kind, "name": name, "uid": "u", "controller": true });
        json!([owner])
    }

    #[test]
    fn pods_of_the_node_stay_and_all_others_go() {
        let check = |metadata: Value, phase: &str, expected| {
            assert_eq!(fate(&pod(metadata.clone(), phase)), expected, "{metadata} {phase}");
        };
        let daemon = || json!({ "ownerReferences": owned("apps/v1", "DaemonSet", "log") });
        let deleted = json!("2026-01-01T00:00:00Z");
        check(json!({}), "Running", Fate::Goes);
        check(json!({}), "Pending", Fate::Goes);
        check(json!({}), "Succeeded", Fate::Goes);
        check(json!({ "ownerReferences": owned("apps/v1", "ReplicaSet", "web") }), "Running", Fate::Goes);
        check(json!({ "deletionTimestamp": deleted }), "Running", Fate::Ending);
        check(daemon(), "Running", Fate::Stays);
        check(daemon(), "Pending", Fate::Stays);
        check(daemon(), "Failed", Fate::Goes);
        check(
            json!({ "ownerReferences": owned("example.org/v1", "DaemonSet", "log") }),
            "Running",
            Fate::Goes,
        );
        check(json!({ "annotations": { MIRROR: "hash" } }), "Running", Fate::Stays);
        check(
            json!({ "annotations": { MIRROR: "hash" }, "deletionTimestamp": deleted }),
            "Running",
            Fate::Stays,
        );
    }

    #[test]
    fn owners_are_told_as_their_users_know_them() {
        let check = |metadata: Value, expected: Option<&str>| {
            let left = left(&pod(metadata.clone(), "Running"), PodWait::Ending { finalizers: Vec::new() });
            assert_eq!(left.owner.map(|owner| owner.to_string()).as_deref(), expected, "{metadata}");
        };
        let replicas = |name: &str| owned("apps/v1", "ReplicaSet", name);
        check(json!({}), None);
        check(
            json!({ "ownerReferences": replicas("web-7d9"), "labels": { TEMPLATE_HASH: "7d9" } }),
            Some("Deployment web"),
        );
        check(
            json!({ "ownerReferences": replicas("web"), "labels": { TEMPLATE_HASH: "7d9" } }),
            Some("ReplicaSet web"),
        );
        check(json!({ "ownerReferences": replicas("web-7d9") }), Some("ReplicaSet web-7d9"));
        check(json!({ "ownerReferences": owned("apps/v1", "StatefulSet", "db") }), Some("StatefulSet db"));
    }

    fn budget(name: &str, selector: Value) -> PodDisruptionBudget {
        let status =
            json!({ "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0, "expectedPods": 2 });
        serde_json::from_value(
            json!({ "metadata": { "name": name }, "spec": { "selector": selector }, "status": status }),
        )
        .unwrap()
    }

    /// What the API server answers, with a cause.
    fn status(code: u16, cause: &str) -> Status {
        let result = if code < 400 { "Success" } else { "Failure" };
        let causes = json!([{ "reason": cause, "message": "because" }]);
        serde_json::from_value(
            json!({ "status": result, "code": code, "message": "no", "details": { "causes": causes } }),
        )
        .unwrap()
    }

    #[test]
    fn answers_tell_pods_that_go_from_pods_that_stay() {
        assert_eq!(verdict(&status(201, "")), Verdict::Accepted);
        assert_eq!(verdict(&Status::success()), Verdict::Accepted);
        assert_eq!(verdict(&status(404, "")), Verdict::Gone);
        assert_eq!(verdict(&status(409, "")), Verdict::Gone);
        assert!(matches!(verdict(&Status::failure("no", "")), Verdict::Refused(_)));
    }

    #[test]
    fn a_refusal_is_told_with_what_ends_it() {
        let app = || json!({ "matchLabels": { "app": "web" } });
        let (one, all) = (budget("web", app()), budget("all", json!({})));
        let other = budget("other", json!({ "matchLabels": { "app": "db" } }));
        let expression = json!({ "key": "app", "operator": "In", "values": ["web", "x"] });
        let listed = budget("listed", json!({ "matchExpressions": [expression] }));
        let none = budget("none", Value::Null);
        let check = |code, cause, budgets: &[&PodDisruptionBudget], expected: &str, needs_person| {
            let Verdict::Refused(refusal) = verdict(&status(code, cause)) else {
                panic!("{code} is no refusal")
            };
            let budgets: Vec<_> = budgets.iter().map(|budget| (*budget).clone()).collect();
            let wait = wait(&pod(json!({}), "Running"), refusal, &budgets);
            assert_eq!(
                (wait.to_string().as_str(), wait.needs_person()),
                (expected, needs_person),
                "{code} {cause}"
            );
        };
        let tight = "may not be evicted: disruption budget web wants 2 of 2 pods healthy, 2 are, so it never allows \
                     one to go";
        let both = "can never be evicted: disruption budgets web and all all select it";
        let later = "will be asked to go again: no because";
        check(429, BUDGET_CAUSE, &[&one, &other, &none], tight, true);
        check(403, BUDGET_CAUSE, &[&one], tight, true);
        check(429, BUDGET_CAUSE, &[&listed], &tight.replace("web", "listed"), true);
        check(429, BUDGET_CAUSE, &[&other], later, false);
        check(500, "", &[&one, &all], both, true);
        check(500, "", &[&one], later, false);
        check(503, "", &[], later, false);
        check(429, "", &[&one, &all], later, false);
        check(403, NAMESPACE_CAUSE, &[&one], later, false);
        check(403, "", &[&one], "may not be evicted: no because", true);
    }
}
