//! The checks, one after the other.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client};
use tokio::time::Instant;

use crate::objects::{self, LABEL, NAME, PORT, SCRATCH, SECRET_FILE};
use crate::pods::{self, Failures, Probe, ask, chain, each};
use crate::{Check, NAMES, Outcome};

/// Longest wait for one answer of the API server.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Longest wait until all pods are ready.
const PODS_MAX: Duration = Duration::from_secs(60);
/// Longest wait until a new namespace takes pods.
const WELCOME_MAX: Duration = Duration::from_secs(15);
/// Longest wait until everything that was made is gone.
const CLEANUP_MAX: Duration = Duration::from_secs(60);
/// How often is looked meanwhile.
const POLL: Duration = Duration::from_millis(250);
/// A namespace of another check that is older than this was left behind by one that was killed.
const LEFT_BEHIND_SECONDS: u64 = 3_600;
/// Requests to a Service until it must have led to two of its pods: by chance it fails once in 500,000 times.
const SERVICE_TRIES: usize = 20;
/// How long a new Service may lead nowhere.
const SERVICE_MAX: Duration = Duration::from_secs(3);
/// The taint of nodes that are kept for the control plane.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Something does not work.
#[derive(Debug)]
struct Fault {
    why: String,
    remedy: String,
}

impl Fault {
    fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: remedy.into() }
    }

    fn api(error: &kube::Error) -> Self {
        Self::new(chain(error), "see whether the masters are healthy: keelson cluster show CLUSTER --explain")
    }
}

/// Whether somebody interrupted the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    Yes,
    No,
}

/// A check that is under way.
pub(crate) struct Run<F> {
    client: Client,
    deadline: Instant,
    told: F,
    /// Its namespace, and the word in its secret.
    name: String,
    word: String,
    is_made: bool,
    checks: Vec<Check>,
}

impl<F: FnMut(&Check)> Run<F> {
    pub(crate) fn new(client: Client, deadline: Instant, told: F) -> Self {
        let name = format!("keelson-check-{:08x}", rand::random::<u32>());
        let word = format!("{:016x}", rand::random::<u64>());
        Self { client, deadline, told, name, word, is_made: false, checks: Vec::new() }
    }

    pub(crate) fn into_checks(self) -> Vec<Check> {
        self.checks
    }

    /// All checks but the last, which is to clean up.
    pub(crate) async fn all(&mut self) {
        let Some(()) = self.step(api_server(self.client.clone())).await else { return };
        let mut ready = Vec::new();
        self.step(nodes(self.client.clone(), &mut ready)).await;
        if ready.is_empty() {
            return;
        }
        // From here on there may be something to remove.
        self.is_made = true;
        let made = namespace(self.client.clone(), self.name.clone(), self.word.clone());
        let Some(service_address) = self.step(made).await else { return };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.name);
        // What works in part is checked as far as it works: that tells more about what does not.
        let mut probes = Vec::new();
        self.step(run_pods(&pods, &ready, &mut probes)).await;
        if probes.is_empty() {
            return;
        }
        self.step(logs(&pods, &probes)).await;
        self.step(exec(&pods, &probes)).await;
        let word = self.word.clone();
        self.step(secret(&pods, &probes, &word)).await;
        self.step(volume(&pods, &probes)).await;
        self.step(dns(&pods, &probes)).await;
        self.step(pod_to_pod(&pods, &probes)).await;
        self.step(service(&pods, &probes, &service_address)).await;
        self.step(api_from_pods(&pods, &probes)).await;
    }

    /// Removes what was made, whatever came of the checks.
    pub(crate) async fn clean_up(&mut self, stopped: Stopped) {
        let last = NAMES.len() - 1;
        let failed = self.checks.iter().rfind(|check| check.outcome == Outcome::Failed);
        let why = match (stopped, failed) {
            (Stopped::Yes, _) | (Stopped::No, None) => "interrupted".to_owned(),
            (Stopped::No, Some(check)) => format!("{} failed", check.name),
        };
        while self.checks.len() < last {
            self.skip(&why);
        }
        if !self.is_made {
            return self.put(Outcome::Passed, "nothing was made".to_owned(), None, 0.0);
        }
        self.deadline = Instant::now() + CLEANUP_MAX;
        self.step(remove(self.client.clone(), self.name.clone())).await;
    }

    /// Does the next check within the time that is left. Gives back what later ones need.
    async fn step<T>(&mut self, work: impl Future<Output = Result<(T, String), Fault>>) -> Option<T> {
        let began = Instant::now();
        if began > self.deadline {
            self.skip("no time was left");
            return None;
        }
        let late =
            || Fault::new("it took longer than the check may take", "try again with a longer --timeout");
        let result = tokio::time::timeout_at(self.deadline, work).await.unwrap_or_else(|_| Err(late()));
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok((value, detail)) => {
                self.put(Outcome::Passed, detail, None, seconds);
                Some(value)
            }
            Err(fault) => {
                self.put(Outcome::Failed, fault.why, Some(fault.remedy), seconds);
                None
            }
        }
    }

    fn skip(&mut self, why: &str) {
        self.put(Outcome::Skipped, format!("not tried: {why}"), None, 0.0);
    }

    fn put(&mut self, outcome: Outcome, detail: String, remedy: Option<String>, seconds: f64) {
        let check = Check { name: NAMES[self.checks.len()], outcome, detail, remedy, seconds };
        (self.told)(&check);
        self.checks.push(check);
    }
}

