//! What the API asks of the coordinator, answered from the core and the store.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keelson_api::auth::Caller;
use keelson_api::care::patched_drain;
use keelson_api::convert::{
    ClusterParts, Wanted, cluster_etag, cluster_view, event_view, machine_state, machine_view,
    operation_metadata, operation_view, patched_labels, preview, release_view, waiting_view,
};
use keelson_api::fleet::{
    Answer, ClusterChange, EventBatch, EventQuery, EventRange, Follow, Idempotency, IfMatch, LogStream,
    LogsRequest, OfIncident, Pause, PoolSize, Protection, RepairWish, ShellPipe,
};
use keelson_api::plans::{SpecSource, plan_deleted_view, plan_view, spec_refused};
use keelson_api::query::{ClusterQuery, MachineQuery};
use keelson_api::types::{
    API_VERSION, ClusterCounts, ClusterView, DrainBody, HealthView, KubeconfigView, LabelsPatch,
    MachineCounts, MachineState, MachineView, OperationCounts, OperationView, Page, PageRequest,
    PlanChangeView, PlanPreview, PlanView, ProtocolView, ReleaseView, RepairOptionsView, RepairStatusView,
    RepairSummary, RepairView, SecretText, SeverityView, ShellRequestBody, StatusView, Timestamp,
    VersionView,
};
use keelson_api::{Code, Fleet, Problem};
use keelson_coordinator_core::{Cluster, ClusterState, CommandError, CreateCluster, Now, ScalePool};
use keelson_model::{
    ClusterSpec, DrainSpec, FleetEvent, MachinePhase, Observed, Operation, OperationId, OperationState, Plan,
    PlanName, PlanReport, Severity, WaitingOn,
};
use keelson_pki::{admin_certificate, new_cluster_material};
use keelson_planner::node::{ADMIN_GROUP, admin_kubeconfig};
use keelson_protocol::config::Issuer;
use keelson_protocol::errors::chain;
use keelson_protocol::message::BulkRequest;
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use keelson_protocol::{ClusterName, MachineId, ReleaseName, WallTime};
use keelson_store::{EventFilter, StoreError};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use crate::catalog::Catalog;
use crate::clock::wall_now;
use crate::metrics;
use crate::plans::{change_view, plan_problem, scale_problem};
use crate::repair;
use crate::shell::{Handle, Shell};
use crate::state_dir::StateDir;

/// Longest life of a certificate in a kubeconfig that is handed out.
const KUBECONFIG_LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most characters of a program's name in an event: a path that a person typed.
const PROGRAM_CHARS_MAX: usize = 128;

/// Machines that are not well on the screen of the fleet; `keelson repair status` has more.
const NOT_WELL_SHOWN_MAX: usize = 100;

/// The coordinator, as the API sees it.
pub(crate) struct CoordinatorFleet {
    handle: Handle,
    install: String,
    default_release: ReleaseName,
    started: WallTime,
}

impl CoordinatorFleet {
    pub(crate) fn new(handle: Handle, state: &StateDir, catalog: &Catalog, started: WallTime) -> Self {
        Self { handle, install: state.install.to_string(), default_release: catalog.default.clone(), started }
    }

    /// Runs `request` on the loop.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Shell) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.change(move |shell| Ok(request(shell))).await
    }

    /// Runs `request`, which may write to the store, on the loop.
    async fn change<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Shell) -> Result<Result<T, Problem>, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        match self.handle.call(request).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(store)) => Err(Problem::new(Code::StoreUnavailable, store)),
            Err(stopping) => Err(Problem::new(Code::ShuttingDown, stopping.to_string())),
        }
    }
}

