//! `keelson cluster`: making, listing, showing, changing. Access and removal have their own files.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_api::types::{
    ClusterPatchBody, ClusterSpecBody, ClusterSpecPatch, ClusterView, ExposeBody, ListView, MachineState,
    NewClusterBody, OperationView, PlanPreview,
};
use keelson_api::{Code, ExitCode, Problem};

use super::{Work, access, check, delete, filtered, operation, scale, sort};
use crate::args::{
    ClusterCommand, ClusterListArgs, CreateArgs, FilterArgs, PreviewArgs, ShowArgs, Switch, UpdateArgs,
    WaitArgs,
};
use crate::client::{Call, Client, idempotency_key, segment};
use crate::duration::ago;
use crate::failure::Failure;
use crate::paint::Paint;
use crate::table::Table;
use crate::tree::{self, Detail};

/// `keelson cluster create|list|show|update|scale|check|kubeconfig|delete`.
pub(super) async fn run(work: &mut Work<'_>, command: ClusterCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        ClusterCommand::Create(args) => create(work, &mut client, args).await,
        ClusterCommand::List(args) => list(work, &mut client, &args).await,
        ClusterCommand::Show(args) => show(work, &mut client, &args).await,
        ClusterCommand::Update(args) => update(work, &mut client, &args).await,
        ClusterCommand::Scale(args) => scale::run(work, &mut client, &args).await,
        ClusterCommand::Check(args) => check::run(work, &mut client, &args).await,
        ClusterCommand::Kubeconfig(args) => access::run(work, &mut client, &args).await,
        ClusterCommand::Delete(args) => delete::run(work, &mut client, &args).await,
    }
}

/// Path of a cluster below `/v1/`.
pub(super) fn path(name: &str) -> String {
    format!("clusters/{}", segment(name))
}

async fn create(work: &mut Work<'_>, client: &mut Client, args: CreateArgs) -> Result<ExitCode, Failure> {
    let body = NewClusterBody {
        api_version: None,
        kind: None,
        spec: ClusterSpecBody {
            name: args.name.clone(),
            plan: args.plan,
            release: args.release,
            workers: args.workers,
            pools: pools(args.pool)?,
            expose: args.expose.into_iter().map(|(name, node_port)| ExposeBody { name, node_port }).collect(),
            pod_network: args.pod_network,
            service_network: args.service_network,
            deletion_protection: args.deletion_protection,
            drain: None,
            labels: args.label.into_iter().collect(),
        },
    };
    let call = Call::post("clusters").json(&body);
    if args.preview.dry_run {
        let preview: PlanPreview = client.document(&call.query("dryRun", Some(true))).await?;
        return Ok(print_preview(work, &preview, &args.preview));
    }
    let call = call.header("idempotency-key", idempotency_key());
    let operation: OperationView = client.document(&call).await?;
    wait_or_leave(work, client, &operation, &args.wait).await
}

/// Sizes by pool. One that is named twice was meant to be another one.
fn pools(given: Vec<(String, u16)>) -> Result<BTreeMap<String, u16>, Failure> {
    let mut pools = BTreeMap::new();
    for (name, count) in given {
        if let Some(before) = pools.insert(name.clone(), count) {
            let what = format!("--pool {name}={before} and --pool {name}={count} cannot both hold");
            return Err(Problem::new(Code::CommandLine, what)
                .remedy(format!("name each pool once: --pool {name}=N"))
                .into());
        }
    }
    Ok(pools)
}

/// Prints what a change would do.
pub(super) fn print_preview(work: &mut Work<'_>, preview: &PlanPreview, args: &PreviewArgs) -> ExitCode {
    print_preview_noted(work, preview, args, "")
}

/// As [`print_preview`], with a note for people.
pub(super) fn print_preview_noted(
    work: &mut Work<'_>,
    preview: &PlanPreview,
    args: &PreviewArgs,
    note: &str,
) -> ExitCode {
    let now = work.session.now();
    let names: Vec<String> =
        preview.changes.iter().map(|change| format!("machine/{}", change.object)).collect();
    work.output().document(preview, &names, |_| tree::preview(preview, now) + note);
    let differs = !preview.changes.is_empty();
    if args.exit_code && differs { ExitCode::Differences } else { ExitCode::Done }
}

