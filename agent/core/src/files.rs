//! Owned files: written when they differ, removed when no config wants them any more.

use std::collections::{BTreeMap, BTreeSet};

use keelson_protocol::SecretBytes;
use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::EventKind;

use crate::action::{FileWrite, Step, StepKey};
use crate::core::AgentCore;
use crate::desired::{Desired, DesiredFile};
use crate::event::{FileSeen, StepOutput};
use crate::looks::Class;
use crate::rest::News;
use crate::unit_text;

#[derive(Debug)]
pub(crate) struct Files {
    seen: BTreeMap<String, FileSeen>,
    /// Whether all were as wanted at the last comparison.
    stand: bool,
    /// Were as wanted at least once under this config: another state from then on is drift.
    settled: BTreeSet<String>,
    /// Could not be written when it was last tried.
    failed: BTreeSet<String>,
    /// Files in the step that is in flight, with what was seen of those that had drifted.
    writing: BTreeMap<String, Option<String>>,
    /// Files that the step in flight removes.
    removing: Vec<String>,
    /// systemd has not read the unit files since they last changed.
    pub(crate) reload_due: bool,
}

impl Files {
    /// After a start of the agent nobody knows whether systemd has read what is on disk: it costs little to make sure.
    pub(crate) fn new() -> Self {
        Self {
            seen: BTreeMap::new(),
            stand: false,
            settled: BTreeSet::new(),
            failed: BTreeSet::new(),
            writing: BTreeMap::new(),
            removing: Vec::new(),
            reload_due: true,
        }
    }

    pub(crate) fn config_changed(&mut self) {
        self.settled.clear();
        self.failed.clear();
    }

    pub(crate) fn seen(&mut self, files: BTreeMap<String, FileSeen>) -> News {
        let before = std::mem::replace(&mut self.seen, files);
        News::when(before != self.seen)
    }

    /// Whether the file is known to be as wanted. What was seen of one that is being changed says nothing: the step in flight
    /// may be for a config that is no more.
    pub(crate) fn is_as_wanted(&self, path: &str, wanted: &DesiredFile) -> bool {
        self.stand || !self.is_changing(path) && self.seen.get(path).is_some_and(|seen| wanted.is(seen))
    }

    /// Paths that the step in flight changes.
    pub(crate) fn changing(&self) -> impl Iterator<Item = &String> {
        self.writing.keys().chain(&self.removing)
    }

    fn is_changing(&self, path: &str) -> bool {
        self.changing().any(|other| other == path)
    }

    /// The first file that is still on its way. One that cannot be written is not: it must not hold up everything.
    pub(crate) fn on_its_way<'a>(&self, desired: &'a Desired) -> Option<&'a str> {
        if self.stand {
            return None;
        }
        let mut missing = desired.files.iter().filter(|(path, wanted)| !self.is_as_wanted(path, wanted));
        missing.find(|(path, _)| !self.failed.contains(*path)).map(|(path, _)| path.as_str())
    }

    pub(crate) fn all_as_wanted(&self) -> bool {
        self.stand
    }

    /// Compares all files. Both sides are in order of their paths, so that one walk along both is enough.
    fn compare(&mut self, desired: &Desired) {
        let mut seen = self.seen.iter();
        self.stand = desired.files.iter().all(|(path, wanted)| {
            let found = seen.find(|(other, _)| *other >= path);
            found.is_some_and(|(other, seen)| other == path && wanted.is(seen)) && !self.is_changing(path)
        });
        if self.settled.len() == desired.files.len() {
            return;
        }
        for (path, wanted) in &desired.files {
            if self.is_as_wanted(path, wanted) {
                self.settled.insert(path.clone());
            }
        }
    }
}

impl DesiredFile {
    fn is(&self, seen: &FileSeen) -> bool {
        matches!(seen, FileSeen::Present { digest, mode } if *digest == self.digest && *mode == self.mode)
    }
}

impl AgentCore {
    pub(crate) fn reconcile_files(&mut self, config: &NodeConfig, desired: &Desired) {
        self.files.compare(desired);
        if self.free(&StepKey::Files) {
            let different = self.different(desired);
            if different.is_empty() {
                self.remove_stale_files(desired);
            } else {
                self.write(config, desired, different);
            }
        }
        let files_moving = self.is_in_flight(&StepKey::Files) || self.files.on_its_way(desired).is_some();
        if self.files.reload_due && !files_moving && self.free(&StepKey::Reload) {
            self.files.reload_due = false;
            self.run(Step::Reload);
        }
    }

