//! The compiled suite, run by Ginkgo's own runner.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::Arguments;

/// Which tests may run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Side by side.
    Parallel,
    /// One after the other.
    Serial,
}

impl Part {
    /// Ginkgo's filter of labels for it.
    fn labels(self) -> &'static str {
        match self {
            Self::Parallel => "Conformance && !Serial",
            Self::Serial => "Conformance && Serial",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Serial => "serial",
        }
    }
}

/// A test that was chosen.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) part: Part,
}

/// What came of a test.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) seconds: f64,
    pub(crate) why: String,
}

/// The suite with its settings.
pub(crate) struct Suite<'a> {
    arguments: &'a Arguments,
    kubeconfig: PathBuf,
    limit: Duration,
}

impl<'a> Suite<'a> {
    pub(crate) fn new(arguments: &'a Arguments, kubeconfig: PathBuf, limit: Duration) -> Self {
        Self { arguments, kubeconfig, limit }
    }

    /// The tests that would run.
    pub(crate) fn choose(&self) -> Result<Vec<Chosen>> {
        let folder = tempfile::tempdir()?;
        let mut chosen = Vec::new();
        for part in [Part::Parallel, Part::Serial] {
            let file = folder.path().join(format!("{}.json", part.name()));
            let mut command = Command::new(&self.arguments.suite);
            command.arg("--ginkgo.dry-run").arg(format!("--ginkgo.json-report={}", file.display()));
            command.arg(format!("--ginkgo.label-filter={}", part.labels()));
            command.args(self.selection("ginkgo.")).arg("--provider=skeleton");
            let output = command.stdin(Stdio::null()).output().context("the suite cannot be started")?;
            ensure!(
                output.status.success(),
                "the suite lists no tests: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            let outcomes = read(&file)?;
            chosen.extend(outcomes.into_iter().map(|outcome| Chosen { name: outcome.name, part }));
        }
        Ok(chosen)
    }

    fn selection(&self, prefix: &str) -> Vec<String> {
        let focus = self.arguments.focus.iter().map(|focus| format!("--{prefix}focus={focus}"));
        let skip = self.arguments.skip.iter().map(|skip| format!("--{prefix}skip={skip}"));
        focus.chain(skip).collect()
    }

    /// Runs a part; its reports go to `folder`.
    pub(crate) fn run(&self, part: Part, folder: &Path) -> Result<Vec<Outcome>> {
        let json = format!("{}.json", part.name());
        // One of an earlier run must not be taken for this one's.
        match std::fs::remove_file(folder.join(&json)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let procs = if part == Part::Serial { 1 } else { self.arguments.parallel };
        let mut command = Command::new(&self.arguments.ginkgo);
        command
            .args(["--no-color", "--succinct", "--silence-skips", "--keep-going"])
            .arg(format!("--procs={procs}"))
            .arg(format!("--timeout={}s", self.limit.as_secs()))
            .arg(format!("--label-filter={}", part.labels()))
            .args(self.selection(""))
            .arg(format!("--output-dir={}", folder.display()))
            .arg(format!("--json-report={json}"))
            .arg(format!("--junit-report=junit-{}.xml", part.name()))
            .arg(&self.arguments.suite)
            .arg("--")
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--kubectl-path={}", self.arguments.kubectl.display()))
            .args(["--provider=skeleton", "--disable-log-dump", "--dump-logs-on-failure=false"]);
        let log = std::fs::File::create(folder.join(format!("{}.log", part.name())))?;
        // A failed test makes it fail too; what counts is in the report.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.status().context("ginkgo cannot be started")?;
        read(&folder.join(json)).with_context(|| {
            format!("the suite ended without a report; its last words are in {}", folder.display())
        })
    }
}

/// A report of Ginkgo (`types.Report`), as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SuiteReport {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    /// Nanoseconds.
    run_time: i64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

/// The tests in a report that were chosen.
fn read(file: &Path) -> Result<Vec<Outcome>> {
    let text = std::fs::read(file).with_context(|| format!("{} is not there", file.display()))?;
    let suites: Vec<SuiteReport> = serde_json::from_slice(&text).context("that is no report of Ginkgo")?;
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
    let chosen = specs
        .filter(|spec| spec.leaf_node_type == "It" && spec.state != "skipped" && spec.state != "pending");
    Ok(chosen.map(outcome).collect())
}

fn outcome(spec: SpecReport) -> Outcome {
    let mut words = spec.container_hierarchy_texts.unwrap_or_default();
    words.push(spec.leaf_node_text);
    Outcome {
        name: words.join(" "),
        state: spec.state,
        seconds: std::time::Duration::from_nanos(u64::try_from(spec.run_time).unwrap_or(0)).as_secs_f64(),
        why: spec.failure.map(|failure| failure.message).unwrap_or_default(),
    }
}