/// Whether a command waits for what it began, and why, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Asked,
    PersonLooksOn,
    NotAsked,
    Refused,
}

impl Wait {
    /// Waits when asked to, or when a person looks on.
    pub(super) fn of(args: &WaitArgs, work: &Work<'_>) -> Self {
        match (args.wait.is_some(), args.no_wait, work.session.stdout_is_terminal) {
            (true, _, _) => Self::Asked,
            (false, true, _) => Self::Refused,
            (false, false, true) => Self::PersonLooksOn,
            (false, false, false) => Self::NotAsked,
        }
    }

    /// Whether it waits.
    pub(super) fn waits(self) -> bool {
        matches!(self, Self::Asked | Self::PersonLooksOn)
    }
}

/// Says that an operation began, whether it is waited for, and how to come back to it.
pub(super) fn announce(work: &mut Work<'_>, id: &str, wait: Wait) {
    let why = match wait {
        Wait::Asked => "waiting",
        Wait::PersonLooksOn => "waiting, as standard output is a terminal (--no-wait not to)",
        Wait::NotAsked => "not waiting: standard output is no terminal (--wait to wait)",
        Wait::Refused => "",
    };
    if wait.waits() {
        work.output().hint(&format!(
            "operation {id} started; {why}; detach with Ctrl-C, re-attach: keelson operation watch {id}"
        ));
        return;
    }
    if !why.is_empty() {
        work.output().hint(&format!("operation {id} started; {why}"));
    }
    work.output().hint(&format!("follow it: keelson operation watch {id}"));
}

/// Waits for the operation when asked to, or when a person looks on; says which.
pub(super) async fn wait_or_leave(
    work: &mut Work<'_>,
    client: &mut Client,
    operation: &OperationView,
    args: &WaitArgs,
) -> Result<ExitCode, Failure> {
    let wait = Wait::of(args, work);
    announce(work, &operation.id, wait);
    if !wait.waits() {
        operation::show(work, operation);
        return Ok(ExitCode::Done);
    }
    let timeout: Option<Duration> = args.wait.flatten();
    let ended = operation::watch(work, client, &operation.id, timeout).await?;
    operation::result(work, &ended);
    Ok(ExitCode::Done)
}

/// All clusters that a selector chooses; none is a failure, because something was named that is not there.
pub(super) async fn chosen(client: &mut Client, selector: &str) -> Result<ListView<ClusterView>, Failure> {
    let call = Call::get("clusters").query("selector", Some(selector));
    let list = client.all::<ClusterView>(&call).await?;
    if list.items.is_empty() {
        let what = format!("no cluster has the labels `{selector}`");
        return Err(Problem::new(Code::ClusterNotFound, what)
            .remedy("look at the labels: keelson cluster list -o wide")
            .into());
    }
    Ok(list)
}

async fn list(work: &mut Work<'_>, client: &mut Client, args: &ClusterListArgs) -> Result<ExitCode, Failure> {
    let mut list = client.all::<ClusterView>(&filtered(Call::get("clusters"), &args.filter)).await?;
    sort(&mut list.items, &args.sort)?;
    let names: Vec<String> =
        list.items.iter().map(|cluster| format!("cluster/{}", cluster.spec.name)).collect();
    let now = work.session.now();
    let empty = match args.filter {
        FilterArgs { selector: None, state: None, text: None } => {
            "no clusters; make one: keelson cluster create NAME"
        }
        _ => "no clusters that fit; all of them: keelson cluster list",
    };
    work.output().list(&list, &names, empty, |wide| {
        const HEAD: [&str; 11] = [
            "NAME",
            "STATE",
            "PLAN",
            "RELEASE",
            "READY",
            "AGE",
            "ENDPOINT",
            "GENERATION",
            "PROTECTED",
            "LABELS",
            "WAITS FOR",
        ];
        let mut table = Table::new(&HEAD[..if wide { 11 } else { 7 }]);
        for cluster in &list.items {
            let status = &cluster.status;
            let ready = status.machines.iter().filter(|machine| machine.state == MachineState::Ready).count();
            let mut cells = vec![
                status.name.clone(),
                status.state.to_string(),
                cluster.spec.plan.clone(),
                status.release.clone(),
                format!("{ready}/{}", status.machines.len()),
                ago(now, status.created.0),
                status.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
            ];
            if wide {
                let protected = if cluster.spec.deletion_protection { "yes" } else { "no" };
                cells.extend([
                    cluster.meta.generation.to_string(),
                    protected.to_owned(),
                    tree::labels(&cluster.spec.labels),
                    status.waiting.first().map_or_else(String::new, |wait| wait.text.clone()),
                ]);
            }
            table.row(cells);
        }
        table
    });
    Ok(ExitCode::Done)
}