impl Fleet for CoordinatorFleet {
    fn version(&self) -> Answer<'_, VersionView> {
        let view = VersionView {
            api_version: API_VERSION.to_owned(),
            kind: "Version".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            install: self.install.clone(),
            api_versions: vec!["v1".to_owned()],
            protocol: ProtocolView { min: VERSION_MIN.0, max: VERSION_MAX.0 },
        };
        Box::pin(async move { Ok(view) })
    }

    fn status(&self) -> Answer<'_, StatusView> {
        let (install, started) = (self.install.clone(), self.started);
        Box::pin(self.ask(move |shell| Ok(status(shell, install, started))))
    }

    fn health(&self) -> Answer<'_, HealthView> {
        // The loop ends when its store fails, so an answer of the loop is the proof of health.
        Box::pin(self.ask(|_| Ok(HealthView { ready: true, problems: Vec::new() })))
    }

    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(self.ask(|shell| Ok(metrics::render(&shell.core, shell.now()))))
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.handle.revision.clone()
    }

    fn clusters(&self, query: ClusterQuery) -> Answer<'_, Page<ClusterView>> {
        Box::pin(self.ask(move |shell| {
            let now = shell.now();
            Ok(query.cut(
                shell.core.clusters(),
                |cluster| (&cluster.row.spec, cluster.row.created),
                |cluster| state_view(shell.core.cluster_state(cluster, now)),
                |cluster| view_cluster(shell, cluster, now),
            ))
        }))
    }

    fn cluster(&self, name: ClusterName) -> Answer<'_, ClusterView> {
        Box::pin(self.ask(move |shell| find_cluster(shell, &name)))
    }

    fn preview_create(&self, spec: ClusterSpec) -> Answer<'_, PlanPreview> {
        Box::pin(self.ask(move |shell| {
            let name = spec.name.clone();
            let planned = shell.core.preview_create(&spec).map_err(|error| problem(&error))?;
            Ok(preview(&name, &planned.diff, Some(planned.blueprint.generation)))
        }))
    }

    fn create_cluster(
        &self,
        spec: ClusterSpec,
        idempotency: Option<Idempotency>,
    ) -> Answer<'_, OperationView> {
        Box::pin(async move {
            let material =
                new_cluster_material(&spec.name, wall_now()).map_err(|e| Problem::internal(chain(&e)))?;
            let idempotency = idempotency
                .map(|known| (format!("{}/{}", known.caller, known.key), hex::encode(known.body_sha256)));
            self.change(move |shell| {
                let now = shell.now();
                match shell.core.create_cluster(now, CreateCluster { spec, material, idempotency }) {
                    Ok(accepted) => {
                        shell.carry_out(accepted.effects)?;
                        Ok(Ok(view_operation(shell, &accepted.operation, now)))
                    }
                    Err(error) => Ok(Err(problem(&error))),
                }
            })
            .await
        })
    }

    fn update_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        change: ClusterChange,
    ) -> Answer<'_, ClusterView> {
        Box::pin(self.change(move |shell| {
            let checked =
                check_etag(shell, &name, &if_match).and_then(|()| new_labels(shell, &name, change.labels));
            let labels = match checked {
                Ok(labels) => labels,
                Err(refused) => return Ok(Err(refused)),
            };
            let protection = change.protection.map(|protection| match protection {
                Protection::On => keelson_coordinator_core::Protection::On,
                Protection::Off => keelson_coordinator_core::Protection::Off,
            });
            let drain = change.drain.and_then(|body| drain_of(shell, &name, body));
            let change = keelson_coordinator_core::ClusterChange { protection, labels, drain };
            match shell.core.update_cluster(&name, change) {
                Ok(effects) => {
                    shell.carry_out(effects)?;
                    Ok(find_cluster(shell, &name))
                }
                Err(error) => Ok(Err(problem(&error))),
            }
        }))
    }

    fn preview_delete(&self, name: ClusterName) -> Answer<'_, PlanPreview> {
        Box::pin(self.ask(move |shell| {
            let planned = shell.core.preview_delete(&name).map_err(|error| problem(&error))?;
            Ok(preview(&name, &planned.diff, None))
        }))
    }

    fn delete_cluster(&self, name: ClusterName, if_match: IfMatch) -> Answer<'_, OperationView> {
        Box::pin(self.change(move |shell| {
            // As with a scale: what was asked for already is no other wish.
            let under_way = shell.core.cluster(&name).is_some_and(|cluster| !cluster.row.wanted);
            if !under_way && let Err(stale) = check_etag(shell, &name, &if_match) {
                return Ok(Err(stale));
            }
            let now = shell.now();
            match shell.core.delete_cluster(now, &name) {
                Ok(accepted) => {
                    shell.carry_out(accepted.effects)?;
                    Ok(Ok(view_operation(shell, &accepted.operation, now)))
                }
                Err(error) => Ok(Err(problem(&error))),
            }
        }))
    }

    fn preview_scale(&self, name: ClusterName, size: PoolSize) -> Answer<'_, PlanPreview> {
        Box::pin(self.ask(move |shell| {
            let request = scale_request(shell, name.clone(), size);
            let planned = shell.core.preview_scale(&request).map_err(|error| scale_problem(&error))?;
            Ok(preview(&name, &planned.diff, Some(planned.blueprint.generation)))
        }))
    }

    fn scale_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        size: PoolSize,
    ) -> Answer<'_, OperationView> {
        Box::pin(self.change(move |shell| {
            let now = shell.now();
            let request = scale_request(shell, name, size);
            // A request that is sent a second time finds what the first one began.
            if shell.core.scale_under_way(&request).is_none()
                && let Err(stale) = check_etag(shell, &request.cluster, &if_match)
            {
                return Ok(Err(stale));
            }
            match shell.core.scale_pool(now, &request) {
                Ok(accepted) => {
                    shell.carry_out(accepted.effects)?;
                    Ok(Ok(view_operation(shell, &accepted.operation, now)))
                }
                Err(error) => Ok(Err(scale_problem(&error))),
            }
        }))
    }

    fn kubeconfig(&self, name: ClusterName, ttl: Duration, caller: Caller) -> Answer<'_, KubeconfigView> {
        Box::pin(async move {
            let life = ttl.min(KUBECONFIG_LIFE_MAX);
            let asked = name.clone();
            let (endpoint, material) = self
                .ask(move |shell| {
                    let cluster =
                        shell.core.cluster(&asked).ok_or_else(|| Problem::cluster_not_found(&asked))?;
                    let endpoint = shell.core.endpoint(&asked);
                    let why = "its API server is not reachable from outside yet";
                    let endpoint = endpoint.ok_or_else(|| Problem::cluster_not_ready(&asked, why))?;
                    Ok((endpoint, cluster.material.clone()))
                })
                .await?;
            let now = wall_now();
            let (certificate, key) = admin_certificate(&material, "keelson:admin", ADMIN_GROUP, now, life)
                .map_err(|error| Problem::internal(chain(&error)))?;
            let ca =
                material.authorities.get(&Issuer::Kubernetes).map(|authority| authority.certificate.clone());
            let config = admin_kubeconfig(
                name.as_str(),
                &endpoint,
                &BASE64.encode(ca.unwrap_or_default()),
                &BASE64.encode(certificate),
                &BASE64.encode(key.expose_secret()),
            );
            let text = serde_json::to_string_pretty(&config).map_err(Problem::internal)?;
            let expires = Timestamp(now.plus(life));
            let outcome = format!("a kubeconfig of cluster-admin until {expires}");
            self.audit(&caller, "KubeconfigIssued", name.clone(), None, outcome).await?;
            Ok(KubeconfigView {
                api_version: API_VERSION.to_owned(),
                kind: "Kubeconfig".to_owned(),
                cluster: name.to_string(),
                expires,
                kubeconfig: SecretText::new(text + "\n"),
            })
        })
    }

    fn machines(&self, query: MachineQuery) -> Answer<'_, Page<MachineView>> {
        Box::pin(self.ask(move |shell| {
            let now = shell.now();
            if let Some(name) = &query.cluster {
                shell.core.cluster(name).ok_or_else(|| Problem::cluster_not_found(name))?;
            }
            let mut planned: Vec<(&Cluster, &MachineId)> = shell
                .core
                .clusters()
                .flat_map(|cluster| chosen_machines(shell, cluster, &query, now))
                .collect();
            planned.sort_by_key(|(_, id)| (*id).clone());
            let page = Page::upwards(&planned, &query.page, |(_, id)| id.to_string(), |row| *row);
            // What is seen of a cluster takes all of its machines, and is the same for each row.
            let mut seen: BTreeMap<&ClusterName, Seen> = BTreeMap::new();
            let mut items = Vec::with_capacity(page.items.len());
            for (cluster, id) in page.items {
                let name = &cluster.row.spec.name;
                let seen = seen.entry(name).or_insert_with(|| Seen::of(shell, name, now));
                items.extend(view_machine(cluster, id, seen));
            }
            Ok(Page { items, next: page.next, total: page.total })
        }))
    }

    fn machine(&self, id: MachineId) -> Answer<'_, MachineView> {
        Box::pin(self.ask(move |shell| {
            let now = shell.now();
            let cluster =
                shell.core.clusters().find(|cluster| cluster.row.blueprint.machines.contains_key(&id));
            let cluster = cluster.ok_or_else(|| Problem::machine_not_found(&id))?;
            let seen = Seen::of(shell, &cluster.row.spec.name, now);
            view_machine(cluster, &id, &seen).ok_or_else(|| Problem::machine_not_found(&id))
        }))
    }

    fn repair_options(&self, id: MachineId) -> Answer<'_, RepairOptionsView> {
        Box::pin(self.ask(move |shell| repair::options(shell, &id)))
    }

    fn preview_repair(&self, id: MachineId, wish: RepairWish) -> Answer<'_, RepairView> {
        Box::pin(self.ask(move |shell| repair::preview(shell, id, wish)))
    }

    fn repair_machine(&self, id: MachineId, wish: RepairWish, caller: Caller) -> Answer<'_, RepairView> {
        Box::pin(self.change(move |shell| repair::begin(shell, id, wish, caller.0)))
    }

    fn repair_status(&self) -> Answer<'_, RepairStatusView> {
        Box::pin(self.ask(|shell| Ok(repair::status(&shell.core, shell.now()))))
    }

    fn pause_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView> {
        Box::pin(self.change(move |shell| {
            let (now, request) = (shell.now(), repair::pause_request(pause, &caller.0));
            let paused = shell.core.pause_repair(now, &request);
            repair::paused(shell, paused)
        }))
    }

    fn resume_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView> {
        Box::pin(self.change(move |shell| {
            let (now, request) = (shell.now(), repair::pause_request(pause, &caller.0));
            let resumed = shell.core.resume_repair(now, &request);
            repair::paused(shell, resumed)
        }))
    }

    fn machine_logs(&self, id: MachineId, request: LogsRequest) -> Answer<'_, LogStream> {
        Box::pin(async move {
            let follow = request.follow == Follow::Yes;
            let request = BulkRequest::Journal { unit: request.unit, lines: request.lines, follow };
            let stream = self.open_bulk(&id, request).await?;
            let stream: LogStream = Box::pin(ReaderStream::new(stream));
            Ok(stream)
        })
    }

    fn machine_shell(
        &self,
        id: MachineId,
        request: ShellRequestBody,
        caller: Caller,
    ) -> Answer<'_, Box<dyn ShellPipe>> {
        Box::pin(async move {
            // Arguments may hold a secret, so only the program is written down.
            let program = request.command.first().map_or("root's shell", String::as_str);
            let program: String = program.chars().take(PROGRAM_CHARS_MAX).collect();
            let request = BulkRequest::Shell {
                command: request.command,
                terminal: request.terminal,
                rows: request.rows,
                columns: request.columns,
            };
            let (asked, not_found) = (id.clone(), Problem::machine_not_found(&id));
            let cluster = self
                .ask(move |shell| {
                    let machine = shell.core.machine(&asked).ok_or(not_found)?;
                    Ok(machine.row.cluster.clone())
                })
                .await?;
            let outcome = format!("{program} on {id}, until the caller ends it");
            // Before the machine is asked, because the command runs as soon as it is.
            self.audit(&caller, "ShellOpened", cluster, Some(id.clone()), outcome).await?;
            let pipe: Box<dyn ShellPipe> = Box::new(self.open_bulk(&id, request).await?);
            Ok(pipe)
        })
    }

    fn operations(&self, cluster: Option<ClusterName>, page: PageRequest) -> Answer<'_, Page<OperationView>> {
        Box::pin(self.ask(move |shell| {
            let now = shell.now();
            let mut operations: Vec<&Operation> = shell
                .core
                .operations()
                .filter(|operation| cluster.as_ref().is_none_or(|name| operation.cluster == *name))
                .collect();
            operations.sort_by_key(|operation| std::cmp::Reverse(sort_key(operation)));
            let key = |operation: &&Operation| sort_key(operation);
            Ok(Page::downwards(&operations, &page, key, |operation| view_operation(shell, operation, now)))
        }))
    }

    fn operation(&self, id: OperationId) -> Answer<'_, OperationView> {
        Box::pin(self.ask(move |shell| {
            let now = shell.now();
            let operation = shell.core.operation(&id).ok_or_else(|| Problem::operation_not_found(&id))?;
            Ok(view_operation(shell, operation, now))
        }))
    }

    fn cancel_operation(&self, id: OperationId) -> Answer<'_, OperationView> {
        Box::pin(self.change(move |shell| {
            let now = shell.now();
            if let Some(operation) = shell.core.operation(&id).filter(|operation| operation.is_done()) {
                return Ok(match operation.state {
                    OperationState::Cancelled { .. } => Ok(view_operation(shell, operation, now)),
                    _ => Err(Problem::operation_ended(&id)),
                });
            }
            match shell.core.cancel_operation(now, &id) {
                Ok((operation, effects)) => {
                    shell.carry_out(effects)?;
                    Ok(Ok(view_operation(shell, &operation, now)))
                }
                Err(error) => Ok(Err(problem(&error))),
            }
        }))
    }

    fn plans(&self) -> Answer<'_, Vec<PlanView>> {
        Box::pin(self.ask(|shell| {
            let view = |plan: &Plan| plan_view(plan, shell.core.is_built_in(&plan.name));
            Ok(shell.core.plans().map(view).collect())
        }))
    }

    fn preview_plan(&self, plan: Plan) -> Answer<'_, PlanChangeView> {
        Box::pin(self.ask(move |shell| {
            let change = shell.core.preview_plan(&plan).map_err(|error| plan_problem(&error))?;
            Ok(change_view(&change))
        }))
    }

    fn apply_plan(&self, plan: Plan, if_match: IfMatch, caller: Caller) -> Answer<'_, PlanChangeView> {
        Box::pin(self.change(move |shell| {
            if let Err(problem) = if_match.check_plan(shell.core.plan(&plan.name), &plan) {
                return Ok(Err(problem));
            }
            let now = shell.now();
            match shell.core.apply_plan(now, plan, &caller.0) {
                Ok((change, effects)) => {
                    shell.carry_out(effects)?;
                    Ok(Ok(change_view(&change)))
                }
                Err(error) => Ok(Err(plan_problem(&error))),
            }
        }))
    }

    fn delete_plan(&self, name: PlanName, caller: Caller) -> Answer<'_, PlanChangeView> {
        Box::pin(self.change(move |shell| {
            let now = shell.now();
            match shell.core.delete_plan(now, &name, &caller.0) {
                Ok(effects) => {
                    shell.carry_out(effects)?;
                    Ok(Ok(plan_deleted_view(&name)))
                }
                Err(error) => Ok(Err(plan_problem(&error))),
            }
        }))
    }

    fn releases(&self) -> Answer<'_, Vec<ReleaseView>> {
        let default = self.default_release.clone();
        Box::pin(self.ask(move |shell| {
            let releases = shell.core.settings().releases.releases.values();
            Ok(releases.map(|release| release_view(release, &default)).collect())
        }))
    }

    fn events(&self, query: EventQuery) -> Answer<'_, EventBatch> {
        let unreadable = |error| {
            Problem::new(Code::StoreUnavailable, format!("the events cannot be read: {}", chain(&error)))
                .remedy("look at the coordinator's disk and its log; clusters are looked after meanwhile")
        };
        Box::pin(self.ask(move |shell| events(shell, &query).map_err(unreadable)))
    }
}

