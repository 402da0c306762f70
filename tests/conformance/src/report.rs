//! What came of a run: kept on disk after every test, compared with what was known before, told to people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::page;
use crate::suite::{Outcome, Part};

/// Where a run stands.
const RESULTS: &str = "results.json";
/// What people read.
const PAGE: &str = "report.md";
/// What other tools read.
const JUNIT: &str = "junit.xml";
/// Held while a run lasts.
const LOCK: &str = "lock";
/// Begins the part of a document that a recorded run replaces.
const MARKER: &str = "<!-- Written by `cargo xtask conformance --record`. -->";
/// Version of [`Results`].
const SCHEMA: u32 = 2;
/// State of a test that passed.
const PASSED: &str = "passed";
/// State of a test that was not decided.
const OPEN: &str = "not run";
/// State of a test that was ended.
const OVERDUE: &str = "timedout";

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// `passed`, `failed`, `panicked`, `timedout`, or `not run`.
    pub(crate) state: String,
    pub(crate) seconds: f64,
    pub(crate) why: String,
}

impl Verdict {
    fn open() -> Self {
        Self {
            state: OPEN.to_owned(),
            seconds: 0.0,
            why: "the run ended before it came to this test".to_owned(),
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.state == PASSED
    }
}

/// About a run as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) started: OffsetDateTime,
    pub(crate) cluster: String,
    /// The commits whose program took part: several when it was interrupted and went on with another one.
    pub(crate) commits: Vec<String>,
    /// Whether all conformance tests belong to it.
    pub(crate) full: bool,
    /// Whether every test was decided.
    pub(crate) finished: bool,
    /// How long it took, without what stands between an interrupted run and the one that went on with it.
    pub(crate) seconds: f64,
    pub(crate) parallel: u32,
    /// What happened to the cluster meanwhile.
    pub(crate) incidents: Vec<String>,
}

/// `results.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    schema: u32,
    pub(crate) run: Run,
    pub(crate) tests: BTreeMap<String, Verdict>,
    /// The newest results of earlier runs.
    pub(crate) before: BTreeMap<String, Verdict>,
}

/// Takes the folder for one run; it is free again when the value is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    let file = File::create(folder.join(LOCK))?;
    ensure!(
        file.try_lock().is_ok(),
        "another conformance run works in {}; wait for it, or choose another --report",
        folder.display()
    );
    Ok(file)
}

/// The results of a run, in its folder.
pub(crate) struct Report {
    folder: PathBuf,
    results: Results,
}

