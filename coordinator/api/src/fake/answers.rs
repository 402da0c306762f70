//! [`Fleet`] on top of the fake's state.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use keelson_model::{ClusterSpec, OperationId, OperationKind, OperationState, Plan, PlanName, Severity};
use keelson_protocol::message::ShellFrame;
use keelson_protocol::{ClusterName, Generation, MachineId, wire};
use tokio::io::DuplexStream;
use tokio::sync::watch;

use super::cluster::{FakeCluster, Goal, blueprint};
use super::{BEGIN, FakeFleet, Fault, INSTALL, SECRET_MARKER, State, releases};
use crate::auth::Caller;
use crate::care::{patched_drain, repair_counts, repair_view};
use crate::catalogue::Code;
use crate::convert::{self, ClusterParts};
use crate::fleet::{
    Answer, ClusterChange, EventBatch, EventQuery, EventRange, Fleet, Follow, Idempotency, IfMatch,
    LogStream, LogsRequest, Pause, PoolSize, Protection, RepairWish, ShellPipe,
};
use crate::frames::{read_frame, write_frame};
use crate::plans::{SpecSource, plan_view, spec_refused};
use crate::problem::Problem;
use crate::query::{ClusterQuery, MachineQuery};
use crate::types::{
    API_VERSION, ClusterCounts, ClusterState, ClusterView, HealthView, KubeconfigView, MachineCounts,
    MachineState, MachineView, OperationCounts, OperationView, Page, PageRequest, PlanChangeView,
    PlanPreview, PlanView, ProtocolView, ReleaseView, RepairOptionsView, RepairStatusView, RepairSummary,
    RepairView, SecretText, ShellRequestBody, StatusView, Timestamp, VersionView,
};

