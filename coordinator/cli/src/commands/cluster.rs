//! `keelson cluster`.

use std::time::Duration;

use keelson_api::types::{
    ClusterPatchBody, ClusterSpecBody, ClusterSpecPatch, ClusterView, ExposeBody, KubeconfigRequestBody,
    KubeconfigView, MachineState, NewClusterBody, OperationView, PlanPreview, VersionView,
};
use keelson_api::{Code, ExitCode, Problem};
use serde_json::json;

use super::{Work, operation};
use crate::args::{
    ClusterCommand, CreateArgs, DeleteArgs, KubeconfigArgs, PreviewArgs, ShowArgs, Switch, UpdateArgs,
    WaitArgs,
};
use crate::client::{Call, Client, idempotency_key, segment};
use crate::duration::ago;
use crate::failure::Failure;
use crate::kubeconfig::{self, CurrentContext};
use crate::paint::Paint;
use crate::table::Table;
use crate::tree::{self, Detail};

/// `keelson cluster create|list|show|update|kubeconfig|delete`.
pub(super) async fn run(work: &mut Work<'_>, command: ClusterCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        ClusterCommand::Create(args) => create(work, &mut client, args).await,
        ClusterCommand::List => list(work, &mut client).await,
        ClusterCommand::Show(args) => show(work, &mut client, &args).await,
        ClusterCommand::Update(args) => update(work, &mut client, &args).await,
        ClusterCommand::Kubeconfig(args) => kubeconfig(work, &mut client, &args).await,
        ClusterCommand::Delete(args) => delete(work, &mut client, &args).await,
    }
}