async fn show(work: &mut Work<'_>, client: &mut Client, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    let text = |cluster: &ClusterView, wide: bool| {
        if args.explain {
            return tree::explain(cluster, now, paint);
        }
        let detail = if args.all || wide { Detail::All } else { Detail::NotFine };
        tree::cluster_tree(cluster, now, paint, detail)
    };
    let name = |cluster: &ClusterView| format!("cluster/{}", cluster.spec.name);
    let mut waiting = Vec::new();
    let mut note = |cluster: &ClusterView| {
        if !cluster.status.waiting.is_empty() {
            waiting.push(cluster.spec.name.clone());
        }
    };
    if let Some(selector) = &args.target.selector {
        let list = chosen(client, selector).await?;
        let names: Vec<String> = list.items.iter().map(name).collect();
        list.items.iter().for_each(&mut note);
        work.output().document(&list, &names, |wide| {
            list.items.iter().map(|cluster| text(cluster, wide)).collect::<Vec<_>>().join("\n")
        });
    } else {
        let asked = args.target.name.as_deref().unwrap_or_default();
        let cluster: ClusterView = client.document(&Call::get(path(asked))).await?;
        note(&cluster);
        work.output().document(&cluster, &[name(&cluster)], |wide| text(&cluster, wide));
    }
    if let Some(first) = waiting.first().filter(|_| !args.explain && work.for_people()) {
        work.output().hint(&format!("what it waits for: keelson cluster show {first} --explain"));
    }
    Ok(ExitCode::Done)
}

async fn update(work: &mut Work<'_>, client: &mut Client, args: &UpdateArgs) -> Result<ExitCode, Failure> {
    let before: ClusterView = client.document(&Call::get(path(&args.name))).await?;
    let labels: BTreeMap<String, Option<String>> = args.label.iter().cloned().collect();
    let body = ClusterPatchBody {
        spec: ClusterSpecPatch {
            deletion_protection: args.deletion_protection.map(|switch| switch == Switch::On),
            labels: if labels.is_empty() { None } else { Some(Some(labels)) },
            drain: args.drain.body(),
        },
    };
    let call = Call::patch(path(&args.name)).header("if-match", quoted(&before.meta.etag)).json(&body);
    let cluster: ClusterView = client.document(&call).await?;
    let name = format!("cluster/{}", cluster.spec.name);
    work.output().document(&cluster, &[name], |_| {
        let (mut text, name) = (String::new(), &cluster.spec.name);
        if args.deletion_protection.is_some() {
            let protection = if cluster.spec.deletion_protection { "on" } else { "off" };
            text += &format!("deletion protection of cluster {name} is {protection}\n");
        }
        if !args.label.is_empty() {
            let labels = tree::labels(&cluster.spec.labels);
            let labels = if labels.is_empty() { "none" } else { &labels };
            text += &format!("labels of cluster {name}: {labels}\n");
        }
        if args.drain.body().is_some() {
            text += &format!("drains of cluster {name}: {}\n", tree::drain(cluster.spec.drain));
        }
        text
    });
    Ok(ExitCode::Done)
}

/// An entity tag as headers have it.
pub(super) fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}