fn ready<'a, T: Send + 'a>(answer: Result<T, Problem>) -> Answer<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl State {
    fn cluster_view(&self, cluster: &FakeCluster) -> ClusterView {
        let fault = self.fault.as_ref();
        let operation = self.operations.values().find(|operation| operation.id == cluster.operation);
        convert::cluster_view(&ClusterParts {
            spec: &cluster.spec,
            blueprint: Some(&cluster.blueprint),
            observed: &self.observed(cluster),
            report: Some(&self.report(cluster)),
            conditions: &cluster.conditions(fault),
            state: self.cluster_state(cluster),
            created: cluster.created,
            wanted: cluster.wanted(),
            operation,
            repair_paused: self.pause_of(&cluster.spec.name),
        })
    }

    pub(super) fn cluster(&self, name: &ClusterName) -> Result<&FakeCluster, Problem> {
        self.clusters.get(name).ok_or_else(|| Problem::cluster_not_found(name))
    }

    fn machine_views(&self, query: &MachineQuery) -> Vec<MachineView> {
        let mut views = Vec::new();
        for cluster in self.clusters.values() {
            let (observed, report) = (self.observed(cluster), self.report(cluster));
            for machine in cluster.blueprint.machines.values() {
                let waiting = &report.waiting;
                let view = convert::machine_view(
                    (&cluster.blueprint, cluster.spec.drain),
                    machine,
                    &observed,
                    waiting,
                    cluster.created,
                );
                if query.takes(&cluster.spec, machine, || view.summary.state) {
                    views.push(view);
                }
            }
        }
        views.sort_by(|a, b| a.summary.id.cmp(&b.summary.id));
        views
    }

    fn operation_view(&self, id: &OperationId) -> Result<OperationView, Problem> {
        let found = self.operations.values().find(|operation| operation.id == *id);
        let operation = found.ok_or_else(|| Problem::operation_not_found(id))?;
        let cluster = self.clusters.get(&operation.cluster).filter(|cluster| cluster.operation == *id);
        let metadata = cluster.map_or_else(Default::default, |cluster| {
            let (observed, report) = (self.observed(cluster), self.report(cluster));
            convert::operation_metadata(&cluster.blueprint, &observed, Some(&report), operation.created)
        });
        Ok(convert::operation_view(operation, metadata))
    }

    fn check_new(&self, spec: &ClusterSpec) -> Result<(), Problem> {
        let plan = self.plan(&spec.plan)?;
        let known: Vec<String> = releases().iter().map(|release| release.name.to_string()).collect();
        if !known.contains(&spec.release.to_string()) {
            return Err(Problem::release_unknown(&spec.release, &known));
        }
        spec.check(plan, super::infrastructure())
            .map_err(|error| spec_refused(&error, SpecSource::Cluster))?;
        if self.clusters.contains_key(&spec.name) {
            return Err(Problem::cluster_exists(&spec.name));
        }
        Ok(())
    }

    fn create(
        &mut self,
        spec: ClusterSpec,
        idempotency: Option<Idempotency>,
    ) -> Result<OperationId, Problem> {
        if let Some(idempotency) = &idempotency {
            let slot = (idempotency.caller.clone(), idempotency.key.clone());
            match self.keys.get(&slot) {
                Some((body, id)) if *body == idempotency.body_sha256 => return Ok(id.clone()),
                Some(_) => return Err(Problem::idempotency_key_reused()),
                None => {}
            }
        }
        if self.fault == Some(Fault::StoreFull) {
            return Err(Problem::from(Code::StoreUnavailable));
        }
        self.check_new(&spec)?;
        let plan = self.plan(&spec.plan)?.clone();
        let name = spec.name.clone();
        let id = self.start(OperationKind::CreateCluster, &name);
        self.clusters.insert(name, FakeCluster::new(spec, &plan, id.clone(), self.now));
        if let Some(Idempotency { key, caller, body_sha256 }) = idempotency {
            self.keys.insert((caller, key), (body_sha256, id.clone()));
        }
        Ok(id)
    }

    fn delete(&mut self, name: &ClusterName, if_match: &IfMatch) -> Result<OperationId, Problem> {
        let cluster = self.cluster(name)?;
        if cluster.goal == Goal::Gone {
            return Ok(cluster.operation.clone());
        }
        if_match.check(&cluster.etag())?;
        if cluster.spec.deletion_protection {
            return Err(Problem::deletion_protected(name));
        }
        let before = cluster.operation.clone();
        let now = self.now;
        if let Some(operation) = self.operation_mut(&before)
            && !operation.is_done()
        {
            let left = "the cluster is being removed".to_owned();
            operation.state = OperationState::Cancelled { at: now, left };
        }
        let id = self.start(OperationKind::DeleteCluster, name);
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.remove(id.clone(), now);
        }
        Ok(id)
    }

    /// As the coordinator: only a create of a cluster that nobody uses yet can be cancelled, and leaves nothing behind.
    fn cancel(&mut self, id: &OperationId) -> Result<(), Problem> {
        let found = self.operations.values().find(|operation| operation.id == *id);
        let operation = found.ok_or_else(|| Problem::operation_not_found(id))?;
        let refuse = |why: &str| Err(Problem::operation_not_cancellable(id, why));
        let (name, now) = (operation.cluster.clone(), self.now);
        match (&operation.state, operation.kind) {
            (OperationState::Cancelled { .. }, _) => return Ok(()),
            _ if operation.is_done() => return Err(Problem::operation_ended(id)),
            (_, OperationKind::DeleteCluster) => {
                return refuse("machines that were removed do not come back; create the cluster again");
            }
            (_, OperationKind::ScaleCluster) => {
                return refuse("scale the pool to the size that it shall have instead");
            }
            (_, OperationKind::CreateCluster) if self.cluster(&name)?.was_ready() => {
                return refuse(
                    "its API server has answered, and somebody may use it; to remove it, delete the cluster",
                );
            }
            (_, OperationKind::CreateCluster) => {}
        }
        if self.cluster(&name)?.spec.deletion_protection {
            return Err(Problem::deletion_protected(&name));
        }
        if let Some(operation) = self.operation_mut(id) {
            let left = "what was made so far is being removed".to_owned();
            operation.state = OperationState::Cancelled { at: now, left };
        }
        self.delete(&name, &IfMatch::Any).map(drop)
    }

    fn update(
        &mut self,
        name: &ClusterName,
        if_match: &IfMatch,
        change: ClusterChange,
    ) -> Result<ClusterView, Problem> {
        let cluster = self.cluster(name)?;
        if_match.check(&cluster.etag())?;
        let mut spec = cluster.spec.clone();
        if let Some(patch) = change.labels {
            spec.labels = convert::patched_labels(&spec, patch)?;
        }
        if let Some(protection) = change.protection {
            spec.deletion_protection = protection == Protection::On;
        }
        spec.drain = patched_drain(spec.drain, change.drain.unwrap_or_default());
        spec.check_drain().map_err(|error| spec_refused(&error, SpecSource::Cluster))?;
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.spec = spec;
        }
        self.cluster(name).map(|cluster| self.cluster_view(cluster))
    }

    fn kubeconfig(
        &mut self,
        name: &ClusterName,
        ttl: Duration,
        caller: &Caller,
    ) -> Result<KubeconfigView, Problem> {
        let cluster = self.cluster(name)?;
        if !cluster.is_there() || cluster.goal == Goal::Gone {
            return Err(Problem::cluster_not_ready(name, "its API server does not answer"));
        }
        let expires = Timestamp(self.now.plus(ttl));
        let outcome = format!("a kubeconfig of cluster-admin until {expires}");
        self.note_by(&caller.0, name, Severity::Info, "KubeconfigIssued", &outcome);
        Ok(KubeconfigView {
            api_version: API_VERSION.to_owned(),
            kind: "Kubeconfig".to_owned(),
            cluster: name.to_string(),
            expires,
            kubeconfig: SecretText::new(kubeconfig_text(name)),
        })
    }

    fn status(&self) -> StatusView {
        let mut clusters = ClusterCounts::default();
        for cluster in self.clusters.values() {
            clusters.total += 1;
            match self.cluster_state(cluster) {
                ClusterState::Creating => clusters.creating += 1,
                ClusterState::Ready => clusters.ready += 1,
                ClusterState::Updating => clusters.updating += 1,
                ClusterState::Degraded => clusters.degraded += 1,
                ClusterState::Deleting => clusters.deleting += 1,
                ClusterState::Failed => clusters.failed += 1,
            }
        }
        let mut machines = MachineCounts::default();
        let mut needs_person = Vec::new();
        for machine in self.machine_views(&MachineQuery::everything(PageRequest::first())) {
            machines.total += 1;
            machines.connected += u32::from(machine.summary.agent.connected);
            machines.ready += u32::from(machine.summary.state == MachineState::Ready);
            machines.silent += u32::from(machine.summary.state == MachineState::Silent);
            needs_person.extend(machine.waiting.into_iter().filter(|wait| wait.needs_person));
        }
        let mut operations = OperationCounts::default();
        for operation in self.operations.values() {
            operations.running += u32::from(operation.state == OperationState::Running);
            operations.blocked += u32::from(matches!(operation.state, OperationState::Blocked { .. }));
        }
        StatusView {
            api_version: API_VERSION.to_owned(),
            kind: "Status".to_owned(),
            install: INSTALL.to_owned(),
            version: "0.1.0".to_owned(),
            started: BEGIN.into(),
            clusters,
            machines,
            operations,
            repair: RepairSummary { paused: self.pauses(), counts: repair_counts(&self.not_well()) },
            not_well: self.not_well(),
            needs_person,
        }
    }

    fn events(&self, query: &EventQuery) -> EventBatch {
        let severity = |event: &keelson_model::FleetEvent| convert::event_view(event).severity;
        let matching = self.events.iter().filter(|event| {
            query.cluster.as_ref().is_none_or(|cluster| event.cluster.as_ref() == Some(cluster))
                && query.machine.as_ref().is_none_or(|machine| event.machine.as_ref() == Some(machine))
                && query.incident.takes(event.incident)
                && severity(event) >= query.severity_min
        });
        let items: Vec<_> = match query.range {
            EventRange::After(after) => matching.filter(|event| event.id > after).take(query.limit).collect(),
            EventRange::Newest => {
                let mut newest: Vec<_> = matching.rev().take(query.limit).collect();
                newest.reverse();
                newest
            }
        };
        EventBatch {
            items: items.into_iter().map(convert::event_view).collect(),
            oldest: self.events.first().map_or(0, |event| event.id),
            newest: self.events.last().map_or(0, |event| event.id),
        }
    }
}

