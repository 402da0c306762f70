//! `cargo xtask sim mutations`: shows that the simulator's checkers bite. Each patch in `tests/sim/mutations` is a
//! deliberate fault; applied to a scratch copy of the tree, it must be found by a hunt or, when that breaks no rule, by a kept
//! case; and by a checker that the patch names.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use keelson_images::CacheDir;
use serde::Deserialize;

use crate::cargo;
use crate::programs::workspace_root;

/// Where the patches are, below the root of the tree.
const PATCHES: &str = "tests/sim/mutations";
/// The line of a patch that names the checkers which may find it begins so.
const EXPECT: &str = "Expect: ";
/// The line that says with which seed its hunt begins, when that is not the first one, begins so.
const FROM: &str = "From: ";
/// Where the kept cases are, below the root of the tree.
const CASES: &str = "tests/sim/seeds";
/// Longest hunt of one fault: one that lets virtual time stand still would never end.
const HUNT_MAX: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether a hunt has ended: short beside a hunt, long beside a look.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Arguments of `cargo xtask sim mutations`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim mutations")]
pub(crate) struct MutationsArgs {
    /// Only the fault with this name; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Most seeds that a hunt plays for each fault.
    #[arg(long, default_value_t = 60)]
    seeds: u64,
}

/// A deliberate fault.
#[derive(Debug)]
struct Mutation {
    name: String,
    path: PathBuf,
    /// Checkers that may find it.
    expected: Vec<String>,
    /// The first seed of its hunt.
    from: u64,
}

/// What came of it.
#[derive(Debug)]
enum Found {
    /// A checker found it, at a seed.
    By { checker: String, seed: u64 },
    /// A checker found it in the kept case of this name.
    Kept { checker: String, case: String },
    /// All seeds broke no rule.
    Not { seeds: u64 },
    /// The hunt came to no result.
    Failed { why: String },
}

/// What a hunt says with `--output json`, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Report {
    seeds: u64,
    failures: Vec<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    seed: u64,
    violation: Violation,
}

#[derive(Debug, Deserialize)]
struct Violation {
    checker: String,
}

/// Runs `cargo xtask sim mutations`.
pub(crate) fn run(args: &MutationsArgs) -> Result<()> {
    let root = workspace_root()?;
    let mutations = chosen(&root, &args.only)?;
    let place = CacheDir::from_environment()?.root().join("mutations");
    let scratch = Scratch::copy_of(&root, &place)?;
    let mut wrong = 0;
    let mut rows = vec![row("fault", "expected", "found")];
    for mutation in &mutations {
        let began = Instant::now();
        eprintln!("==> {}", mutation.name);
        let found = hunt(&scratch, mutation, args.seeds)?;
        wrong += usize::from(!mutation.is_found(&found));
        eprintln!("    {found}, in {} s", began.elapsed().as_secs());
        rows.push(row(&mutation.name, &mutation.expected.join(", "), &found.to_string()));
    }
    eprintln!();
    rows.iter().for_each(|row| eprintln!("{row}"));
    ensure!(wrong == 0, "{wrong} of {} faults were not found, or by another checker", mutations.len());
    Ok(())
}

fn row(name: &str, expected: &str, found: &str) -> String {
    format!("{name:<32} {expected:<32} {found}")
}

/// The patches, in the order of their names.
fn chosen(root: &Path, only: &[String]) -> Result<Vec<Mutation>> {
    let folder = root.join(PATCHES);
    let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut mutations = Vec::new();
    for entry in entries {
        let path = entry.context("a folder cannot be read to its end")?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".patch")) else {
            continue;
        };
        let name = name.to_owned();
        if only.is_empty() || only.contains(&name) {
            mutations.push(Mutation::read(name, path)?);
        }
    }
    mutations.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(unknown) = only.iter().find(|name| !mutations.iter().any(|m| m.name == **name)) {
        bail!("{PATCHES} has no {unknown}.patch");
    }
    Ok(mutations)
}

