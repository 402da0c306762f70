//! Emptying nodes: politely while they run, by force when they have no power.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use keelson_model::kubernetes::{
    Cordon, DrainForce, DrainState, KubeFailure, NodeWish, PodWait, TaintWish, out_of_service,
};
use keelson_protocol::MachineId;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::Status;
use kube::{Api, Client};

use crate::pods::{self, Fate, Refusal, Verdict};
use crate::{failure, list, nodes, volumes};

/// Pods that are asked to go at a time: a node has a hundred, and the API server has others to serve.
const SIDE_BY_SIDE: usize = 8;

/// The time that a pass has for its pods. One whose answer does not come, as when a webhook hangs, must not cost what was learned
/// of all the others: the whole call would be given up, and its clock would never begin.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// Nobody is asked about a further pod from then on.
    until: tokio::time::Instant,
    /// Longest wait for the answer about one.
    each: Duration,
}

impl Pass {
    /// Within the twenty seconds of a drain.
    fn of_drain() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_secs(3))
    }

    /// Within the five of an evacuation.
    fn of_evacuation() -> Self {
        Self::new(Duration::from_millis(2_500), Duration::from_millis(1_500))
    }

    fn new(all: Duration, each: Duration) -> Self {
        Self { until: tokio::time::Instant::now() + all, each }
    }

    /// What comes of asking about a pod in that time.
    async fn ask(
        self,
        act: impl Future<Output = Result<Status, kube::Error>> + Send,
    ) -> Result<Verdict, KubeFailure> {
        if tokio::time::Instant::now() >= self.until {
            return Ok(Verdict::Refused(Refusal::for_now(
                "others took all the time of this pass".to_owned(),
            )));
        }
        match tokio::time::timeout(self.each, act).await {
            Ok(answer) => judge(answer),
            Err(_) => {
                let why = format!("the API server did not answer within {} ms", self.each.as_millis());
                Ok(Verdict::Refused(Refusal::for_now(why)))
            }
        }
    }
}

/// How long a pod gets to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grace {
    /// As long as it asks for.
    ItsOwn,
    /// Nobody is asked: nothing of it runs any more.
    None,
}

/// One pass of a drain.
pub(crate) async fn drain(
    client: &Client,
    node: &MachineId,
    force: DrainForce,
) -> Result<DrainState, KubeFailure> {
    nodes::set(client, node, &NodeWish::cordon(Cordon::Cordoned)).await?;
    let OnNode { stay, ending, go } = on_node(client, node).await?;
    let pass = Pass::of_drain();
    let mut left: Vec<_> = ending.iter().map(|pod| pods::left(pod, pods::ending(pod))).collect();
    let mut refused = Vec::new();
    let acts = go.iter().map(|pod| evict(client, pod, pass).map_ok(move |verdict| (pod, verdict)).boxed());
    for (pod, verdict) in side_by_side(acts).await? {
        match verdict {
            Verdict::Accepted => left.push(pods::left(pod, pods::ending(pod))),
            Verdict::Gone => {}
            Verdict::Refused(refusal) => refused.push((pod, refusal)),
        }
    }
    let waits = explain(client, refused).await?;
    match force {
        DrainForce::Never => left.extend(waits.into_iter().map(|(pod, wait)| pods::left(pod, wait))),
        DrainForce::AfterRefusal => {
            let forced =
                waits.into_iter().map(|(pod, wait)| override_refusal(client, pod, wait, pass).boxed());
            left.extend(side_by_side(forced).await?.into_iter().flatten());
        }
    }
    let attached = volumes::attachments(client, node.as_str(), &stay).await?;
    Ok(DrainState::new(left, attached.len()))
}

/// Gives up everything that ran on a node without power. What is left afterwards is told, not waited for.
pub(crate) async fn evacuate(client: &Client, node: &MachineId) -> Result<DrainState, KubeFailure> {
    let taint = TaintWish::Present(out_of_service());
    let wish = NodeWish { taints: vec![taint], ..NodeWish::default() };
    match nodes::set(client, node, &wish).await {
        // A node that was removed already has left pods and attachments behind all the same.
        Ok(()) | Err(KubeFailure::NoNode { .. }) => {}
        Err(failure) => return Err(failure),
    }
    let OnNode { stay, ending, go } = on_node(client, node).await?;
    let all: Vec<Pod> = ending.into_iter().chain(go).collect();
    let pass = Pass::of_evacuation();
    let mut refused = Vec::new();
    let acts = all
        .iter()
        .map(|pod| remove(client, pod, Grace::None, pass).map_ok(move |verdict| (pod, verdict)).boxed());
    for (pod, verdict) in side_by_side(acts).await? {
        if let Verdict::Refused(refusal) = verdict {
            refused.push((pod, refusal));
        }
    }
    let attached = volumes::attachments(client, node.as_str(), &stay).await?;
    side_by_side(attached.iter().map(|name| volumes::detach(client, name).boxed())).await?;
    let mut waits: BTreeMap<Option<String>, PodWait> = explain(client, refused)
        .await?
        .into_iter()
        .map(|(pod, wait)| (pod.metadata.uid.clone(), wait))
        .collect();
    let OnNode { stay, ending, go } = on_node(client, node).await?;
    let why = "it was placed on the node while that was evacuated";
    let left = ending
        .iter()
        .map(|pod| (pod, pods::ending(pod)))
        .chain(go.iter().map(|pod| (pod, PodWait::Postponed { why: why.to_owned() })))
        .map(|(pod, wait)| pods::left(pod, waits.remove(&pod.metadata.uid).unwrap_or(wait)))
        .collect();
    let attached = volumes::attachments(client, node.as_str(), &stay).await?;
    Ok(DrainState::new(left, attached.len()))
}