impl Fleet for FakeFleet {
    fn version(&self) -> Answer<'_, VersionView> {
        ready(Ok(VersionView {
            api_version: API_VERSION.to_owned(),
            kind: "Version".to_owned(),
            version: "0.1.0".to_owned(),
            install: INSTALL.to_owned(),
            api_versions: vec!["v1".to_owned()],
            protocol: ProtocolView { min: wire::VERSION_MIN.0, max: wire::VERSION_MAX.0 },
        }))
    }

    fn status(&self) -> Answer<'_, StatusView> {
        ready(Ok(self.lock().status()))
    }

    fn health(&self) -> Answer<'_, HealthView> {
        let full = self.lock().fault == Some(Fault::StoreFull);
        let problems =
            if full { vec!["the store cannot be written: disk full".to_owned()] } else { Vec::new() };
        ready(Ok(HealthView { ready: problems.is_empty(), problems }))
    }

    fn metrics(&self) -> Answer<'_, String> {
        let clusters = self.lock().clusters.len();
        ready(Ok(format!("# TYPE keelson_clusters gauge\nkeelson_clusters {clusters}\n")))
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn clusters(&self, query: ClusterQuery) -> Answer<'_, Page<ClusterView>> {
        let state = self.lock();
        let page = query.cut(
            state.clusters.values(),
            |cluster| (&cluster.spec, cluster.created),
            |cluster| state.cluster_state(cluster),
            |cluster| state.cluster_view(cluster),
        );
        ready(Ok(page))
    }

    fn cluster(&self, name: ClusterName) -> Answer<'_, ClusterView> {
        let state = self.lock();
        ready(state.cluster(&name).map(|cluster| state.cluster_view(cluster)))
    }

    fn preview_create(&self, spec: ClusterSpec) -> Answer<'_, PlanPreview> {
        let state = self.lock();
        ready(state.check_new(&spec).and_then(|()| {
            let next = blueprint(&spec, state.plan(&spec.plan)?);
            Ok(convert::preview(&spec.name, &next.diff(None), Some(next.generation)))
        }))
    }

    fn create_cluster(
        &self,
        spec: ClusterSpec,
        idempotency: Option<Idempotency>,
    ) -> Answer<'_, OperationView> {
        let mut state = self.lock();
        let answer = state.create(spec, idempotency).and_then(|id| state.operation_view(&id));
        drop(state);
        self.touch();
        ready(answer)
    }

    fn update_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        change: ClusterChange,
    ) -> Answer<'_, ClusterView> {
        ready(self.lock().update(&name, &if_match, change))
    }

    fn preview_delete(&self, name: ClusterName) -> Answer<'_, PlanPreview> {
        let state = self.lock();
        ready(state.cluster(&name).and_then(|cluster| {
            if cluster.spec.deletion_protection {
                return Err(Problem::deletion_protected(&name));
            }
            let mut none = cluster.blueprint.clone();
            none.generation = Generation(2);
            none.machines.clear();
            Ok(convert::preview(&name, &none.diff(Some(&cluster.blueprint)), None))
        }))
    }

    fn delete_cluster(&self, name: ClusterName, if_match: IfMatch) -> Answer<'_, OperationView> {
        let mut state = self.lock();
        let answer = state.delete(&name, &if_match).and_then(|id| state.operation_view(&id));
        drop(state);
        self.touch();
        ready(answer)
    }

    fn preview_scale(&self, name: ClusterName, size: PoolSize) -> Answer<'_, PlanPreview> {
        ready(self.lock().preview_scale(&name, &size))
    }

    fn scale_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        size: PoolSize,
    ) -> Answer<'_, OperationView> {
        let mut state = self.lock();
        let answer = state.scale(&name, &if_match, &size).and_then(|id| state.operation_view(&id));
        drop(state);
        self.touch();
        ready(answer)
    }

    fn kubeconfig(&self, name: ClusterName, ttl: Duration, caller: Caller) -> Answer<'_, KubeconfigView> {
        ready(self.lock().kubeconfig(&name, ttl, &caller))
    }

    fn machines(&self, query: MachineQuery) -> Answer<'_, Page<MachineView>> {
        let views = self.lock().machine_views(&query);
        ready(Ok(Page::upwards(&views, &query.page, |view| view.summary.id.clone(), Clone::clone)))
    }

    fn machine(&self, id: MachineId) -> Answer<'_, MachineView> {
        let mut state = self.lock();
        let views = state.machine_views(&MachineQuery::everything(PageRequest::first()));
        let found = views.into_iter().find(|view| view.summary.id == id.as_str());
        // Reading is what moves the fake on.
        if state.is_under_repair(&id) {
            state.tick();
            drop(state);
            self.touch();
        }
        ready(found.ok_or_else(|| Problem::machine_not_found(&id)))
    }

    fn repair_options(&self, id: MachineId) -> Answer<'_, RepairOptionsView> {
        ready(self.lock().repair_options(&id))
    }

    fn preview_repair(&self, id: MachineId, wish: RepairWish) -> Answer<'_, RepairView> {
        ready(self.lock().preview_repair(&id, &wish).map(|preview| repair_view(&preview, None)))
    }

    fn repair_machine(&self, id: MachineId, wish: RepairWish, caller: Caller) -> Answer<'_, RepairView> {
        let answer = self.lock().repair(&id, &wish, &caller);
        self.touch();
        ready(answer)
    }

    fn repair_status(&self) -> Answer<'_, RepairStatusView> {
        ready(Ok(self.lock().repair_status()))
    }

    fn pause_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView> {
        let answer = self.lock().set_paused(pause, &caller, true);
        self.touch();
        ready(answer)
    }

    fn resume_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView> {
        let answer = self.lock().set_paused(pause, &caller, false);
        self.touch();
        ready(answer)
    }

    fn machine_logs(&self, id: MachineId, request: LogsRequest) -> Answer<'_, LogStream> {
        Box::pin(async move {
            let machine = self.machine(id.clone()).await?;
            if !machine.summary.agent.connected {
                return Err(Problem::agent_away(&id));
            }
            let unit = request.unit.unwrap_or_else(|| "all".to_owned());
            let mut lines = vec![Ok(Bytes::from(format!("{id} {unit}: {} lines\n", request.lines)))];
            if request.follow == Follow::Yes {
                lines.push(Ok(Bytes::from_static(b"one more\n")));
            }
            Ok(Box::pin(stream::iter(lines)) as LogStream)
        })
    }

    fn machine_shell(
        &self,
        id: MachineId,
        request: ShellRequestBody,
        caller: Caller,
    ) -> Answer<'_, Box<dyn ShellPipe>> {
        Box::pin(async move {
            let machine = self.machine(id.clone()).await?;
            if !machine.summary.agent.connected {
                return Err(Problem::agent_away(&id));
            }
            let cluster = ClusterName::new(machine.cluster).map_err(Problem::internal)?;
            let program = request.command.first().map_or("root's shell", String::as_str);
            let outcome = format!("{program} on {id}");
            self.lock().note_by(&caller.0, &cluster, Severity::Info, "ShellOpened", &outcome);
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(shell(far, request));
            Ok(Box::new(near) as Box<dyn ShellPipe>)
        })
    }

    fn operations(&self, cluster: Option<ClusterName>, page: PageRequest) -> Answer<'_, Page<OperationView>> {
        let state = self.lock();
        let newest_first = state.operations.iter().rev();
        let of_cluster: Vec<(u64, OperationId)> = newest_first
            .filter(|(_, operation)| cluster.as_ref().is_none_or(|cluster| operation.cluster == *cluster))
            .map(|(number, operation)| (*number, operation.id.clone()))
            .collect();
        let key = |(number, _): &(u64, OperationId)| format!("{number:020}");
        ready(Ok(Page::downwards(&of_cluster, &page, key, |(_, id)| {
            state.operation_view(id).expect("it was listed")
        })))
    }

    fn operation(&self, id: OperationId) -> Answer<'_, OperationView> {
        let mut state = self.lock();
        let before = state.operation_view(&id);
        state.tick();
        drop(state);
        self.touch();
        ready(before)
    }

    fn cancel_operation(&self, id: OperationId) -> Answer<'_, OperationView> {
        let mut state = self.lock();
        let answer = state.cancel(&id).and_then(|()| state.operation_view(&id));
        drop(state);
        self.touch();
        ready(answer)
    }

    fn plans(&self) -> Answer<'_, Vec<PlanView>> {
        let state = self.lock();
        ready(Ok(state.plans().map(|plan| plan_view(plan, state.is_built_in(&plan.name))).collect()))
    }

    fn preview_plan(&self, plan: Plan) -> Answer<'_, PlanChangeView> {
        ready(self.lock().preview_plan(&plan))
    }

    fn apply_plan(&self, plan: Plan, if_match: IfMatch, caller: Caller) -> Answer<'_, PlanChangeView> {
        let answer = self.lock().apply_plan(plan, &if_match, &caller);
        self.touch();
        ready(answer)
    }

    fn delete_plan(&self, name: PlanName, caller: Caller) -> Answer<'_, PlanChangeView> {
        let answer = self.lock().delete_plan(&name, &caller);
        self.touch();
        ready(answer)
    }

    fn releases(&self) -> Answer<'_, Vec<ReleaseView>> {
        let all = releases();
        let default = all.last().expect("there are two").name.clone();
        ready(Ok(all.iter().map(|release| convert::release_view(release, &default)).collect()))
    }

    fn events(&self, query: EventQuery) -> Answer<'_, EventBatch> {
        ready(Ok(self.lock().events(&query)))
    }
}