fn path(name: &str) -> String {
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
            expose: args.expose.into_iter().map(|(name, node_port)| ExposeBody { name, node_port }).collect(),
            pod_network: args.pod_network,
            service_network: args.service_network,
            deletion_protection: args.deletion_protection,
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

fn print_preview(work: &mut Work<'_>, preview: &PlanPreview, args: &PreviewArgs) -> ExitCode {
    let now = work.session.now();
    let names: Vec<String> =
        preview.changes.iter().map(|change| format!("machine/{}", change.object)).collect();
    work.output().document(preview, &names, |_| tree::preview(preview, now));
    let differs = !preview.changes.is_empty();
    if args.exit_code && differs { ExitCode::Differences } else { ExitCode::Done }
}

/// Waits for the operation when asked to, or when a person looks on; says which.
async fn wait_or_leave(
    work: &mut Work<'_>,
    client: &mut Client,
    operation: &OperationView,
    args: &WaitArgs,
) -> Result<ExitCode, Failure> {
    let id = &operation.id;
    let asked = args.wait.is_some();
    let waits = asked || (!args.no_wait && work.session.stdout_is_terminal);
    if !waits {
        if !args.no_wait {
            let why = "not waiting: standard output is no terminal (--wait to wait)";
            work.output().hint(&format!("operation {id} started; {why}"));
        }
        work.output().hint(&format!("follow it: keelson operation watch {id}"));
        operation::show(work, operation);
        return Ok(ExitCode::Done);
    }
    let why = if asked { "waiting" } else { "waiting, as standard output is a terminal (--no-wait not to)" };
    work.output().hint(&format!(
        "operation {id} started; {why}; detach with Ctrl-C, re-attach: keelson operation watch {id}"
    ));
    let timeout: Option<Duration> = args.wait.flatten();
    let ended = operation::watch(work, client, id, timeout).await?;
    operation::result(work, &ended);
    Ok(ExitCode::Done)
}

async fn list(work: &mut Work<'_>, client: &mut Client) -> Result<ExitCode, Failure> {
    let list = client.all::<ClusterView>(&Call::get("clusters")).await?;
    let names: Vec<String> =
        list.items.iter().map(|cluster| format!("cluster/{}", cluster.spec.name)).collect();
    let (headers, now) = (work.headers(), work.session.now());
    let empty = "no clusters; make one: keelson cluster create NAME";
    work.output().list(&list, &names, headers, empty, |wide| {
        const HEAD: [&str; 10] = [
            "NAME",
            "STATE",
            "PLAN",
            "RELEASE",
            "READY",
            "AGE",
            "ENDPOINT",
            "GENERATION",
            "PROTECTED",
            "WAITS FOR",
        ];
        let mut table = Table::new(&HEAD[..if wide { 10 } else { 7 }]);
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
    let cluster: ClusterView = client.document(&Call::get(path(&args.name))).await?;
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    let name = format!("cluster/{}", cluster.spec.name);
    work.output().document(&cluster, &[name], |wide| {
        if args.explain {
            return tree::explain(&cluster, now, paint);
        }
        let detail = if args.all || wide { Detail::All } else { Detail::NotFine };
        tree::cluster_tree(&cluster, now, paint, detail)
    });
    let waits = !cluster.status.waiting.is_empty();
    if waits && !args.explain && work.for_people() {
        work.output().hint(&format!("what it waits for: keelson cluster show {} --explain", args.name));
    }
    Ok(ExitCode::Done)
}

async fn update(work: &mut Work<'_>, client: &mut Client, args: &UpdateArgs) -> Result<ExitCode, Failure> {
    let before: ClusterView = client.document(&Call::get(path(&args.name))).await?;
    let on = args.deletion_protection == Switch::On;
    let body = ClusterPatchBody { spec: ClusterSpecPatch { deletion_protection: Some(on) } };
    let call = Call::patch(path(&args.name)).header("if-match", quoted(&before.meta.etag)).json(&body);
    let cluster: ClusterView = client.document(&call).await?;
    let name = format!("cluster/{}", cluster.spec.name);
    work.output().document(&cluster, &[name], |_| {
        let protection = if on { "on" } else { "off" };
        format!("deletion protection of cluster {} is {protection}\n", cluster.spec.name)
    });
    Ok(ExitCode::Done)
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

async fn delete(work: &mut Work<'_>, client: &mut Client, args: &DeleteArgs) -> Result<ExitCode, Failure> {
    let name = &args.name;
    if args.preview.dry_run {
        let call = Call::delete(path(name)).query("dryRun", Some(true));
        let preview: PlanPreview = client.document(&call).await?;
        return Ok(print_preview(work, &preview, &args.preview));
    }
    let cluster: ClusterView = client.document(&Call::get(path(name))).await?;
    if !args.yes {
        confirm(work, client, &cluster)?;
    }
    let call = Call::delete(path(name)).header("if-match", quoted(&cluster.meta.etag));
    let operation: OperationView = client.document(&call).await?;
    let code = wait_or_leave(work, client, &operation, &args.wait).await?;
    let left = args.wait.wait.is_none() && (args.wait.no_wait || !work.session.stdout_is_terminal);
    if left {
        forget_kubeconfig(work, client, name).await;
    }
    Ok(code)
}

/// Names what would be destroyed and where, and lets a person type its name.
fn confirm(work: &mut Work<'_>, client: &Client, cluster: &ClusterView) -> Result<(), Failure> {
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
        return Err(problem.remedy(format!("when you are sure: keelson cluster delete {name} --yes")).into());
    }
    work.output().hint(&format!("This removes {what}."));
    work.output().hint("To go on, type the cluster's name:");
    let mut typed = String::new();
    if let Some(stdin) = work.session.stdin.as_mut() {
        stdin.read_line(&mut typed).map_err(|error| Failure::local("the answer cannot be read", &error))?;
    }
    if typed.trim() == name {
        return Ok(());
    }
    let what = format!("`{}` is not `{name}`; nothing was done", typed.trim());
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

async fn kubeconfig(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &KubeconfigArgs,
) -> Result<ExitCode, Failure> {
    let name = &args.name;
    let ttl_s = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    let call =
        Call::post(format!("{}:kubeconfig", path(name))).json(&KubeconfigRequestBody { ttl_s: Some(ttl_s) });
    let view: KubeconfigView = client.document(&call).await?;
    let text = view.kubeconfig.expose_secret();
    if args.print {
        work.output().document(&view, &[format!("cluster/{name}")], |_| text.to_owned());
        return Ok(ExitCode::Done);
    }
    let version: VersionView = client.document(&Call::get("version")).await?;
    let install = &version.install;
    let file = match &args.file {
        Some(file) if !file.exists() => {
            kubeconfig::write_new(file, name, install, text)?;
            file.clone()
        }
        file => {
            let file = match file {
                Some(file) => file.clone(),
                None => kubeconfig::target(work.session, name)?,
            };
            let current = if args.set_context { CurrentContext::Set } else { CurrentContext::Keep };
            kubeconfig::merge(&file, name, install, text, current)?;
            file
        }
    };
    let context = kubeconfig::entry_name(name);
    let document = json!({
        "apiVersion": keelson_api::types::API_VERSION,
        "kind": "KubeconfigWritten",
        "cluster": name,
        "file": file,
        "context": context,
        "expires": view.expires,
    });
    work.output().document(&document, &[format!("context/{context}")], |_| {
        format!("context {context} is in {} until {}\n", file.display(), view.expires)
    });
    if work.for_people() {
        let own =
            args.file.as_ref().map_or_else(String::new, |file| format!("--kubeconfig {} ", file.display()));
        work.output().hint(&format!("next: kubectl {own}--context {context} get nodes"));
    }
    Ok(ExitCode::Done)
}