impl Mutation {
    fn read(name: String, path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(EXPECT));
        let line = line.with_context(|| format!("{} has no line `{EXPECT}CHECKER`", path.display()))?;
        let expected = line.split(',').map(|word| word.trim().to_owned()).collect();
        let from = text.lines().find_map(|line| line.strip_prefix(FROM)).map_or(Ok(1), str::parse);
        let from = from.with_context(|| format!("{} has no number after `{FROM}`", path.display()))?;
        Ok(Self { name, path, expected, from })
    }

    fn is_found(&self, found: &Found) -> bool {
        matches!(found, Found::By { checker, .. } | Found::Kept { checker, .. }
            if self.expected.iter().any(|name| name.eq_ignore_ascii_case(checker)))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { checker, seed } => write!(f, "by {checker} at seed {seed}"),
            Self::Kept { checker, case } => write!(f, "by {checker} in {case}"),
            Self::Not { seeds } => write!(f, "NOT FOUND in {seeds} seeds"),
            Self::Failed { why } => write!(f, "NOT FOUND: {why}"),
        }
    }
}

/// Breaks the scratch copy, hunts in it, and mends it again. A patch that does not apply, or cannot be compiled, is told of
/// as any other that is not found: the run goes on to its table.
fn hunt(scratch: &Scratch, mutation: &Mutation, seeds: u64) -> Result<Found> {
    let failed = |error: anyhow::Error| Found::Failed { why: format!("{error:#}") };
    if let Err(error) = scratch.apply(&mutation.path, &[]) {
        return Ok(failed(error));
    }
    let found = match scratch.build() {
        Ok(()) => match scratch.hunt(mutation.from, seeds) {
            Ok(Found::Not { seeds }) => {
                scratch.replay_kept().map(|kept| kept.unwrap_or(Found::Not { seeds }))
            }
            found => found,
        },
        Err(error) => Ok(failed(error)),
    };
    // Also when the build failed: the next fault begins with the tree as it is.
    scratch.apply(&mutation.path, &["--reverse"])?;
    found
}

/// A copy of the tree that may be broken, removed with this value; what is built from it stays for the next time.
#[derive(Debug)]
struct Scratch {
    tree: PathBuf,
    target: PathBuf,
    /// Held while this lives, so that two runs do not break each other's tree.
    _lock: File,
}