async fn api_server(client: Client) -> Result<((), String), Fault> {
    let version = client.apiserver_version().await.map_err(|error| Fault::api(&error))?;
    Ok(((), format!("Kubernetes {} answers", version.git_version)))
}

/// The nodes that pods of users run on; `ready` gets those that are.
async fn nodes(client: Client, ready: &mut Vec<String>) -> Result<((), String), Fault> {
    let list = Api::<Node>::all(client).list(&ListParams::default()).await;
    let list = list.map_err(|error| Fault::api(&error))?;
    let (good, bad): (Vec<&Node>, Vec<&Node>) =
        list.items.iter().filter(|node| !is_for_control_plane(node)).partition(|node| is_ready(node));
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    ready.extend(good.iter().map(|node| name(node)));
    let bad: Vec<String> = bad.iter().map(|node| name(node)).collect();
    if let Some(first) = bad.first() {
        let why = format!("not ready: {}", bad.join(", "));
        return Err(Fault::new(why, format!("see why: keelson machine show {first}")));
    }
    if ready.is_empty() {
        let remedy = "give the cluster workers: keelson plan list shows plans that have some";
        return Err(Fault::new("the cluster has no workers", remedy));
    }
    Ok(((), format!("{} of {} workers are ready", ready.len(), ready.len())))
}

fn is_for_control_plane(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == CONTROL_PLANE && taint.effect != "PreferNoSchedule")
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The namespace with all but the pods. Gives back the address of its Service.
async fn namespace(client: Client, name: String, word: String) -> Result<(String, String), Fault> {
    let failed = |error| Fault::api(&error);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    remove_left_behind(&namespaces).await;
    let make = PostParams::default();
    namespaces.create(&make, &objects::namespace(&name)).await.map_err(failed)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &name);
    secrets.create(&make, &objects::secret(&word)).await.map_err(failed)?;
    let services: Api<Service> = Api::namespaced(client, &name);
    let service = services.create(&make, &objects::service()).await.map_err(failed)?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    Ok((bracketed(&address), name))
}

/// Removes namespaces of checks that were killed. Nobody waits for it, and it says nothing of the cluster when it fails:
/// another check may have been quicker, and the next one tries again.
async fn remove_left_behind(namespaces: &Api<Namespace>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let Ok(list) = namespaces.list(&ListParams::default().labels(LABEL)).await else { return };
    for namespace in list {
        let made = namespace.metadata.creation_timestamp.map_or(0, |time| time.0.as_second());
        let age = now.saturating_sub(u64::try_from(made).unwrap_or(0));
        if let (Some(name), true) = (namespace.metadata.name, age > LEFT_BEHIND_SECONDS) {
            let _ = namespaces.delete(&name, &DeleteParams::default()).await;
        }
    }
}

