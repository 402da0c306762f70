//! `cargo xtask conformance`: Kubernetes' own test suite against a cluster of ours.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use keelson_images::{CacheDir, SourceMode, UpstreamCache, build_containers};

use crate::programs::{compile, workspace_root};
use crate::state::StateArgs;
use crate::up::{self, Started, Steps, UpArgs};
use crate::{cargo, image};

/// The upstream project that the suite is.
const SUITE: &str = "kubernetes-e2e";

/// The registry server that tests pull from.
const REGISTRY: (&str, &str) = ("distribution", "3.1.2");
/// How long a cluster that is there already may take to be ready.
const READY_MAX: &str = "2m";
/// The page with the newest full result.
const PAGE: &str = "docs/conformance.md";

/// What to run, against what.
#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The cluster; made with plan small when it is not there. Tests own it while they run.
    #[arg(long, default_value = "conformance")]
    cluster: String,
    /// Only tests whose names match this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// No tests whose names match this regular expression.
    #[arg(long)]
    skip: Option<String>,
    /// Only a fixed selection of quick tests from all areas.
    #[arg(long, conflicts_with_all = ["focus", "skip"])]
    quick: bool,
    /// Go on with the run that was interrupted.
    #[arg(long, conflicts_with_all = ["focus", "skip", "quick"])]
    resume: bool,
    /// How many tests run side by side.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// Minutes that one test may take before it is ended and told as such.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    test_minutes: u64,
    /// Put the result of a run of all tests into docs/conformance.md.
    #[arg(long, conflicts_with_all = ["focus", "skip", "quick"])]
    record: bool,
    /// Where reports go; below the state directory when absent.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Runs `cargo xtask conformance`: prepares everything and becomes the program that runs the tests, so that signals
/// reach it.
pub(crate) fn run(args: &ConformanceArgs) -> Result<()> {
    let up = UpArgs::usual(args.state.clone());
    let mut steps = Steps::default();
    let started = up::start(&up, &mut steps)?;
    let parts = steps.run("test suite and its images", || parts(&started))?;
    steps.run("cluster", || ensure_cluster(&started, args))?;
    let error = command(args, &started, &parts)?.exec();
    Err(error).context("cargo cannot be started")
}

/// The program that runs the tests, with all that it needs to know.
fn command(args: &ConformanceArgs, started: &Started, parts: &Parts) -> Result<Command> {
    let root = workspace_root()?;
    let mut cargo = cargo::command(&root);
    cargo.args(["run", "--locked", "--quiet", "--package", "keelson-conformance", "--"]);
    let report = args.report.clone().unwrap_or_else(|| started.state_dir.join("conformance"));
    let paths: [(&str, &Path); 8] = [
        ("--keelson", &started.keelson.program),
        ("--context", &started.keelson.context),
        ("--kubectl", &started.kubectl),
        ("--ginkgo", &parts.ginkgo),
        ("--suite", &parts.suite),
        ("--images", &parts.images),
        ("--registry", &parts.registry),
        ("--report", &std::path::absolute(report)?),
    ];
    for (flag, path) in paths {
        cargo.arg(flag).arg(path);
    }
    cargo.args(["--cluster", &args.cluster, "--commit", &commit(&root)]);
    cargo.args(["--parallel", &args.parallel.to_string(), "--test-minutes", &args.test_minutes.to_string()]);
    for (flag, value) in [("--focus", &args.focus), ("--skip", &args.skip)] {
        cargo.args(value.iter().flat_map(|value| [flag, value.as_str()]));
    }
    cargo.args(
        [("--quick", args.quick), ("--resume", args.resume)]
            .iter()
            .filter(|(_, is)| *is)
            .map(|(flag, _)| flag),
    );
    if args.record {
        cargo.arg("--record").arg(root.join(PAGE));
    }
    Ok(cargo)
}

/// The commit of the source tree, marked when there are changes; `unknown` outside a repository.
fn commit(root: &Path) -> String {
    let mut git = Command::new("git");
    git.current_dir(root).args(["describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]);
    let output = git.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// The compiled suite, its runner, the images that tests ask for, and the registry to pull them from.
struct Parts {
    suite: PathBuf,
    ginkgo: PathBuf,
    images: PathBuf,
    registry: PathBuf,
}

fn parts(started: &Started) -> Result<Parts> {
    let root = workspace_root()?;
    let cache = CacheDir::from_environment()?;
    let version = started.image.manifest.release.name.to_string();
    let upstream = |project: &str, version: &str| {
        UpstreamCache::open(&cache)
            .ensure(&root.join("images/upstream"), project, version, SourceMode::Build, &mut image::Lines)
            .with_context(|| format!("{project} cannot be built"))
    };
    let suite = upstream(SUITE, &version)?;
    let registry = upstream(REGISTRY.0, REGISTRY.1)?.program("registry");
    let mut programs: BTreeMap<String, PathBuf> = started.image.tools.clone();
    programs.extend(suite.origin.programs.keys().map(|name| (name.clone(), suite.program(name))));
    programs.extend(suite.files().map(|(name, path)| (name.to_owned(), path)));
    programs.extend(compile(&root, &["keelson-pause"], &mut image::Lines)?);
    let set = root.join("images/containers").join(format!("{SUITE}-{version}.json"));
    let images = build_containers(&cache, &set, &programs, &mut image::Lines)?.archive;
    Ok(Parts { suite: suite.program("e2e.test"), ginkgo: suite.program("ginkgo"), images, registry })
}

fn ensure_cluster(started: &Started, args: &ConformanceArgs) -> Result<()> {
    let name = args.cluster.as_str();
    let target = format!("cluster/{name}");
    let is_there = started.keelson.command(&["cluster", "show", name]).output()?.status.success();
    ensure!(is_there || !args.resume, "there is no cluster {name} on which a run could go on");
    let words: &[&str] = if is_there {
        // It may be on its way: a coordinator that was started a moment ago has not heard of all machines yet.
        &["wait", &target, "--timeout", READY_MAX]
    } else {
        &["cluster", "create", name, "--plan", "small", "--wait"]
    };
    let status = started.keelson.command(words).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "keelson {} ended with {status}", words.join(" "));
    Ok(())
}
