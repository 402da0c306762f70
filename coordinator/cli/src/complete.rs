//! Names for the completion of shells: asked of the coordinator within a third of a second, kept for a few seconds.
//!
//! Whatever goes wrong here is silent: a shell that completes nothing is better than one that prints errors into the
//! line that is being typed.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::{CompleteEnv, CompletionCandidate};
use keelson_api::types::{ListView, PAGE_SIZE_MAX};
use keelson_protocol::WallTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::{Cli, Global, ProgressMode};
use crate::client::{Call, Client};
use crate::context::Context;
use crate::format::Format;
use crate::session::Session;

/// The environment variable by which a shell asks for completion.
pub(crate) const VARIABLE: &str = "KEELSON_COMPLETE";
/// How long a person who pressed Tab is kept waiting, in milliseconds.
const TIME_MS_MAX: u64 = 300;
/// The environment variable that sets another time than [`TIME_MS_MAX`], for coordinators that are far away.
const TIME_VARIABLE: &str = "KEELSON_COMPLETE_MS";
/// How long names are kept: some presses of Tab, not longer than it takes to make something.
const CACHE_LIFE: Duration = Duration::from_secs(10);
/// Largest file of names, in bytes: a page of the longest names.
const CACHE_BYTES_MAX: u64 = 256 * 1024;

/// What has names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cluster,
    Machine,
    Operation,
    Plan,
    Release,
}

impl Kind {
    /// Its list below `/v1/`.
    fn list(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Machine => "machines",
            Self::Operation => "operations",
            Self::Plan => "plans",
            Self::Release => "releases",
        }
    }

    /// Where a document of it has its name.
    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "/spec/name",
            Self::Machine | Self::Operation => "/id",
            Self::Plan | Self::Release => "/name",
        }
    }

    /// Whether its list can be filtered where it is made.
    fn takes_text(self) -> bool {
        matches!(self, Self::Cluster | Self::Machine)
    }
}

/// Answers a shell that asks for completion; false when this is an ordinary run.
#[must_use]
pub fn complete() -> bool {
    let here = std::env::current_dir().ok();
    let completion = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    completion.try_complete(std::env::args_os(), here.as_deref()).unwrap_or(true)
}

pub(crate) fn clusters(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(Kind::Cluster, "", current)
}

pub(crate) fn machines(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(Kind::Machine, "", current)
}

pub(crate) fn operations(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(Kind::Operation, "", current)
}

pub(crate) fn plans(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(Kind::Plan, "", current)
}

pub(crate) fn releases(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(Kind::Release, "", current)
}

/// `cluster/NAME` and `operation/ID`.
pub(crate) fn awaited(current: &OsStr) -> Vec<CompletionCandidate> {
    let text = current.to_string_lossy();
    if text.starts_with("cluster/") {
        return candidates(Kind::Cluster, "cluster/", current);
    }
    if text.starts_with("operation/") {
        return candidates(Kind::Operation, "operation/", current);
    }
    let kinds = ["cluster/", "operation/"].into_iter().filter(|kind| kind.starts_with(&*text));
    kinds.map(CompletionCandidate::new).collect()
}

/// Clusters and machines, with `cluster/` and `machine/` in front or without.
pub(crate) fn asked(current: &OsStr) -> Vec<CompletionCandidate> {
    let text = current.to_string_lossy();
    if text.starts_with("cluster/") {
        return candidates(Kind::Cluster, "cluster/", current);
    }
    if text.starts_with("machine/") {
        return candidates(Kind::Machine, "machine/", current);
    }
    let mut found = candidates(Kind::Cluster, "", current);
    found.extend(candidates(Kind::Machine, "", current));
    found
}