/// Runs a pod on each node; `probes` gets those that are ready.
async fn run_pods(pods: &Api<Pod>, nodes: &[String], probes: &mut Vec<Probe>) -> Result<((), String), Fault> {
    let welcome_until = Instant::now() + WELCOME_MAX;
    for (number, node) in nodes.iter().enumerate() {
        let pod = objects::pod(&format!("{NAME}-{number}"), node);
        // A new namespace gets its service account a moment later; until then it takes no pods.
        while let Err(error) = pods.create(&PostParams::default(), &pod).await {
            if Instant::now() > welcome_until {
                return Err(Fault::api(&error));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    let ready_until = Instant::now() + PODS_MAX;
    loop {
        let list = pods.list(&ListParams::default()).await.map_err(|error| Fault::api(&error))?;
        *probes = list.items.iter().filter_map(pods::ready).collect();
        if probes.len() == nodes.len() {
            return Ok(((), format!("a pod runs on {} of {} workers", nodes.len(), nodes.len())));
        }
        if Instant::now() > ready_until {
            let unready = list.items.iter().filter(|pod| pods::ready(pod).is_none());
            let nodes = unready.map(|pod| (node_of(pod, nodes), pods::why_not_ready(pod))).collect();
            return Err(Failures { nodes }.fault(|node| logs_of(node, "kubelet")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The node that a pod was made for: its name ends with the node's number.
fn node_of(pod: &Pod, nodes: &[String]) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let number = name.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
    number.and_then(|number| nodes.get(number)).cloned().unwrap_or_else(|| name.to_owned())
}

async fn logs(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        let log = pods.logs(&probe.pod, &LogParams::default()).await.map_err(|error| chain(&error))?;
        expect(&log, |log| log.contains(&format!("{} serves", probe.pod)), "the pod's first words")
    };
    each(probes, question).await.map_err(|failures| failures.fault(|node| logs_of(node, "kubelet")))?;
    Ok(((), "logs of pods can be read".to_owned()))
}

async fn exec(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        let answer = ask(pods, probe, &["echo", &probe.node]).await?;
        expect(&answer, |answer| answer == probe.node, "its own words")
    };
    each(probes, question).await.map_err(|failures| failures.fault(|node| logs_of(node, "kubelet")))?;
    Ok(((), "commands run in pods".to_owned()))
}

async fn secret(pods: &Api<Pod>, probes: &[Probe], word: &str) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        let answer = ask(pods, probe, &["read", SECRET_FILE]).await?;
        // The answer is a secret: it is compared, not shown.
        if answer == word { Ok(()) } else { Err("the secret's file has other content".to_owned()) }
    };
    each(probes, question).await.map_err(|failures| failures.fault(|node| logs_of(node, "kubelet")))?;
    Ok(((), "a secret is mounted with its content".to_owned()))
}

async fn volume(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let file = format!("{SCRATCH}/word");
    let question = async |probe: &Probe| {
        ask(pods, probe, &["write", &file, &probe.node]).await?;
        let answer = ask(pods, probe, &["read", &file]).await?;
        expect(&answer, |answer| answer == probe.node, "what was written")
    };
    each(probes, question).await.map_err(|failures| {
        failures.fault(|node| format!("see whether its disk is full: keelson machine shell {node} -- df -h"))
    })?;
    Ok(((), "a volume keeps what is written to it".to_owned()))
}

async fn dns(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        for name in ["kubernetes.default.svc", NAME] {
            ask(pods, probe, &["resolve", name]).await?;
        }
        Ok(())
    };
    each(probes, question).await.map_err(|failures| {
        failures.fault(|_| {
            "see whether CoreDNS runs: kubectl --namespace kube-system get pods,endpointslices".to_owned()
        })
    })?;
    Ok(((), "names of Services resolve".to_owned()))
}

/// Each pod asks the next one, so that every node is once the asking and once the asked.
async fn pod_to_pod(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        let next = probes.iter().position(|other| other == probe).map_or(0, |at| (at + 1) % probes.len());
        let next = &probes[next];
        let answer =
            ask(pods, probe, &["get", &format!("http://{}:{PORT}/", bracketed(&next.address))]).await;
        let answer = answer.map_err(|why| format!("to {}: {why}", next.node))?;
        expect(&answer, |answer| answer == next.pod, "the name of the pod that was asked")
    };
    each(probes, question).await.map_err(|failures| {
        failures.fault(|node| {
            format!("see routes and the pod network there: keelson machine shell {node} -- ip route")
        })
    })?;
    let alone = if probes.len() == 1 { " (there is one worker only)" } else { " across workers" };
    Ok(((), format!("pods reach each other{alone}")))
}

/// Asked by its address, so that DNS has no part in it.
async fn service(pods: &Api<Pod>, probes: &[Probe], address: &str) -> Result<((), String), Fault> {
    let wanted = probes.len().min(2);
    let question = async |probe: &Probe| {
        let mut answered = BTreeSet::new();
        let patient_until = Instant::now() + SERVICE_MAX;
        for _ in 0..SERVICE_TRIES {
            match ask(pods, probe, &["get", &format!("http://{address}/")]).await {
                Ok(pod) => drop(answered.insert(pod)),
                // Nodes hear of a new Service's pods a moment after they are ready.
                Err(_) if Instant::now() < patient_until => tokio::time::sleep(POLL).await,
                Err(why) => return Err(why),
            }
            if answered.len() >= wanted {
                return Ok(());
            }
        }
        Err(format!("{} of {} pods were reached in {SERVICE_TRIES} requests", answered.len(), probes.len()))
    };
    each(probes, question).await.map_err(|failures| failures.fault(|node| logs_of(node, "kube-proxy")))?;
    Ok(((), "a Service leads to its pods".to_owned()))
}

async fn api_from_pods(pods: &Api<Pod>, probes: &[Probe]) -> Result<((), String), Fault> {
    let question = async |probe: &Probe| {
        let answer = ask(pods, probe, &["api", "/version"]).await?;
        expect(&answer, |answer| answer.contains("gitVersion"), "the version of Kubernetes")
    };
    each(probes, question).await.map_err(|failures| {
        failures
            .fault(|node| format!("see whether the worker reaches the masters: keelson machine show {node}"))
    })?;
    Ok(((), "pods reach the API server with their account".to_owned()))
}

async fn remove(client: Client, name: String) -> Result<((), String), Fault> {
    let namespaces: Api<Namespace> = Api::all(client);
    let failed = |error: &kube::Error| {
        Fault::new(chain(error), format!("remove it by hand: kubectl delete namespace {name}"))
    };
    match namespaces.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(failed(&error)),
        Ok(_) => {}
    }
    while namespaces.get_opt(&name).await.map_err(|error| failed(&error))?.is_some() {
        tokio::time::sleep(POLL).await;
    }
    Ok(((), "everything that was made is gone".to_owned()))
}

/// An address as it stands in a URL.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Passes when an answer is as it should be.
fn expect(answer: &str, is_right: impl Fn(&str) -> bool, expected: &str) -> Result<(), String> {
    if is_right(answer) { Ok(()) } else { Err(format!("expected {expected}, got `{}`", answer.trim())) }
}

fn logs_of(node: &str, unit: &str) -> String {
    format!("see what the {unit} says: keelson machine logs {node} --unit {unit}.service")
}

impl Failures {
    /// The fault that they are, with a remedy for the first node.
    fn fault(&self, remedy: impl Fn(&str) -> String) -> Fault {
        Fault::new(self.to_string(), remedy(self.first()))
    }
}