impl CoordinatorFleet {
    /// Puts on disk who gets access to what, before they get it.
    async fn audit(
        &self,
        caller: &Caller,
        reason: &'static str,
        cluster: ClusterName,
        machine: Option<MachineId>,
        outcome: String,
    ) -> Result<(), Problem> {
        tracing::info!(caller = caller.0, reason, %cluster, outcome, "access was given");
        let cause = format!("asked for by {}", caller.0);
        self.change(move |shell| {
            let effects = shell.core.audit(FleetEvent {
                incident: None,
                id: 0,
                at: shell.now().wall,
                severity: Severity::Info,
                reason: reason.to_owned(),
                cluster: Some(cluster),
                machine,
                cause,
                outcome,
            });
            shell.carry_out(effects)?;
            Ok(Ok(()))
        })
        .await
    }

    async fn open_bulk(
        &self,
        id: &MachineId,
        request: BulkRequest,
    ) -> Result<keelson_transport::BulkStream, Problem> {
        let machine = id.clone();
        let session = self
            .ask(move |shell| {
                shell.core.machine(&machine).ok_or_else(|| Problem::machine_not_found(&machine))?;
                shell.session_of(&machine).ok_or_else(|| Problem::agent_away(&machine))
            })
            .await?;
        session.open_bulk(request).await.map_err(|error| Problem::agent_refused(id, chain(&error)))
    }
}

