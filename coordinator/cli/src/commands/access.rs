//! `keelson cluster kubeconfig`: access to one cluster, or to all that a selector chooses.

use std::path::PathBuf;

use keelson_api::types::{KubeconfigRequestBody, KubeconfigView, Timestamp, VersionView};
use keelson_api::{ExitCode, types};
use serde::Serialize;
use serde_json::json;

use super::Work;
use super::cluster::{chosen, path};
use crate::args::KubeconfigArgs;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::kubeconfig::{self, CurrentContext};

/// What was written into a kubeconfig.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    api_version: &'static str,
    kind: &'static str,
    cluster: String,
    file: PathBuf,
    context: String,
    expires: Timestamp,
}

/// `keelson cluster kubeconfig`.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &KubeconfigArgs,
) -> Result<ExitCode, Failure> {
    let names: Vec<String> = match (&args.target.name, &args.target.selector) {
        (Some(name), _) => vec![name.clone()],
        (None, selector) => {
            let list = chosen(client, selector.as_deref().unwrap_or_default()).await?;
            list.items.into_iter().map(|cluster| cluster.spec.name).collect()
        }
    };
    let several = names.len() > 1;
    if several && (args.print || args.set_context) {
        let flag = if args.print { "--print" } else { "--set-context" };
        let what = format!("{flag} is for one cluster, and these are several: {}", names.join(", "));
        return Err(Failure::usage(what));
    }
    if let (true, [name]) = (args.print, names.as_slice()) {
        let view = issue(client, name, args).await?;
        let text = view.kubeconfig.expose_secret();
        work.output().document(&view, &[format!("cluster/{name}")], |_| text.to_owned());
        return Ok(ExitCode::Done);
    }
    let version: VersionView = client.document(&Call::get("version")).await?;
    let mut all = Vec::new();
    for name in &names {
        let view = issue(client, name, args).await?;
        all.push(write(work, name, &version.install, &view, args)?);
    }
    print(work, &all, several, args);
    Ok(ExitCode::Done)
}

async fn issue(client: &mut Client, name: &str, args: &KubeconfigArgs) -> Result<KubeconfigView, Failure> {
    let ttl_s = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    let body = KubeconfigRequestBody { ttl_s: Some(ttl_s) };
    client.document(&Call::post(format!("{}:kubeconfig", path(name))).json(&body)).await
}

fn write(
    work: &mut Work<'_>,
    name: &str,
    install: &str,
    view: &KubeconfigView,
    args: &KubeconfigArgs,
) -> Result<Written, Failure> {
    let text = view.kubeconfig.expose_secret();
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
    Ok(Written {
        api_version: types::API_VERSION,
        kind: "KubeconfigWritten",
        cluster: name.to_owned(),
        file,
        context: kubeconfig::entry_name(name),
        expires: view.expires,
    })
}

fn print(work: &mut Work<'_>, all: &[Written], several: bool, args: &KubeconfigArgs) {
    let names: Vec<String> = all.iter().map(|written| format!("context/{}", written.context)).collect();
    let line = |written: &Written| {
        let (context, file, expires) = (&written.context, written.file.display(), written.expires);
        format!("context {context} is in {file} until {expires}\n")
    };
    let text = |_| all.iter().map(line).collect::<String>();
    if several {
        let list = json!({ "apiVersion": types::API_VERSION, "kind": "KubeconfigWrittenList", "items": all });
        work.output().document(&list, &names, text);
    } else if let Some(written) = all.first() {
        work.output().document(written, &names, text);
    }
    if let Some(written) = all.first().filter(|_| work.for_people()) {
        let own =
            args.file.as_ref().map_or_else(String::new, |file| format!("--kubeconfig {} ", file.display()));
        work.output().hint(&format!("next: kubectl {own}--context {} get nodes", written.context));
    }
}