impl Report {
    /// A run of these tests, none of which has run yet. The logs of the run before go.
    #[expect(clippy::print_stderr, reason = "somebody may have meant something else")]
    pub(crate) fn begin<'a>(folder: &Path, run: Run, tests: impl Iterator<Item = &'a str>) -> Result<Self> {
        // What cannot be read any more is of an older version: nothing to compare with.
        let mut before = BTreeMap::new();
        if let Some(old) = load(folder)? {
            if !old.run.finished {
                eprintln!("this replaces a run that was interrupted; --resume would have gone on with it");
            }
            before = old.before;
            before.extend(old.tests.into_iter().filter(|(_, test)| test.state != OPEN));
        }
        remove_logs(folder)?;
        let tests = tests.map(|name| (name.to_owned(), Verdict::open())).collect();
        let report =
            Self { folder: folder.to_owned(), results: Results { schema: SCHEMA, run, tests, before } };
        report.save()?;
        Ok(report)
    }

    /// The run that was interrupted.
    pub(crate) fn resume(folder: &Path, cluster: &str, commit: &str) -> Result<Self> {
        let mut results =
            load(folder)?.context("there is no run to go on with; start one without --resume")?;
        ensure!(!results.run.finished, "the newest run is finished; start another one without --resume");
        let own = &results.run.cluster;
        ensure!(own == cluster, "the newest run is of cluster {own}; go on with it by --cluster {own}");
        if results.run.commits.last().is_none_or(|last| last != commit) {
            results.run.commits.push(commit.to_owned());
        }
        Ok(Self { folder: folder.to_owned(), results })
    }

    /// Whether a test belongs to the run and is not decided.
    pub(crate) fn is_open(&self, name: &str) -> bool {
        self.results.tests.get(name).is_some_and(|test| test.state == OPEN)
    }

    /// How many tests are not decided.
    pub(crate) fn open(&self) -> usize {
        self.results.tests.values().filter(|test| test.state == OPEN).count()
    }

    /// A test ended, by what the suite says while it runs; [`Report::decide`] knows more later.
    #[expect(clippy::print_stderr, reason = "a run of an hour says how far it is")]
    pub(crate) fn progress(&mut self, name: &str, state: &str, seconds: f64) -> Result<()> {
        // A failure is decided when its reason is known.
        if state == PASSED {
            self.set(name, Verdict { state: PASSED.to_owned(), seconds, why: String::new() });
            self.save()?;
        }
        let (all, open) = (self.results.tests.len(), self.open());
        eprintln!("{:>3}/{all} {state:<11} {seconds:>5.1} s  {name}", all - open);
        Ok(())
    }

    pub(crate) fn decide(&mut self, outcome: Outcome) {
        let Outcome { name, state, seconds, why, .. } = outcome;
        self.set(&name, Verdict { state, seconds, why });
    }

    /// A test was ended because it took too long, unless it came to its own end before that.
    pub(crate) fn overdue(&mut self, name: &str, minutes: u64) {
        if !self.is_open(name) {
            return;
        }
        let seconds = Duration::from_secs(minutes * 60).as_secs_f64();
        let why = format!("it did not end within {minutes} min and was ended");
        self.set(name, Verdict { state: OVERDUE.to_owned(), seconds, why });
    }

    /// A test has to run again.
    pub(crate) fn reopen(&mut self, name: &str) {
        self.set(name, Verdict::open());
    }

    fn set(&mut self, name: &str, result: Verdict) {
        if let Some(test) = self.results.tests.get_mut(name) {
            *test = result;
        }
    }

    /// Notes what happened to the cluster.
    pub(crate) fn incident(&mut self, what: String) {
        self.results.run.incidents.push(what);
    }

    pub(crate) fn took(&mut self, time: Duration) {
        self.results.run.seconds += time.as_secs_f64();
    }

    pub(crate) fn finish(&mut self) {
        self.results.run.finished = true;
    }

    pub(crate) fn all_passed(&self) -> bool {
        self.results.tests.values().all(Verdict::passed)
    }

    pub(crate) fn page_path(&self) -> PathBuf {
        self.folder.join(PAGE)
    }

    /// Writes results, page and JUnit.
    pub(crate) fn write(&self) -> Result<()> {
        self.save()?;
        std::fs::write(self.page_path(), page::write(&self.results))?;
        Ok(std::fs::write(self.folder.join(JUNIT), self.junit()?)?)
    }

    /// Puts the page of this run into a document, in place of what stands after the marker there.
    pub(crate) fn record(&self, document: &Path) -> Result<()> {
        ensure!(self.results.run.full, "only a run of all tests is recorded");
        let text = std::fs::read_to_string(document)
            .with_context(|| format!("{} cannot be read", document.display()))?;
        let (head, _) = text
            .split_once(MARKER)
            .with_context(|| format!("{} has no line `{MARKER}`", document.display()))?;
        Ok(std::fs::write(document, format!("{head}{MARKER}\n\n{}", page::write(&self.results)))?)
    }

    /// Writes the results such that a killed run leaves the old or the new ones.
    fn save(&self) -> Result<()> {
        let new = self.folder.join(format!("{RESULTS}.new"));
        std::fs::write(&new, serde_json::to_vec_pretty(&self.results)?)?;
        std::fs::rename(new, self.folder.join(RESULTS)).context("the results cannot be kept")
    }

    fn junit(&self) -> Result<String> {
        let mut suite = TestSuite::new("Kubernetes conformance");
        for (name, test) in &self.results.tests {
            let status = match test.state.as_str() {
                PASSED => TestCaseStatus::success(),
                OPEN => TestCaseStatus::skipped(),
                _ => TestCaseStatus::non_success(NonSuccessKind::Failure),
            };
            let mut case = TestCase::new(name.as_str(), status);
            case.set_time(Duration::from_secs_f64(test.seconds));
            if !test.why.is_empty() {
                case.status.set_message(test.why.as_str());
            }
            suite.add_test_case(case);
        }
        let mut report = quick_junit::Report::new("keelson-conformance");
        report.add_test_suite(suite);
        report.to_string().context("the results cannot be written as JUnit")
    }

    /// A few lines for the terminal; the last one is the plain closing line of a test runner.
    pub(crate) fn summary(&self) -> String {
        let Results { run, tests, before, .. } = &self.results;
        let mut text = String::new();
        for incident in &run.incidents {
            let _ = writeln!(text, "meanwhile: {incident}");
        }
        for (name, test) in tests.iter().filter(|(_, test)| !test.passed()) {
            let _ = writeln!(text, "{}: {name}\n    {}", test.state, page::one_line(&test.why));
        }
        for (name, now) in tests {
            match (before.get(name).map(Verdict::passed), now.passed()) {
                (Some(true), false) => drop(writeln!(text, "passed before: {name}")),
                (Some(false), true) => drop(writeln!(text, "passes now: {name}")),
                _ => {}
            }
        }
        let passed = tests.values().filter(|test| test.passed()).count();
        let _ = writeln!(text, "{passed} passed, {} failed", tests.len() - passed);
        text
    }
}

