//! `cargo xtask conformance`: Kubernetes' own test suite against a cluster of ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use keelson_images::{CacheDir, SourceMode, UpstreamCache, build_containers};

use crate::image;
use crate::programs::{compile, workspace_root};
use crate::state::StateArgs;
use crate::up::{self, Output, Started, Steps, UpArgs};

/// The upstream project that the suite is.
const SUITE: &str = "kubernetes-e2e";

/// What to run, against what.
#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The cluster; made with plan small when it is not there.
    #[arg(long, default_value = "conformance")]
    cluster: String,
    /// Only tests whose names match this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// No tests whose names match this regular expression.
    #[arg(long)]
    skip: Option<String>,
    /// How many tests run side by side.
    #[arg(long, default_value_t = 4)]
    parallel: u32,
    /// Where reports go; below the state directory when absent.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Runs `cargo xtask conformance`.
pub(crate) fn run(args: &ConformanceArgs) -> Result<()> {
    let up = UpArgs { state: args.state.clone(), source: SourceMode::Auto, output: Output::Text };
    let mut steps = Steps::default();
    let started = up::start(&up, &mut steps)?;
    let parts = steps.run("test suite and its images", || parts(&started))?;
    steps.run("cluster", || ensure_cluster(&started, &args.cluster))?;
    let report = args.report.clone().unwrap_or_else(|| started.state_dir.join("conformance"));
    std::fs::create_dir_all(&report)?;
    let images = report.join("images.json");
    std::fs::write(&images, &parts.images)?;
    let text = |path: &Path| path.display().to_string();
    let mut words = vec![
        ("--cluster", args.cluster.clone()),
        ("--keelson", text(&started.keelson.program)),
        ("--context", text(&started.keelson.context)),
        ("--kubectl", text(&started.kubectl)),
        ("--ginkgo", text(&parts.ginkgo)),
        ("--suite", text(&parts.suite)),
        ("--images", text(&images)),
        ("--report", text(&report)),
        ("--parallel", args.parallel.to_string()),
    ];
    words.extend(args.focus.iter().map(|focus| ("--focus", focus.clone())));
    words.extend(args.skip.iter().map(|skip| ("--skip", skip.clone())));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root()?).args([
        "run",
        "--locked",
        "--quiet",
        "--package",
        "keelson-conformance",
        "--",
    ]);
    cargo.args(words.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
    let status = cargo.status().context("cargo cannot be started")?;
    ensure!(status.success(), "the conformance run did not pass; its reports are in {}", report.display());
    Ok(())
}

/// The compiled suite, its runner, and the list of images as JSON.
struct Parts {
    suite: PathBuf,
    ginkgo: PathBuf,
    images: Vec<u8>,
}

fn parts(started: &Started) -> Result<Parts> {
    let root = workspace_root()?;
    let cache = CacheDir::from_environment()?;
    let version = started.image.manifest.release.name.to_string();
    let recipes = root.join("images/upstream");
    let built =
        UpstreamCache::open(&cache).ensure(&recipes, SUITE, &version, SourceMode::Build, &mut image::Lines);
    let built = built.context("the test suite cannot be built")?;
    let mut programs: BTreeMap<String, PathBuf> = started.image.tools.clone();
    programs.extend(built.origin.programs.keys().map(|name| (name.clone(), built.program(name))));
    programs.extend(built.files().map(|(name, path)| (name.to_owned(), path)));
    programs.extend(compile(&root, &["keelson-pause"], &mut image::Lines)?);
    let set = root.join("images/containers").join(format!("{SUITE}-{version}.json"));
    let images = build_containers(&cache, &set, &programs, &mut image::Lines)?;
    let (suite, ginkgo) = (built.program("e2e.test"), built.program("ginkgo"));
    Ok(Parts { suite, ginkgo, images: serde_json::to_vec(&images)? })
}

fn ensure_cluster(started: &Started, name: &str) -> Result<()> {
    if started.keelson.command(&["cluster", "show", name]).output()?.status.success() {
        return Ok(());
    }
    let create = ["cluster", "create", name, "--plan", "small", "--wait"];
    let status = started.keelson.command(&create).status()?;
    ensure!(status.success(), "keelson {} ended with {status}", create.join(" "));
    Ok(())
}