/// Newest operations have the highest numbers; as text, numbers need leading zeros to sort.
fn sort_key(operation: &Operation) -> String {
    let number: u64 = operation.id.0.trim_start_matches("op-").parse().unwrap_or(0);
    format!("{number:020}")
}

fn check_etag(shell: &Shell, name: &ClusterName, if_match: &IfMatch) -> Result<(), Problem> {
    let cluster = shell.core.cluster(name).ok_or_else(|| Problem::cluster_not_found(name))?;
    if_match.check(&cluster_etag(&cluster.row.spec, cluster.row.created, wanted(cluster)))
}

fn wanted(cluster: &Cluster) -> Wanted {
    if cluster.row.wanted { Wanted::Present } else { Wanted::Absent }
}

/// All labels of a cluster after a patch; `None` when nothing is patched.
fn new_labels(
    shell: &Shell,
    name: &ClusterName,
    patch: Option<LabelsPatch>,
) -> Result<Option<BTreeMap<String, String>>, Problem> {
    let cluster = shell.core.cluster(name).ok_or_else(|| Problem::cluster_not_found(name))?;
    patch.map(|patch| patched_labels(&cluster.row.spec, patch)).transpose()
}

/// How pods leave a cluster's machines after a change; `None` when there is no such cluster.
fn drain_of(shell: &Shell, name: &ClusterName, body: DrainBody) -> Option<DrainSpec> {
    Some(patched_drain(shell.core.cluster(name)?.row.spec.drain, body))
}

