//! The compiled suite, run by Ginkgo's own runner.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::process::{Child, Command};

use crate::Arguments;
use crate::log::Log;

/// A limit for the suite as a whole, which Ginkgo wants; the limit that counts is that of each test.
const SUITE_HOURS_MAX: u64 = 24;
/// How long tests may clean up after an interrupt.
const GRACE: Duration = Duration::from_secs(60);
/// The kernel takes no longer word on a command line (`MAX_ARG_STRLEN`).
const WORD_BYTES_MAX: usize = 128 * 1024;
/// More rounds of one part than this are no accident.
const ROUNDS_MAX: u32 = 100;
/// Where the process group of a running suite is noted.
const GROUP_FILE: &str = "suite.pid";
/// How long a suite that lost its runner may take to end.
const ORPHAN_POLLS_MAX: u32 = 120;

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

    /// The beginning of the names of its files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Serial => "serial",
        }
    }
}

/// A test of the suite.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) part: Part,
}

/// What came of a test.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) seconds: f64,
    pub(crate) ended: OffsetDateTime,
    pub(crate) why: String,
}

/// The suite with its settings.
pub(crate) struct Suite<'a> {
    arguments: &'a Arguments,
    kubeconfig: PathBuf,
}

impl<'a> Suite<'a> {
    pub(crate) fn new(arguments: &'a Arguments, kubeconfig: PathBuf) -> Self {
        Self { arguments, kubeconfig }
    }

    /// Minutes that one test may take.
    pub(crate) fn test_minutes(&self) -> u64 {
        self.arguments.test_minutes
    }

    /// The server that tests pull images from.
    pub(crate) fn registry(&self) -> &Path {
        &self.arguments.registry
    }

    /// What a person does when the run has stopped.
    pub(crate) fn how_to_go_on(&self) -> String {
        let Arguments { cluster, report, .. } = self.arguments;
        format!(
            "go on with: cargo xtask conformance --resume --cluster {cluster} --report {}",
            report.display()
        )
    }

