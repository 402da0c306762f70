//! Looks at the cluster through its API all the time: whether every node is Ready, and whether a Deployment keeps
//! running elsewhere when a worker dies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node};
use keelson_images::DEMO_IMAGE;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{Connection, runtime};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A look that is older than this says nothing about now.
const FRESH: Duration = Duration::from_secs(3);
/// How long the API may take until it takes the objects of a run.
const MADE_MAX: Duration = Duration::from_secs(60);
/// Pods of the Deployment.
const REPLICAS: i32 = 2;
/// Its name.
const NAME: &str = "pair";

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    /// Nodes that are not Ready, and when that was seen.
    nodes: Option<(Instant, Vec<String>)>,
    /// Changes of whether all pods were Ready.
    pods: Vec<(Instant, bool)>,
}

/// The observer.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

impl Observer {
    /// Makes namespace and Deployment, and begins to look, with a thread of its own.
    pub(crate) fn start(connection: &Connection, namespace: &str) -> Result<Self> {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped, mut own) = (Arc::clone(&seen), Arc::clone(&stop), connection.clone());
        let runtime = runtime()?;
        runtime.block_on(make(&mut own, namespace))?;
        let work = move || runtime.block_on(look(&mut own, &shared, &stopped));
        std::thread::Builder::new().name("observer".to_owned()).spawn(work)?;
        Ok(Self { seen, stop })
    }

    /// Why the cluster's nodes, or one of them, cannot be called ready; `None` when they can.
    pub(crate) fn nodes_wait(&self, only: Option<&str>) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &seen.nodes {
            Some((at, unready)) if at.elapsed() < FRESH => {
                let asked = |node: &&String| only.is_none_or(|only| *only == **node);
                let unready: Vec<&str> = unready.iter().filter(asked).map(String::as_str).collect();
                (!unready.is_empty()).then(|| format!("nodes not Ready: {}", unready.join(", ")))
            }
            _ => Some("the API server does not tell of its nodes".to_owned()),
        }
    }

    /// How the pods fared since `from`.
    pub(crate) fn pods_since(&self, from: Instant) -> Pods {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        pods_since(&seen.pods, from)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How the pods fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pods {
    /// All were Ready all the time.
    Undisturbed,
    /// Some are not.
    Missing,
    /// Some were not, and all are again after so long.
    Back(Duration),
}

fn pods_since(changes: &[(Instant, bool)], from: Instant) -> Pods {
    match changes.last() {
        Some((_, false)) | None => Pods::Missing,
        Some((at, true)) if *at >= from => Pods::Back(at.duration_since(from)),
        Some((_, true)) => Pods::Undisturbed,
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object has the form of its type")
}

fn deployment() -> Deployment {
    let labels = json!({ "app": NAME });
    typed(json!({
        "metadata": { "name": NAME },
        "spec": {
            "replicas": REPLICAS,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
                        "labelSelector": { "matchLabels": labels },
                        "topologyKey": "kubernetes.io/hostname",
                    }] } },
                    "containers": [{
                        "name": NAME,
                        "image": DEMO_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["backend"],
                        "ports": [{ "containerPort": 8080 }],
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    }))
}

async fn make(connection: &mut Connection, namespace: &str) -> Result<()> {
    let until = Instant::now() + MADE_MAX;
    loop {
        match try_make(connection, namespace).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > until => {
                return Err(error).context("the objects of the run cannot be made");
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

async fn try_make(connection: &mut Connection, namespace: &str) -> Result<()> {
    let params = PostParams::default();
    let object: Namespace = typed(json!({ "metadata": { "name": namespace } }));
    let api = connection.all::<Namespace>()?;
    made(connection.ask(api.create(&params, &object)).await)?;
    let api = connection.own::<Deployment>()?;
    made(connection.ask(api.create(&params, &deployment())).await)
}

/// That something is there already is success: the answer to an earlier try was lost.
fn made<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_conflict(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.is_already_exists())
}

/// Removes the objects of the run; Kubernetes goes on with it by itself.
pub(crate) fn remove(connection: &Connection, namespace: &str) -> Result<()> {
    let mut connection = connection.clone();
    runtime()?.block_on(async {
        let api = connection.all::<Namespace>()?;
        connection.ask(api.delete(namespace, &DeleteParams::default())).await.map(drop)
    })
}

async fn look(connection: &mut Connection, seen: &Mutex<Seen>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(unready) = unready_nodes(connection).await {
            seen.lock().unwrap_or_else(PoisonError::into_inner).nodes = Some((Instant::now(), unready));
        }
        if let Ok(ready) = pods_ready(connection).await {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.pods.last().is_none_or(|(_, before)| *before != ready) {
                seen.pods.push((Instant::now(), ready));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn unready_nodes(connection: &mut Connection) -> Result<Vec<String>> {
    let api = connection.all::<Node>()?;
    let nodes = connection.ask(api.list(&ListParams::default())).await?;
    let is_ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    let unready = nodes.items.into_iter().filter(|node| !is_ready(node));
    Ok(unready.filter_map(|node| node.metadata.name).collect())
}

async fn pods_ready(connection: &mut Connection) -> Result<bool> {
    let api = connection.own::<Deployment>()?;
    let deployment = connection.ask(api.get(NAME)).await?;
    Ok(deployment.status.and_then(|status| status.ready_replicas) == Some(REPLICAS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_judged_by_their_changes_since_a_fault() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let check = |changes: &[(u64, bool)], from: u64, expected: Pods| {
            let changes: Vec<_> = changes.iter().map(|(seconds, ready)| (at(*seconds), *ready)).collect();
            assert_eq!(pods_since(&changes, at(from)), expected, "{changes:?}");
        };
        check(&[], 5, Pods::Missing);
        check(&[(1, true)], 5, Pods::Undisturbed);
        check(&[(1, true), (6, false)], 5, Pods::Missing);
        check(&[(1, true), (6, false), (9, true)], 5, Pods::Back(Duration::from_secs(4)));
        // It was missing before already.
        check(&[(1, false), (9, true)], 5, Pods::Back(Duration::from_secs(4)));
    }

    #[test]
    fn the_deployment_keeps_its_pods_apart() {
        let spec = deployment().spec.template.spec.unwrap();
        assert!(spec.affinity.unwrap().pod_anti_affinity.is_some());
        assert_eq!(spec.containers[0].image.as_deref(), Some(DEMO_IMAGE));
    }
}