fn kubeconfig_text(name: &ClusterName) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: keelson-{name}\n  cluster:\n    server: https://127.0.0.1:26443\n\
         \x20   certificate-authority-data: RkFLRQ==\nusers:\n- name: keelson-{name}\n  user:\n\
         \x20   client-certificate-data: RkFLRQ==\n    client-key-data: {SECRET_MARKER}\ncontexts:\n\
         - name: keelson-{name}\n  context:\n    cluster: keelson-{name}\n    user: keelson-{name}\n\
         current-context: keelson-{name}\n"
    )
}

/// What an interactive shell of the fake says first.
const GREETING: &[u8] = b"fake shell\r\n";

/// A shell that knows `echo WORDS`, `exit CODE`, `poweroff` and, without a command, gives back what it gets until a `q` comes.
async fn shell(mut stream: DuplexStream, request: ShellRequestBody) {
    let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
    let code = match words.as_slice() {
        // The machine goes, and says no more.
        ["poweroff"] => return,
        ["exit", code] => code.parse().unwrap_or(2),
        ["echo", words @ ..] => {
            let text = format!("{}\n", words.join(" ")).into_bytes();
            let _ = write_frame(&mut stream, &ShellFrame::Data(text)).await;
            0
        }
        _ => interactive(&mut stream).await,
    };
    let _ = write_frame(&mut stream, &ShellFrame::Exit { code }).await;
}

async fn interactive(stream: &mut DuplexStream) -> i32 {
    if write_frame(stream, &ShellFrame::Data(GREETING.to_vec())).await.is_err() {
        return 1;
    }
    while let Ok(Some(frame)) = read_frame(stream).await {
        let answer = match frame {
            ShellFrame::Data(keys) if keys.contains(&b'q') => return 7,
            ShellFrame::Data(keys) => keys,
            ShellFrame::Resize { rows, columns } => format!("{rows}x{columns}").into_bytes(),
            ShellFrame::Exit { .. } | ShellFrame::Error(_) => return 1,
            ShellFrame::EndOfInput => return 0,
        };
        if write_frame(stream, &ShellFrame::Data(answer)).await.is_err() {
            return 1;
        }
    }
    1
}