fn scale_request(shell: &Shell, cluster: ClusterName, size: PoolSize) -> ScalePool {
    let drain = drain_of(shell, &cluster, size.drain);
    ScalePool { cluster, pool: size.pool, count: size.count, drain }
}

/// Machines of one cluster that `query` takes.
fn chosen_machines<'a>(
    shell: &Shell,
    cluster: &'a Cluster,
    query: &MachineQuery,
    now: Now,
) -> Vec<(&'a Cluster, &'a MachineId)> {
    let spec = &cluster.row.spec;
    let observed = if query.asks_for_state() { Some(shell.core.observed(&spec.name, now)) } else { None };
    let state = |id: &MachineId| {
        let seen = observed.as_ref().and_then(|observed| observed.machines.get(id));
        seen.map_or(MachineState::Planned, |seen| machine_state(seen).0)
    };
    let machines = cluster.row.blueprint.machines.iter();
    let chosen = machines.filter(|(id, machine)| query.takes(spec, machine, || state(id)));
    chosen.map(|(id, _)| (cluster, id)).collect()
}

fn find_cluster(shell: &Shell, name: &ClusterName) -> Result<ClusterView, Problem> {
    let cluster = shell.core.cluster(name).ok_or_else(|| Problem::cluster_not_found(name))?;
    Ok(view_cluster(shell, cluster, shell.now()))
}