    /// Paths that are known to differ, with what was seen.
    fn different(&self, desired: &Desired) -> BTreeMap<String, String> {
        let mut different = BTreeMap::new();
        if self.files.stand {
            return different;
        }
        for (path, wanted) in &desired.files {
            let seen = match self.files.seen.get(path) {
                Some(FileSeen::Absent) => "it was missing".to_owned(),
                Some(FileSeen::Present { digest, .. }) if *digest != wanted.digest => {
                    "its content was changed".to_owned()
                }
                Some(FileSeen::Present { mode, .. }) if *mode != wanted.mode => {
                    format!("its mode was {mode:o} instead of {:o}", wanted.mode)
                }
                // What cannot be read is made anew beside it, and put in its place.
                Some(FileSeen::Unknown { why }) => format!("it could not be read: {why}"),
                Some(FileSeen::Present { .. }) | None => continue,
            };
            different.insert(path.clone(), seen);
        }
        different
    }

    fn write(&mut self, config: &NodeConfig, desired: &Desired, different: BTreeMap<String, String>) {
        let mut writes = Vec::with_capacity(different.len());
        self.files.writing.clear();
        for (path, seen) in different {
            let wanted = &desired.files[&path];
            let content = SecretBytes::new(Desired::content(config, &wanted.source));
            writes.push(FileWrite { path: path.clone(), mode: wanted.mode, content, digest: wanted.digest });
            let drifted = self.files.settled.contains(&path).then_some(seen);
            self.files.writing.insert(path, drifted);
        }
        self.run(Step::WriteFiles(writes));
    }

    /// Files of earlier configs go when the units that may use them are gone.
    fn remove_stale_files(&mut self, desired: &Desired) {
        let stopped: Vec<String> = self
            .stale_units(desired)
            .filter(|name| self.is_known_stopped(name))
            .map(|name| unit_text::path(name))
            .collect();
        // All that is wanted is in the ledger, and what is in it beyond that is stale.
        let more = self.ledger.files.len() > desired.owned.len();
        let stale: Vec<String> = if !stopped.is_empty() {
            stopped
        } else if more && self.stale_units(desired).next().is_none() {
            self.ledger.files.difference(&desired.owned).cloned().collect()
        } else {
            return;
        };
        if !stale.is_empty() {
            self.files.removing.clone_from(&stale);
            self.run(Step::RemoveFiles(stale));
        }
    }

    pub(crate) fn files_done(&mut self, result: Result<StepOutput, String>) {
        self.look_again(Class::Files);
        let writing = std::mem::take(&mut self.files.writing);
        let removing = std::mem::take(&mut self.files.removing);
        if writing.keys().chain(&removing).any(|path| path.starts_with(unit_text::UNIT_DIRECTORY)) {
            self.files.reload_due = true;
        }
        // Whatever was changed is looked at again before anything relies on it.
        for path in writing.keys().chain(&removing) {
            self.files.seen.remove(path);
        }
        let untouched = match &result {
            Ok(StepOutput::Written { failed }) => failed.as_slice(),
            _ => &[],
        };
        self.inputs_touched(|input| {
            writing.contains_key(input) && !untouched.iter().any(|(path, _)| path == input)
        });
        match result {
            Ok(StepOutput::Written { failed }) => self.written(writing, failed.into_iter().collect()),
            Ok(_) => self.removed(&removing),
            Err(why) => {
                let failed = writing.keys().map(|path| (path.clone(), why.clone())).collect();
                self.written(writing, failed);
            }
        }
    }

    fn written(&mut self, writing: BTreeMap<String, Option<String>>, failed: BTreeMap<String, String>) {
        for (path, drifted) in writing {
            // Told once for all that could not be written, and tried again later.
            if failed.contains_key(&path) {
                self.files.failed.insert(path);
                continue;
            }
            self.files.failed.remove(&path);
            if let Some(cause) = drifted {
                self.note(EventKind::Repaired, &path, &cause, "written again");
            }
        }
    }

    /// Files were removed. One that a newer config wants again stays ours: what was just taken away is written again, and a
    /// path that is not ours would be left behind when no config wants it any more.
    fn removed(&mut self, removing: &[String]) {
        let wanted_again =
            |path: &String| self.desired.as_ref().is_some_and(|desired| desired.owned.contains(path));
        let gone: Vec<&String> = removing.iter().filter(|path| !wanted_again(path)).collect();
        for path in gone {
            self.ledger.files.remove(path);
            if let Some(unit) = path.strip_prefix(unit_text::UNIT_DIRECTORY) {
                self.forget_stale_unit(unit.trim_start_matches('/'));
            }
        }
        self.persist_soon();
    }

    pub(crate) fn reload_done(&mut self, result: &Result<StepOutput, String>) {
        if result.is_err() {
            self.files.reload_due = true;
        }
        self.look_again(Class::Units);
    }
}
