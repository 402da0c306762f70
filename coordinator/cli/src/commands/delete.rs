//! `keelson cluster delete`: one cluster by its name, or all that a selector chooses.
//!
//! Nothing is removed before everything was checked: the server is asked for a preview of each removal first, and
//! refuses there what it would refuse later.

use std::time::Duration;

use keelson_api::types::{ClusterView, ListView, OperationView, PlanPreview, VersionView};
use keelson_api::{Code, ExitCode, Problem};
use tokio::time::Instant;

use super::cluster::{Wait, announce, chosen, path, print_preview, quoted};
use super::{Work, operation};
use crate::args::DeleteArgs;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::kubeconfig;
use crate::paint::Paint;
use crate::tree;

/// `keelson cluster delete`.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &DeleteArgs,
) -> Result<ExitCode, Failure> {
    match (&args.target.name, &args.target.selector) {
        (Some(name), _) => one(work, client, name, args).await,
        (None, selector) => several(work, client, selector.as_deref().unwrap_or_default(), args).await,
    }
}

async fn one(
    work: &mut Work<'_>,
    client: &mut Client,
    name: &str,
    args: &DeleteArgs,
) -> Result<ExitCode, Failure> {
    if args.preview.dry_run {
        let preview = preview(client, name).await?;
        return Ok(print_preview(work, &preview, &args.preview));
    }
    let cluster: ClusterView = client.document(&Call::get(path(name))).await?;
    check_count(args.count, std::slice::from_ref(&cluster))?;
    if !args.yes {
        confirm(work, client, &cluster, &again(name))?;
    }
    let operation = remove(client, &cluster).await?;
    let wait = Wait::of(&args.wait, work);
    announce(work, &operation.id, wait);
    if wait.waits() {
        let ended = operation::watch(work, client, &operation.id, args.wait.wait.flatten()).await?;
        operation::result(work, &ended);
    } else {
        operation::show(work, &operation);
        forget_kubeconfig(work, client, name).await;
    }
    Ok(ExitCode::Done)
}

async fn several(
    work: &mut Work<'_>,
    client: &mut Client,
    selector: &str,
    args: &DeleteArgs,
) -> Result<ExitCode, Failure> {
    let clusters = chosen(client, selector).await?.items;
    let mut previews = Vec::new();
    for cluster in &clusters {
        previews.push(preview(client, &cluster.spec.name).await?);
    }
    if args.preview.dry_run {
        return Ok(print_previews(work, previews, args));
    }
    check_count(args.count, &clusters)?;
    match clusters.as_slice() {
        _ if args.yes => {}
        [cluster] => confirm(work, client, cluster, &again(&cluster.spec.name))?,
        clusters => confirm_count(work, client, clusters)?,
    }
    let wait = Wait::of(&args.wait, work);
    let mut operations = Vec::new();
    for cluster in &clusters {
        // What began goes on: its operation was announced before the next one is asked for.
        let operation = remove(client, cluster).await?;
        announce(work, &operation.id, wait);
        operations.push(operation);
    }
    if wait.waits() {
        operations = watch_all(work, client, &operations, args.wait.wait.flatten()).await?;
    } else {
        for cluster in &clusters {
            forget_kubeconfig(work, client, &cluster.spec.name).await;
        }
    }
    print_operations(work, operations);
    Ok(ExitCode::Done)
}

async fn preview(client: &mut Client, name: &str) -> Result<PlanPreview, Failure> {
    client.document(&Call::delete(path(name)).query("dryRun", Some(true))).await
}

async fn remove(client: &mut Client, cluster: &ClusterView) -> Result<OperationView, Failure> {
    let call = Call::delete(path(&cluster.spec.name)).header("if-match", quoted(&cluster.meta.etag));
    client.document(&call).await
}

/// Waits for one after the other; the timeout is for all of them together.
async fn watch_all(
    work: &mut Work<'_>,
    client: &mut Client,
    operations: &[OperationView],
    timeout: Option<Duration>,
) -> Result<Vec<OperationView>, Failure> {
    let begin = Instant::now();
    let mut ended = Vec::new();
    for operation in operations {
        let left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
        ended.push(operation::watch(work, client, &operation.id, left).await?);
    }
    Ok(ended)
}

fn print_previews(work: &mut Work<'_>, previews: Vec<PlanPreview>, args: &DeleteArgs) -> ExitCode {
    let now = work.session.now();
    let objects = previews.iter().flat_map(|preview| &preview.changes);
    let names: Vec<String> = objects.map(|change| format!("machine/{}", change.object)).collect();
    let list = list_of("PlanPreview", previews);
    work.output().document(&list, &names, |_| {
        list.items.iter().map(|preview| tree::preview(preview, now)).collect::<Vec<_>>().join("\n")
    });
    if args.preview.exit_code && !names.is_empty() { ExitCode::Differences } else { ExitCode::Done }
}