fn report(cluster: &Cluster, waiting: Vec<WaitingOn>) -> PlanReport {
    let blueprint = &cluster.row.blueprint;
    PlanReport { changes: blueprint.diff(Some(blueprint)), waiting }
}

fn view_cluster(shell: &Shell, cluster: &Cluster, now: Now) -> ClusterView {
    let row = &cluster.row;
    let observed = shell.core.observed(&row.spec.name, now);
    let report = report(cluster, shell.core.waiting(&row.spec.name, now));
    let running = shell.core.operations().find(|op| op.cluster == row.spec.name && !op.is_done());
    cluster_view(&ClusterParts {
        spec: &row.spec,
        blueprint: Some(&row.blueprint),
        observed: &observed,
        report: Some(&report),
        conditions: &row.conditions,
        state: state_view(shell.core.cluster_state(cluster, now)),
        created: row.created,
        wanted: wanted(cluster),
        operation: running,
        repair_paused: repair::pause_of(&shell.core, &row.spec.name),
    })
}

fn state_view(state: ClusterState) -> keelson_api::types::ClusterState {
    match state {
        ClusterState::Creating => keelson_api::types::ClusterState::Creating,
        ClusterState::Ready => keelson_api::types::ClusterState::Ready,
        ClusterState::Updating => keelson_api::types::ClusterState::Updating,
        ClusterState::Degraded => keelson_api::types::ClusterState::Degraded,
        ClusterState::Deleting => keelson_api::types::ClusterState::Deleting,
        ClusterState::Failed => keelson_api::types::ClusterState::Failed,
    }
}

