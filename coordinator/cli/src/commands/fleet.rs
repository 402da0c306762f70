//! `keelson status` and `keelson version`.

use std::fmt::Write;

use keelson_api::types::{StatusView, VersionView};
use keelson_api::{Code, ExitCode};
use serde_json::json;

use super::Work;
use crate::client::Call;
use crate::duration::ago;
use crate::failure::Failure;
use crate::paint::Paint;
use crate::tree;

/// `keelson status`.
pub(super) async fn status(work: &mut Work<'_>) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    let status: StatusView = client.document(&Call::get("status")).await?;
    let (now, server) = (work.session.now(), client.server().to_owned());
    let paint = Paint::stdout(work.session);
    let name = format!("installation/{}", status.install);
    work.output().document(&status, &[name], |_| {
        let (clusters, machines) = (&status.clusters, &status.machines);
        let mut text = format!(
            "installation {}  version {}  at {server}  up {}\n",
            status.install,
            status.version,
            ago(now, status.started.0)
        );
        for pause in &status.repair.paused {
            tree::paused_lines(&mut text, pause, now, paint);
        }
        let _ = writeln!(
            text,
            "clusters    {} total: {} ready, {} creating, {} updating, {} degraded, {} deleting, {} failed",
            clusters.total,
            clusters.ready,
            clusters.creating,
            clusters.updating,
            clusters.degraded,
            clusters.deleting,
            clusters.failed
        );
        let _ = writeln!(
            text,
            "machines    {} total: {} ready, {} connected, {} silent",
            machines.total, machines.ready, machines.connected, machines.silent
        );
        let operations = &status.operations;
        let _ = writeln!(text, "operations  {} running, {} blocked", operations.running, operations.blocked);
        if !status.not_well.is_empty() {
            let counts = &status.repair.counts;
            let (all, acting, held) = (counts.not_well, counts.acting, counts.held);
            let machines = if all == 1 { "machine" } else { "machines" };
            let _ = writeln!(text, "not well    {all} {machines}: {acting} being repaired, {held} held back");
            for machine in &status.not_well {
                let _ = writeln!(text, "{}", tree::not_well_line(machine, now));
            }
            let _ = writeln!(text, "  what speaks for it, and what is done: keelson why MACHINE");
        }
        if !status.needs_person.is_empty() {
            let _ = writeln!(text, "needs a person:");
            for wait in &status.needs_person {
                tree::waiting_lines(&mut text, wait, now);
            }
        }
        text
    });
    Ok(ExitCode::Done)
}

/// `keelson version`.
pub(super) async fn version(work: &mut Work<'_>, client_only: bool) -> Result<ExitCode, Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let coordinator = if client_only { None } else { coordinator_version(work).await? };
    let document = json!({
        "apiVersion": keelson_api::types::API_VERSION,
        "kind": "Versions",
        "client": { "version": own, "api": "v1" },
        "coordinator": coordinator,
    });
    work.output().document(&document, &[format!("version/{own}")], |_| {
        let mut text = format!("keelson      {own}\n");
        if let Some(coordinator) = &coordinator {
            let (version, install) = (&coordinator.version, &coordinator.install);
            let (min, max) = (coordinator.protocol.min, coordinator.protocol.max);
            let _ = writeln!(
                text,
                "coordinator  {version}  installation {install}  link protocol {min} to {max}"
            );
        }
        text
    });
    Ok(ExitCode::Done)
}

/// The coordinator's version; `None`, with a hint, when there is no context yet.
async fn coordinator_version(work: &mut Work<'_>) -> Result<Option<VersionView>, Failure> {
    let mut client = match work.client() {
        Ok(client) => client,
        Err(failure) if failure.code() == Some(Code::ContextMissing) => {
            let hint = format!("coordinator: not asked, {}", failure.problem.detail);
            work.output().hint(&hint);
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    client.document(&Call::get("version")).await.map(Some)
}