fn remove_logs(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if [Part::Parallel, Part::Serial].iter().any(|part| name.starts_with(part.name())) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The results in a folder; none when there are none of this version.
fn load(folder: &Path) -> Result<Option<Results>> {
    let file = folder.join(RESULTS);
    match std::fs::read(&file) {
        Ok(text) => {
            Ok(serde_json::from_slice(&text).ok().filter(|results: &Results| results.schema == SCHEMA))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            started: OffsetDateTime::UNIX_EPOCH,
            cluster: "demo".to_owned(),
            commits: vec!["abc".to_owned()],
            full: false,
            finished: false,
            seconds: 0.0,
            parallel: 4,
            incidents: Vec::new(),
        }
    }

    fn outcome(name: &str, state: &str) -> Outcome {
        let ended = OffsetDateTime::UNIX_EPOCH;
        let why = if state == "passed" { "" } else { "a\n  b" };
        Outcome { name: name.to_owned(), state: state.to_owned(), seconds: 1.0, ended, why: why.to_owned() }
    }

    #[test]
    fn what_did_not_run_did_not_pass_and_changes_are_told() {
        let names = ["one", "two", "three"];
        let folder = tempfile::tempdir().unwrap();
        let mut first = Report::begin(folder.path(), run(), names.into_iter()).unwrap();
        for (name, state) in [("one", "passed"), ("two", "failed"), ("three", "passed")] {
            first.decide(outcome(name, state));
        }
        first.finish();
        first.write().unwrap();
        let mut second = Report::begin(folder.path(), run(), names.into_iter()).unwrap();
        second.decide(outcome("one", "passed"));
        second.decide(outcome("two", "passed"));
        assert!(!second.all_passed());
        let expected = "not run: three\n    the run ended before it came to this test\npassed before: three\n\
                        passes now: two\n2 passed, 1 failed\n";
        assert_eq!(second.summary(), expected);
        second.write().unwrap();
        let junit = std::fs::read_to_string(folder.path().join(JUNIT)).unwrap();
        assert!(junit.contains("tests=\"3\""), "{junit}");
    }

    #[test]
    fn an_interrupted_run_goes_on_with_what_is_open() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Report::resume(folder.path(), "demo", "abc").is_err(), "no run yet");
        let mut first = Report::begin(folder.path(), run(), ["one", "two", "three"].into_iter()).unwrap();
        // Known from the suite while it ran; then everything was killed.
        first.progress("one", "passed", 1.0).unwrap();
        first.progress("two", "failed", 1.0).unwrap();
        let mut second = Report::resume(folder.path(), "demo", "abc").unwrap();
        let open: Vec<_> = ["one", "two", "three"].into_iter().filter(|name| second.is_open(name)).collect();
        assert_eq!(open, ["two", "three"]);
        second.decide(outcome("two", "failed"));
        second.overdue("one", 1);
        assert!(second.results.tests["one"].passed(), "it ended by itself");
        second.overdue("three", 1);
        assert_eq!(second.results.tests["three"].state, OVERDUE);
        assert_eq!(second.open(), 0);
        second.finish();
        second.write().unwrap();
        assert!(Report::resume(folder.path(), "demo", "abc").is_err(), "finished");
    }

    #[test]
    fn a_run_goes_on_with_its_own_cluster_and_names_every_commit() {
        let folder = tempfile::tempdir().unwrap();
        Report::begin(folder.path(), run(), ["one"].into_iter()).unwrap();
        assert!(Report::resume(folder.path(), "other", "abc").is_err());
        let report = Report::resume(folder.path(), "demo", "def").unwrap();
        assert_eq!(report.results.run.commits, ["abc", "def"]);
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).is_err());
        drop(held);
        assert!(lock(folder.path()).is_ok());
    }
}