/// The pods of a node, by their fate.
#[derive(Default)]
struct OnNode {
    stay: Vec<Pod>,
    ending: Vec<Pod>,
    go: Vec<Pod>,
}

async fn on_node(client: &Client, node: &MachineId) -> Result<OnNode, KubeFailure> {
    let api: Api<Pod> = Api::all(client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let mut found = OnNode::default();
    for pod in list::all(&api, params).await? {
        match pods::fate(&pod) {
            Fate::Stays => found.stay.push(pod),
            Fate::Ending => found.ending.push(pod),
            Fate::Goes => found.go.push(pod),
        }
    }
    Ok(found)
}

/// Waits for the same act on every pod, several at a time. The acts are boxed, or the compiler could not see that the
/// whole may move between threads.
async fn side_by_side<T>(
    acts: impl Iterator<Item = BoxFuture<'_, Result<T, KubeFailure>>>,
) -> Result<Vec<T>, KubeFailure> {
    let acts: Vec<_> = acts.collect();
    futures::stream::iter(acts).buffer_unordered(SIDE_BY_SIDE).try_collect().await
}

fn api_of(client: &Client, pod: &Pod) -> (Api<Pod>, String) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    (Api::namespaced(client.clone(), namespace), pod.metadata.name.clone().unwrap_or_default())
}

/// Asks for a pod's eviction. Only the pod that was seen is meant: one of a StatefulSet may have been made again under
/// the same name, on another node, since it was.
async fn evict(client: &Client, pod: &Pod, pass: Pass) -> Result<Verdict, KubeFailure> {
    let (api, name) = api_of(client, pod);
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    // Not with the library's own call, which sends such conditions under a name that no API server reads.
    let eviction = Eviction {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        delete_options: Some(DeleteOptions {
            preconditions: Some(preconditions),
            ..DeleteOptions::default()
        }),
    };
    pass.ask(api.create_subresource("eviction", &name, &PostParams::default(), &eviction)).await
}

/// Deletes a pod, past all budgets.
async fn remove(client: &Client, pod: &Pod, grace: Grace, pass: Pass) -> Result<Verdict, KubeFailure> {
    let (api, name) = api_of(client, pod);
    let grace_period_seconds = match grace {
        Grace::ItsOwn => None,
        Grace::None => Some(0),
    };
    let preconditions = kube::api::Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params =
        DeleteParams { grace_period_seconds, preconditions: Some(preconditions), ..DeleteParams::default() };
    pass.ask(api.delete(&name, &params).map_ok(|_| Status::success())).await
}

/// What an answer means for one pod. What concerns every pod is a failure of the whole call.
fn judge(answer: Result<Status, kube::Error>) -> Result<Verdict, KubeFailure> {
    match answer {
        Ok(status) => Ok(pods::verdict(&status)),
        Err(kube::Error::Api(status)) if status.code != 401 => Ok(pods::verdict(&status)),
        Err(error) => Err(failure::of(&error)),
    }
}

/// What refused pods wait for. Budgets are read once for each namespace that has such a pod.
async fn explain<'a>(
    client: &Client,
    refused: Vec<(&'a Pod, Refusal)>,
) -> Result<Vec<(&'a Pod, PodWait)>, KubeFailure> {
    let mut budgets: BTreeMap<String, Vec<PodDisruptionBudget>> = BTreeMap::new();
    let mut waits = Vec::new();
    for (pod, refusal) in refused {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        if !budgets.contains_key(&namespace) {
            let api: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &namespace);
            budgets.insert(namespace.clone(), list::all(&api, ListParams::default()).await?);
        }
        let wait = pods::wait(pod, refusal, &budgets[&namespace]);
        waits.push((pod, wait));
    }
    Ok(waits)
}

/// Deletes a pod whose eviction was refused; `None` when it is gone. A pod is spared about which the API server could
/// not say yes or no: nobody has refused anything.
async fn override_refusal(
    client: &Client,
    pod: &Pod,
    wait: PodWait,
    pass: Pass,
) -> Result<Option<keelson_model::kubernetes::PodLeft>, KubeFailure> {
    if !wait.is_blocked() {
        return Ok(Some(pods::left(pod, wait)));
    }
    Ok(match remove(client, pod, Grace::ItsOwn, pass).await? {
        Verdict::Accepted => Some(pods::left(pod, PodWait::Forced { refused: wait.to_string() })),
        Verdict::Gone => None,
        Verdict::Refused(refusal) => Some(pods::left(pod, pods::wait(pod, refusal, &[]))),
    })
}