/// Names that begin with what was typed after `prefix`.
fn candidates(kind: Kind, prefix: &str, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = current.to_str().and_then(|text| text.strip_prefix(prefix)) else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let found = runtime.block_on(async {
        let session = Session::of_process();
        let global = global(std::env::args_os().filter_map(|word| word.into_string().ok()));
        let time_ms =
            session.variable(TIME_VARIABLE).and_then(|text| text.parse().ok()).unwrap_or(TIME_MS_MAX);
        let time = Duration::from_millis(time_ms);
        tokio::time::timeout(time, names(kind, typed, &global, &session)).await.ok().flatten()
    });
    // A name may still be looked up in a thread that nothing can end.
    runtime.shutdown_background();
    let fitting = found.unwrap_or_default().into_iter().filter(|name| name.starts_with(typed));
    fitting.map(|name| CompletionCandidate::new(format!("{prefix}{name}"))).collect()
}

/// The connection that is named on the line that is being typed.
fn global(words: impl Iterator<Item = String>) -> Global {
    let words: Vec<String> = words.collect();
    let value = |flag: &str| {
        words.iter().enumerate().find_map(|(index, word)| match word.strip_prefix(flag) {
            Some("") => words.get(index + 1).cloned(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        })
    };
    Global {
        server: value("--server"),
        context: value("--context").map(PathBuf::from),
        output: Format::Table,
        no_headers: false,
        progress: ProgressMode::None,
    }
}

/// Names that were asked for a moment ago. They are no secret, but nobody else's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cache {
    server: String,
    context: PathBuf,
    at: WallTime,
    /// What every name has in it.
    text: String,
    names: Vec<String>,
}

async fn names(kind: Kind, typed: &str, global: &Global, session: &Session) -> Option<Vec<String>> {
    let context = Context::load(global, session).ok()?;
    let file = cache_file(kind, session);
    if let Some(kept) = file.as_ref().and_then(read_cache) {
        let same = kept.server == context.server && kept.context == context.path;
        let fresh = kept.at <= session.now() && session.now().since(kept.at) < CACHE_LIFE;
        if same && fresh && typed.starts_with(&kept.text) {
            return Some(kept.names);
        }
    }
    let (server, path) = (context.server.clone(), context.path.clone());
    let mut client = Client::new(context).ok()?;
    let text = if kind.takes_text() { typed } else { "" };
    let call = Call::get(kind.list()).query("text", Some(text).filter(|text| !text.is_empty()));
    let call = if matches!(kind, Kind::Plan | Kind::Release) {
        call
    } else {
        call.query("page_size", Some(PAGE_SIZE_MAX))
    };
    let list: ListView<Value> = client.document(&call).await.ok()?;
    let name = |item: &Value| item.pointer(kind.name()).and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = list.items.iter().filter_map(name).collect();
    // What is not the whole list cannot answer for more letters.
    if list.next_page_token.is_none() {
        let text = text.to_owned();
        let kept = Cache { server, context: path, at: session.now(), text, names: names.clone() };
        file.and_then(|file| write_cache(&file, &kept));
    }
    Some(names)
}

fn cache_file(kind: Kind, session: &Session) -> Option<PathBuf> {
    let cache = session.variable("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| session.home().map(|home| home.join(".cache")))?;
    Some(cache.join("keelson").join(format!("{}.json", kind.list())))
}

fn read_cache(file: &PathBuf) -> Option<Cache> {
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(CACHE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Writes a file that only its owner may read, in one step.
fn write_cache(file: &PathBuf, cache: &Cache) -> Option<()> {
    let folder = file.parent()?;
    std::fs::create_dir_all(folder).ok()?;
    let mut new = tempfile::NamedTempFile::new_in(folder).ok()?;
    new.write_all(&serde_json::to_vec(cache).ok()?).ok()?;
    new.persist(file).ok().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_is_read_from_the_line_that_is_typed() {
        let check = |line: &str, server: Option<&str>, context: Option<&str>| {
            let global = global(line.split(' ').map(str::to_owned));
            assert_eq!(
                (global.server.as_deref(), global.context),
                (server, context.map(PathBuf::from)),
                "{line}"
            );
        };
        check("keelson -- keelson cluster show d", None, None);
        check("keelson -- keelson --context f cluster", None, Some("f"));
        check("keelson -- keelson --server=https://x --context=f", Some("https://x"), Some("f"));
        check("keelson -- keelson --context", None, None);
        check("keelson -- keelson --contexts f", None, None);
    }
}
