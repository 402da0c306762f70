//! The self-test of a cluster: what its users need, tried out in two minutes at most.
//!
//! It makes a namespace, runs a pod on every worker and asks from inside and outside whether names, pods, Services, logs,
//! commands, secrets, volumes and the API server can be reached, and removes what it made. It goes through the front
//! door only, the Kubernetes API, and knows nothing of machines: `keelson cluster check` runs it for a person, and
//! whoever changes a cluster can run it to know whether the change was good.

mod checks;
mod objects;
mod pods;

use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde::Serialize;
use tokio::time::Instant;

use crate::checks::Stopped;

pub use objects::PROBE_IMAGE;

/// How long the checks may take all together, unless the caller says otherwise. The issue is two minutes of patience.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It works.
    Passed,
    /// It does not.
    Failed,
    /// It was not tried, because something that it needs failed or somebody interrupted.
    Skipped,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// A stable name, for scripts: see [`NAMES`].
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// What was seen, for people.
    pub detail: String,
    /// What to do, when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// The names of all checks, in their order.
pub const NAMES: [&str; 13] = [
    "api-server",
    "nodes",
    "namespace",
    "pods",
    "logs",
    "exec",
    "secret",
    "volume",
    "dns",
    "pod-to-pod",
    "service",
    "api-from-pods",
    "cleanup",
];

/// All checks of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// One for each of [`NAMES`].
    pub checks: Vec<Check>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Whether everything was tried and works.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.outcome == Outcome::Passed)
    }
}

/// Access to the cluster cannot be made of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It is not in the expected form.
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Its certificates or addresses cannot be used.
    #[error("no connection can be made with the kubeconfig")]
    Client(#[from] kube::Error),
}

/// A connection with the rights of a kubeconfig (YAML).
///
/// # Errors
/// See [`AccessError`]. Nothing is sent yet.
pub async fn connect(kubeconfig: &str) -> Result<Client, AccessError> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(checks::ANSWER_MAX);
    config.read_timeout = Some(checks::ANSWER_MAX);
    Ok(Client::try_from(config)?)
}

/// Checks a cluster. `told` hears of each check when it is done, in the order of [`NAMES`]. When `stop` is ready, what
/// is left is skipped. What was made is removed in any case, as long as the future is not dropped.
pub async fn run(
    client: Client,
    limit: Duration,
    stop: impl Future<Output = ()>,
    told: impl FnMut(&Check),
) -> Report {
    let began = Instant::now();
    let mut run = checks::Run::new(client, began + limit, told);
    let stopped = tokio::select! {
        () = run.all() => Stopped::No,
        () = stop => Stopped::Yes,
    };
    run.clean_up(stopped).await;
    Report { checks: run.into_checks(), seconds: began.elapsed().as_secs_f64() }
}