/// What is seen of a cluster now.
struct Seen {
    observed: Observed,
    waiting: Vec<WaitingOn>,
}

impl Seen {
    fn of(shell: &Shell, name: &ClusterName, now: Now) -> Self {
        Self { observed: shell.core.observed(name, now), waiting: shell.core.waiting(name, now) }
    }
}

fn view_machine(cluster: &Cluster, id: &MachineId, seen: &Seen) -> Option<MachineView> {
    let (blueprint, spec) = (&cluster.row.blueprint, &cluster.row.spec);
    let machine = blueprint.machines.get(id)?;
    Some(machine_view((blueprint, spec.drain), machine, &seen.observed, &seen.waiting, cluster.row.created))
}

fn view_operation(shell: &Shell, operation: &Operation, now: Now) -> OperationView {
    let metadata = match shell.core.cluster(&operation.cluster) {
        // Progress is of the cluster as it is; an operation that has ended has none.
        Some(cluster) if !operation.is_done() => {
            let observed = shell.core.observed(&operation.cluster, now);
            let report = report(cluster, shell.core.waiting(&operation.cluster, now));
            operation_metadata(&cluster.row.blueprint, &observed, Some(&report), operation.created)
        }
        _ => Default::default(),
    };
    operation_view(operation, metadata)
}