    /// All conformance tests.
    pub(crate) async fn list(&self) -> Result<Vec<Test>> {
        let folder = tempfile::tempdir()?;
        let mut tests = Vec::new();
        for part in [Part::Parallel, Part::Serial] {
            let file = folder.path().join(format!("{}.json", part.name()));
            let mut command = Command::new(&self.arguments.suite);
            command.arg("--ginkgo.dry-run").arg(format!("--ginkgo.json-report={}", file.display()));
            command.arg(format!("--ginkgo.label-filter={}", part.labels())).arg("--provider=skeleton");
            let output =
                command.stdin(Stdio::null()).output().await.context("the suite cannot be started")?;
            ensure!(
                output.status.success(),
                "the suite lists no tests: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            tests.extend(read(&file)?.outcomes.into_iter().map(|outcome| Test { name: outcome.name, part }));
        }
        Ok(tests)
    }

    /// Starts tests.
    pub(crate) fn start(&self, part: Part, tests: &[&Test]) -> Result<Running> {
        let folder = &self.arguments.report;
        let name = (1..ROUNDS_MAX)
            .map(|round| format!("{}-{round}", part.name()))
            .find(|name| !folder.join(format!("{name}.log")).exists())
            .context("there were too many rounds; look at the logs of the suite")?;
        let report = folder.join(format!("{name}.json"));
        let focus = focus(tests.iter().map(|test| test.name.as_str()));
        ensure!(focus.len() < WORD_BYTES_MAX, "so many tests cannot be named on a command line");
        let procs = if part == Part::Serial { 1 } else { self.arguments.parallel };
        let mut command = Command::new(&self.arguments.ginkgo);
        command
            .args(["--no-color", "-v", "--silence-skips", "--keep-going"])
            .arg(format!("--procs={procs}"))
            .arg(format!("--timeout={SUITE_HOURS_MAX}h"))
            .arg(format!("--grace-period={}s", GRACE.as_secs()))
            .arg(format!("--poll-progress-after={}m", self.arguments.test_minutes))
            .arg(format!("--focus={focus}"))
            .arg(format!("--output-dir={}", folder.display()))
            .arg(format!("--json-report={name}.json"))
            .arg(&self.arguments.suite)
            .arg("--")
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--kubectl-path={}", self.arguments.kubectl.display()))
            // Workers that are not there for pods are told in minutes, not in half an hour.
            .args(["--provider=skeleton", "--node-schedulable-timeout=2m"])
            .args(["--disable-log-dump", "--dump-logs-on-failure=false"]);
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        // In a process group of its own: signals reach all of it, and an interrupt at the terminal only this program.
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().context("ginkgo cannot be started")?;
        let group = Pid::from_raw(child.id().context("ginkgo has no process")?.try_into()?);
        std::fs::write(folder.join(GROUP_FILE), group.to_string())?;
        Ok(Running { child, group, log: Log::of(log), report })
    }

    /// Ends a suite that still runs because its runner was killed.
    #[expect(clippy::print_stderr, reason = "a person waits")]
    pub(crate) async fn end_orphan(&self) -> Result<()> {
        let file = self.arguments.report.join(GROUP_FILE);
        let noted = std::fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
        let Some(group) = noted.map(Pid::from_raw) else { return Ok(()) };
        // Another process may have that number by now.
        let is_ours = || {
            let words = std::fs::read(format!("/proc/{group}/cmdline")).unwrap_or_default();
            words.starts_with(self.arguments.ginkgo.as_os_str().as_encoded_bytes())
        };
        if is_ours() {
            eprintln!("the suite of an earlier run still works; ending it");
            for poll in 0..ORPHAN_POLLS_MAX {
                let signal = if poll == 0 { Some(Signal::SIGINT) } else { None };
                if !is_ours() || killpg(group, signal).is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // An error says that it is gone.
            let _ = killpg(group, Signal::SIGKILL);
        }
        Ok(std::fs::remove_file(&file)?)
    }
}

/// A suite that runs. Nothing of it outlives this value.
pub(crate) struct Running {
    pub(crate) child: Child,
    group: Pid,
    pub(crate) log: Log,
    report: PathBuf,
}

impl Running {
    /// Asks all tests to clean up and end.
    pub(crate) fn interrupt(&self) {
        let _ = killpg(self.group, Signal::SIGINT);
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }

    /// What came of the tests; call it when the child has ended.
    pub(crate) fn result(&self) -> Result<Ran> {
        read(&self.report).with_context(|| {
            format!("the suite left no report; its last words are in {}", self.log.path.display())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if let Some(folder) = self.report.parent() {
            let _ = std::fs::remove_file(folder.join(GROUP_FILE));
        }
    }
}

/// A regular expression that matches these tests and no others. Ginkgo matches the suite's description before a name.
fn focus<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(regex_lite::escape).collect();
    format!("^[^\\[]*(?:{})$", names.join("|"))
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
    #[serde(with = "time::serde::rfc3339")]
    end_time: OffsetDateTime,
    /// Nanoseconds.
    run_time: i64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) outcomes: Vec<Outcome>,
    /// Why the suite as a whole could not begin, if so.
    pub(crate) refused: Option<String>,
}

/// Reads the tests that ran, also those that skipped themselves, which say why. A spec that is in the report of several processes is told once.
fn read(file: &Path) -> Result<Ran> {
    let text = std::fs::read(file).with_context(|| format!("{} is not there", file.display()))?;
    let suites: Vec<SuiteReport> = serde_json::from_slice(&text).context("that is no report of Ginkgo")?;
    let mut ran = Ran::default();
    let mut seen = HashSet::new();
    for spec in suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default()) {
        let is_test = spec.leaf_node_type == "It";
        if !is_test && spec.leaf_node_type.ends_with("BeforeSuite") && spec.state == "failed" {
            ran.refused = spec.failure.map(|failure| failure.message);
        } else if is_test && (spec.state != "skipped" || spec.failure.is_some()) && spec.state != "pending" {
            let outcome = outcome(spec);
            if seen.insert(outcome.name.clone()) {
                ran.outcomes.push(outcome);
            }
        }
    }
    Ok(ran)
}

fn outcome(spec: SpecReport) -> Outcome {
    let mut words = spec.container_hierarchy_texts.unwrap_or_default();
    words.push(spec.leaf_node_text);
    Outcome {
        name: words.join(" "),
        state: spec.state,
        seconds: Duration::from_nanos(u64::try_from(spec.run_time).unwrap_or(0)).as_secs_f64(),
        ended: spec.end_time,
        why: spec.failure.map(|failure| failure.message).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_focus_matches_whole_names_only() {
        let names = ["[sig-a] b.c (d)", "[sig-a] *not* e"];
        let regex = regex_lite::Regex::new(&focus(names.into_iter())).unwrap();
        for name in names {
            assert!(regex.is_match(&format!("Kubernetes e2e suite {name}")), "{name}");
        }
        for other in ["[sig-a] b.c (d) more", "[sig-x] [sig-a] b.c (d)", "[sig-a] bxc (d)"] {
            assert!(!regex.is_match(&format!("Kubernetes e2e suite {other}")), "{other}");
        }
    }
}
