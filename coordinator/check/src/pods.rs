//! Pods of a check: waiting for them, and asking them.

use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use kube::api::AttachParams;
use tokio::io::AsyncReadExt;

use crate::objects::PROBE;

/// Pods that are asked at a time.
const SIDE_BY_SIDE: usize = 8;
/// Longest wait for the answer of a pod. A name server that does not answer costs a client five seconds.
const QUESTION_MAX: Duration = Duration::from_secs(10);
/// Longest answer of a pod that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Nodes that are named when something fails on many.
const NAMED_MAX: usize = 3;

/// A pod that is ready, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) address: String,
}

/// Whether a pod can be asked.
pub(crate) fn ready(pod: &Pod) -> Option<Probe> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is_ready =
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready.then_some(())?;
    Some(Probe {
        pod: pod.metadata.name.clone()?,
        node: pod.spec.as_ref()?.node_name.clone()?,
        address: status.pod_ip.clone()?,
    })
}

/// Why a pod is not ready, as far as its status tells.
pub(crate) fn why_not_ready(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "Kubernetes says nothing of its pod yet".to_owned() };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return format!(
            "no place for its pod: {}",
            condition.message.as_deref().unwrap_or("no reason given")
        );
    }
    let container = status.container_statuses.as_deref().unwrap_or_default().first();
    let why = container.and_then(waiting_or_ended);
    why.unwrap_or_else(|| format!("its pod is {}", status.phase.as_deref().unwrap_or("Unknown")))
}

fn waiting_or_ended(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref().map(|state| (state.reason.as_ref(), state.message.as_ref()));
    let ended = state.terminated.as_ref().map(|state| (state.reason.as_ref(), state.message.as_ref()));
    let (reason, message) = waiting.or(ended)?;
    let reason = reason.map_or("waiting", String::as_str);
    Some(match message {
        Some(message) => format!("its container is in {reason}: {message}"),
        None => format!("its container is in {reason}"),
    })
}

/// Runs the probe's program in a pod and returns what it printed.
pub(crate) async fn ask(pods: &Api<Pod>, probe: &Probe, words: &[&str]) -> Result<String, String> {
    let late = |_| format!("`{}` had no answer within {} s", words.join(" "), QUESTION_MAX.as_secs());
    tokio::time::timeout(QUESTION_MAX, exec(pods, probe, words)).await.map_err(late)?
}

async fn exec(pods: &Api<Pod>, probe: &Probe, words: &[&str]) -> Result<String, String> {
    let command: Vec<&str> = [PROBE].into_iter().chain(words.iter().copied()).collect();
    let parameters = AttachParams::default().stdin(false).stdout(true).stderr(true);
    let mut process = pods.exec(&probe.pod, command, &parameters).await.map_err(|error| chain(&error))?;
    let status = process.take_status().ok_or("no status is to be had")?;
    let (mut out, mut err) = (String::new(), String::new());
    // Both at once: neither may fill its buffer while the other is read.
    let stdout = process.stdout().ok_or("no output is to be had")?;
    let stderr = process.stderr().ok_or("no output is to be had")?;
    let (mut stdout, mut stderr) = (stdout.take(ANSWER_BYTES_MAX), stderr.take(ANSWER_BYTES_MAX));
    let read = futures::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    read.0.and(read.1).map_err(|error| error.to_string())?;
    match status.await {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(out.trim_end().to_owned()),
        Some(status) if err.trim().is_empty() => {
            Err(status.message.unwrap_or_else(|| "the command failed".to_owned()))
        }
        Some(_) => Err(err.trim().to_owned()),
        None => Err("the connection ended before the command did".to_owned()),
    }
}

/// Does the same with every probe, several at a time. Fails with what failed, node by node.
pub(crate) async fn each<'a, T>(
    probes: &'a [Probe],
    question: impl AsyncFn(&'a Probe) -> Result<T, String>,
) -> Result<Vec<T>, Failures> {
    let answers = futures::stream::iter(probes)
        .map(|probe| {
            let answer = question(probe);
            async move { (probe, answer.await) }
        })
        .buffered(SIDE_BY_SIDE)
        .collect::<Vec<_>>()
        .await;
    let mut good = Vec::new();
    let mut failures = Failures::default();
    for (probe, answer) in answers {
        match answer {
            Ok(answer) => good.push(answer),
            Err(why) => failures.nodes.push((probe.node.clone(), why)),
        }
    }
    if failures.nodes.is_empty() { Ok(good) } else { Err(failures) }
}

/// What failed, by node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) nodes: Vec<(String, String)>,
}

impl Failures {
    /// The first node, for a remedy that names one.
    pub(crate) fn first(&self) -> &str {
        self.nodes.first().map_or("", |(node, _)| node)
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> =
            self.nodes.iter().take(NAMED_MAX).map(|(node, why)| format!("{node}: {why}")).collect();
        f.write_str(&named.join("; "))?;
        match self.nodes.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, "; and {more} more nodes"),
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "probe-0" }, "spec": { "nodeName": "one", "containers": [] }, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_ready_pod_can_be_asked() {
        let conditions = json!([{ "type": "Ready", "status": "True" }]);
        let found = ready(&pod(json!({ "podIP": "10.0.0.1", "conditions": conditions })));
        assert_eq!(found.unwrap().address, "10.0.0.1");
        assert_eq!(ready(&pod(json!({ "podIP": "10.0.0.1" }))), None);
    }

    #[test]
    fn the_reason_is_the_one_that_helps() {
        let check = |status, expected| assert_eq!(why_not_ready(&pod(status)), expected);
        let waiting = json!({ "waiting": { "reason": "ErrImagePull", "message": "no such image" } });
        let containers = json!([{ "name": "probe", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": waiting }]);
        check(
            json!({ "phase": "Pending", "containerStatuses": containers }),
            "its container is in ErrImagePull: no such image",
        );
        let conditions = json!([{ "type": "PodScheduled", "status": "False", "message": "too many pods" }]);
        check(json!({ "phase": "Pending", "conditions": conditions }), "no place for its pod: too many pods");
        check(json!({ "phase": "Pending" }), "its pod is Pending");
    }

    #[test]
    fn many_failures_are_told_in_few_words() {
        let nodes = (0..5).map(|number| (format!("n{number}"), "x".to_owned())).collect();
        assert_eq!(Failures { nodes }.to_string(), "n0: x; n1: x; n2: x; and 2 more nodes");
    }
}