fn status(shell: &Shell, install: String, started: WallTime) -> StatusView {
    let now = shell.now();
    let mut clusters = ClusterCounts::default();
    let mut machines = MachineCounts::default();
    let mut needs_person = Vec::new();
    for cluster in shell.core.clusters() {
        clusters.total += 1;
        *match shell.core.cluster_state(cluster, now) {
            ClusterState::Creating => &mut clusters.creating,
            ClusterState::Ready => &mut clusters.ready,
            ClusterState::Updating => &mut clusters.updating,
            ClusterState::Degraded => &mut clusters.degraded,
            ClusterState::Deleting => &mut clusters.deleting,
            ClusterState::Failed => &mut clusters.failed,
        } += 1;
        let name = &cluster.row.spec.name;
        let waits = shell.core.waiting(name, now);
        if waits.iter().any(WaitingOn::needs_person) {
            let observed = shell.core.observed(name, now);
            let blocked = waits.iter().filter(|wait| wait.needs_person());
            needs_person.extend(blocked.map(|wait| waiting_view(name, wait, &observed, cluster.row.created)));
        }
    }
    for machine in shell.core.machines() {
        machines.total += 1;
        machines.connected += u32::from(machine.session.is_some());
        machines.silent += u32::from(machine.silent);
        let ready =
            machine.heartbeat.is_some_and(|beat| beat.state == keelson_protocol::health::NodeState::Ready);
        let powered = matches!(machine.row.phase, MachinePhase::Enrolled { .. });
        machines.ready += u32::from(ready && powered && !machine.silent);
    }
    let mut operations = OperationCounts::default();
    for operation in shell.core.operations() {
        operations.running += u32::from(operation.state == OperationState::Running);
        operations.blocked += u32::from(matches!(operation.state, OperationState::Blocked { .. }));
    }
    let mut repair = repair::status(&shell.core, now);
    repair.not_well.truncate(NOT_WELL_SHOWN_MAX);
    StatusView {
        api_version: API_VERSION.to_owned(),
        kind: "Status".to_owned(),
        install,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: started.into(),
        clusters,
        machines,
        operations,
        repair: RepairSummary { paused: repair.paused, counts: repair.counts },
        not_well: repair.not_well,
        needs_person,
    }
}

fn events(shell: &Shell, query: &EventQuery) -> Result<EventBatch, StoreError> {
    let filter = EventFilter {
        range: match query.range {
            EventRange::After(after) => keelson_store::EventRange::After(after),
            EventRange::Newest => keelson_store::EventRange::Newest,
        },
        severity_min: match query.severity_min {
            SeverityView::Info => Severity::Info,
            SeverityView::Warning => Severity::Warning,
            SeverityView::Alarm => Severity::Alarm,
        },
        cluster: query.cluster.clone(),
        machine: query.machine.clone(),
        incident: match query.incident {
            OfIncident::Whatever => keelson_store::OfIncident::Whatever,
            OfIncident::Any => keelson_store::OfIncident::Any,
            OfIncident::Number(number) => keelson_store::OfIncident::Number(number),
        },
        count_max: u32::try_from(query.limit).unwrap_or(u32::MAX),
    };
    let items = shell.store.events(&filter)?.iter().map(event_view).collect();
    let oldest = shell.store.oldest_event()?.unwrap_or(0);
    Ok(EventBatch { items, oldest, newest: shell.core.newest_event() })
}

pub(crate) fn problem(error: &CommandError) -> Problem {
    match error {
        CommandError::Invalid { why } => Problem::spec_invalid("spec", why),
        CommandError::Spec(error) => spec_refused(error, SpecSource::Cluster),
        CommandError::UnknownPlan { name, known } => {
            Problem::plan_unknown(name, &known.split(", ").map(str::to_owned).collect::<Vec<_>>())
        }
        CommandError::UnknownRelease { name, known } => {
            Problem::release_unknown(name, &known.split(", ").map(str::to_owned).collect::<Vec<_>>())
        }
        CommandError::Exists { name, .. } => Problem::cluster_exists(name).because(error),
        CommandError::MachineNameTaken { .. } => Problem::name_invalid("spec.name", error),
        CommandError::NoCluster { name } => Problem::cluster_not_found(name),
        CommandError::NoMachine { .. }
        | CommandError::MachineBusy { .. }
        | CommandError::NoUse { .. }
        | CommandError::Held { .. } => repair::problem(error),
        CommandError::BeingDeleted { name } => Problem::being_deleted(name),
        CommandError::NoOperation { id } => Problem::operation_not_found(id),
        CommandError::Protected { name } => Problem::deletion_protected(name),
        // Those that have ended never get as far as the core.
        CommandError::NotCancellable { id, why } => Problem::operation_not_cancellable(id, why),
        CommandError::KeyReused { .. } => Problem::idempotency_key_reused(),
    }
}