impl Scratch {
    /// Copies every file that git tracks or would track. All get the time of now, so that cargo takes none of them for
    /// one that an earlier run has built from.
    fn copy_of(root: &Path, place: &Path) -> Result<Self> {
        fs::create_dir_all(place).with_context(|| format!("{} cannot be made", place.display()))?;
        let lock = File::create(place.join("lock")).context("a lock file cannot be made")?;
        lock.lock().context("a lock file cannot be locked")?;
        let tree = place.join("tree");
        let target = place.join("target");
        // Left over from a run that was killed.
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("{} cannot be removed", tree.display()))?;
        }
        let scratch = Self { tree, target, _lock: lock };
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
        let output = git.output().context("git cannot be started")?;
        ensure!(output.status.success(), "git ls-files failed");
        let names = String::from_utf8(output.stdout).context("a file name is no text")?;
        for name in names.split_terminator('\0').filter(|name| root.join(name).is_file()) {
            let to = scratch.tree.join(name);
            to.parent().map_or(Ok(()), fs::create_dir_all).context("a folder cannot be made")?;
            fs::copy(root.join(name), &to).with_context(|| format!("{name} cannot be copied"))?;
        }
        Ok(scratch)
    }

    fn apply(&self, patch: &Path, how: &[&str]) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(&self.tree).arg("apply").args(how).arg(patch);
        // Were the cache within some repository, git would look for the files of the patch there.
        git.env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        let status = git.status().context("git cannot be started")?;
        ensure!(status.success(), "{} does not apply to the tree any more", patch.display());
        Ok(())
    }

    fn build(&self) -> Result<()> {
        let mut cargo = cargo::command(&self.tree);
        // A fault changes a few lines: three times as fast, for a simulator that is as fast.
        cargo.env("CARGO_TARGET_DIR", &self.target).env("CARGO_INCREMENTAL", "1");
        cargo.args(["build", "--release", "--locked", "--quiet", "--package", "keelson-sim"]);
        let status = cargo.status().context("cargo cannot be started")?;
        ensure!(status.success(), "the simulator with this fault cannot be compiled");
        Ok(())
    }

    fn hunt(&self, from: u64, seeds: u64) -> Result<Found> {
        let (seeds_said, from_said) = (seeds.to_string(), from.to_string());
        let words = ["hunt", "--first", "--output", "json", "--seeds", &seeds_said, "--from", &from_said];
        let (text, ended) = self.simulate(&words)?;
        if !ended {
            let why = format!("the hunt did not end within {} s", HUNT_MAX.as_secs());
            return Ok(Found::Failed { why });
        }
        let Ok(report) = serde_json::from_str::<Report>(&text) else {
            return Ok(Found::Failed { why: "the simulator ended without a report".to_owned() });
        };
        Ok(match report.failures.into_iter().next() {
            None => Found::Not { seeds: report.seeds },
            Some(Failure { seed, violation }) => Found::By { checker: violation.checker, seed },
        })
    }

    /// Runs the simulator: what it says, and whether it ended in time.
    fn simulate(&self, words: &[&str]) -> Result<(String, bool)> {
        let said = self.target.join("report.json");
        let file = File::create(&said).with_context(|| format!("{} cannot be made", said.display()))?;
        let mut simulator = Command::new(self.target.join("release/keelson-sim"));
        let child = simulator.args(words).stdout(file).stdin(Stdio::null()).spawn();
        let ended = wait(child.context("the simulator cannot be started")?)?;
        Ok((fs::read_to_string(&said).context("what the simulator said cannot be read")?, ended))
    }

    /// Plays the kept cases, in the order of their names, until one breaks a rule.
    fn replay_kept(&self) -> Result<Option<Found>> {
        let entries = fs::read_dir(self.tree.join(CASES)).context("the kept cases cannot be read")?;
        let mut cases: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        cases.sort();
        for case in cases {
            let name = case.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let (said, ended) = self.simulate(&["replay", &case.to_string_lossy()])?;
            if !ended {
                let why = format!("{name} did not end within {} s", HUNT_MAX.as_secs());
                return Ok(Some(Found::Failed { why }));
            }
            if let Some(checker) = broken(&said) {
                return Ok(Some(Found::Kept { checker: checker.to_owned(), case: name }));
            }
        }
        Ok(None)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.tree);
    }
}

/// The checker whose rule a replay has broken, from what it prints: `seed 7: Quorum at 61.2 s: ...`.
fn broken(said: &str) -> Option<&str> {
    let line = said.lines().find(|line| line.starts_with("seed ") && line.contains(": "))?;
    line.split_once(": ")?.1.split_whitespace().next()
}

/// Waits for the end of a process; false when it took too long and was killed.
fn wait(mut child: Child) -> Result<bool> {
    let began = Instant::now();
    while child.try_wait().context("a process cannot be waited for")?.is_none() {
        if began.elapsed() >= HUNT_MAX {
            child.kill().context("a process cannot be killed")?;
            child.wait().context("a process cannot be waited for")?;
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replay_breaks_is_read_from_what_it_prints() {
        let head = "seed 7, 2 faults, 1 wishes, from tests/sim/seeds/zone.json\n";
        assert_eq!(broken(&format!("{head}100 events in 0.1 s; converged 9 s after\n")), None);
        assert_eq!(broken(&format!("{head}seed 7: Quorum at 00:01:00.100: lost\n  line\n")), Some("Quorum"));
    }

    #[test]
    fn a_patch_that_does_not_apply_is_told_of_and_ends_nothing() {
        let place = std::env::temp_dir().join(format!("keelson-mutations-{}", std::process::id()));
        let tree = place.join("tree");
        fs::create_dir_all(&tree).unwrap();
        let lock = File::create(place.join("lock")).unwrap();
        let scratch = Scratch { target: place.join("target"), tree, _lock: lock };
        let path = place.join("gone.patch");
        let mutation = Mutation { name: "gone".to_owned(), path, expected: vec!["any".to_owned()], from: 1 };
        let found = hunt(&scratch, &mutation, 1).unwrap();
        assert!(found.to_string().contains("does not apply"), "{found}");
        assert!(!mutation.is_found(&found));
        drop(scratch);
        fs::remove_dir_all(&place).unwrap();
    }
}