fn print_operations(work: &mut Work<'_>, operations: Vec<OperationView>) {
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    let names: Vec<String> = operations.iter().map(|item| format!("operation/{}", item.id)).collect();
    let list = list_of("Operation", operations);
    work.output().document(&list, &names, |_| {
        let text = |item: &OperationView| match item.done {
            true => format!("cluster {} is gone ({})\n", item.cluster, item.id),
            false => operation::text(item, now, paint),
        };
        list.items.iter().map(text).collect()
    });
}

fn list_of<T>(kind: &str, items: Vec<T>) -> ListView<T> {
    let (api_version, total) = (keelson_api::types::API_VERSION.to_owned(), items.len());
    ListView { api_version, kind: format!("{kind}List"), items, next_page_token: None, total }
}

/// A number that a person wrote guards against a selector that chooses more than they thought.
fn check_count(count: Option<usize>, clusters: &[ClusterView]) -> Result<(), Failure> {
    let found = clusters.len();
    let why = match count {
        Some(count) if count == found => return Ok(()),
        None if found == 1 => return Ok(()),
        Some(count) => format!("--count says {count}"),
        None => "several are removed only with --count".to_owned(),
    };
    let (clusters_word, names) = (if found == 1 { "cluster" } else { "clusters" }, names(clusters));
    let what = format!("this would remove {found} {clusters_word}: {names}");
    Err(Problem::new(Code::CountDiffers, what)
        .because(why)
        .remedy(format!("when you mean all of them, add: --count {found}"))
        .into())
}

fn names(clusters: &[ClusterView]) -> String {
    clusters.iter().map(|cluster| cluster.spec.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The command that removes a cluster unasked.
fn again(name: &str) -> String {
    format!("keelson cluster delete {name} --yes")
}

/// Names what would be destroyed and where, and lets a person type its name. `again` is the command that does not ask.
pub(super) fn confirm(
    work: &mut Work<'_>,
    client: &Client,
    cluster: &ClusterView,
    again: &str,
) -> Result<(), Failure> {
    let name = &cluster.spec.name;
    let machines = cluster.status.machines.len();
    let what = format!(
        "cluster {name} ({}, {machines} machine{} with disks) at coordinator {}",
        cluster.status.state,
        if machines == 1 { "" } else { "s" },
        client.server()
    );
    if !work.session.stdin_is_terminal {
        let problem = Problem::new(Code::ConfirmationMissing, format!("this would remove {what}"));
        return Err(problem.remedy(format!("when you are sure: {again}")).into());
    }
    work.output().hint(&format!("This removes {what}."));
    typed_is(work, "To go on, type the cluster's name:", name)
}

/// As [`confirm`] for several clusters, whose number is typed.
fn confirm_count(work: &mut Work<'_>, client: &Client, clusters: &[ClusterView]) -> Result<(), Failure> {
    let (count, names) = (clusters.len(), names(clusters));
    let machines: usize = clusters.iter().map(|cluster| cluster.status.machines.len()).sum();
    let server = client.server();
    let what = format!("{count} clusters ({names}; {machines} machines with disks) at coordinator {server}");
    if !work.session.stdin_is_terminal {
        let problem = Problem::new(Code::ConfirmationMissing, format!("this would remove {what}"));
        return Err(problem.remedy("when you are sure, add --yes").into());
    }
    work.output().hint(&format!("This removes {what}."));
    typed_is(work, "To go on, type how many clusters these are:", &count.to_string())
}

/// Asks a question on standard error and goes on only with the expected answer.
pub(super) fn typed_is(work: &mut Work<'_>, question: &str, expected: &str) -> Result<(), Failure> {
    work.output().hint(question);
    let mut typed = String::new();
    if let Some(stdin) = work.session.stdin.as_mut() {
        stdin.read_line(&mut typed).map_err(|error| Failure::local("the answer cannot be read", &error))?;
    }
    if typed.trim() == expected {
        return Ok(());
    }
    let what = format!("`{}` is not `{expected}`; nothing was done", typed.trim());
    Err(Failure::new(Code::ConfirmationWrong, what))
}

/// Removes the entries of a cluster that is gone from the user's kubeconfig files, as far as we made them. What cannot
/// be removed is told and stops nothing.
pub(super) async fn forget_kubeconfig(work: &mut Work<'_>, client: &mut Client, cluster: &str) {
    let files = kubeconfig::files(work.session);
    if files.iter().all(|file| !file.exists()) {
        return;
    }
    let version: VersionView = match client.document(&Call::get("version")).await {
        Ok(version) => version,
        Err(failure) => {
            let why = failure.problem.detail;
            work.output().hint(&format!("entries in your kubeconfig were left: {why}"));
            return;
        }
    };
    for file in files {
        match kubeconfig::remove(&file, cluster, &version.install) {
            Ok(true) => {
                let entry = kubeconfig::entry_name(cluster);
                work.output().hint(&format!("removed {entry} from {}", file.display()));
            }
            Ok(false) => {}
            Err(failure) => work.output().hint(&failure.to_string()),
        }
    }
}
