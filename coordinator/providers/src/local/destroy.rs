//! Removes an installation from the host, from whatever state it is in, and says everything that it could not remove.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_protocol::errors::chain;

use super::error::LocalError;
use super::files::{self, FileLock};
use super::paths::Paths;
use super::site::Site;
use super::{forwards, lan, mounts, record};

/// How long one machine may take to go.
const MACHINE_WAIT: Duration = Duration::from_secs(30);

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("some of the installation in {state_dir} could not be removed: {}", failures.join("; "))]
pub struct DestroyError {
    /// The installation's state directory.
    pub state_dir: String,
    /// One sentence for each thing that is left, with its cause.
    pub failures: Vec<String>,
}

/// Removes every machine, namespace, mount, control group and process of the installation in `state_dir`, and its
/// files. Needs no image and no coordinator. That there is no installation is success.
///
/// # Errors
/// [`DestroyError`] lists all that is left; calling again is safe.
pub fn destroy(state_dir: &Path) -> Result<(), DestroyError> {
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<(), LocalError>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {}", chain(&error)));
        }
    };
    let paths = Paths::new(state_dir);
    // A coordinator that still lives would start another one for what is on its list.
    note("forwards", files::remove_file(&paths.forwards()));
    note("forwarder", forwards::stop(&paths));
    match Site::load(state_dir) {
        Ok(Some(site)) => machines(&site, &mut note),
        Ok(None) => {}
        Err(error) => note("installation", Err(error)),
    }
    note("network", lan::remove(&paths));
    // They say what is left: without them another try would find nothing to do.
    if failures.is_empty() {
        let removed = mounts::remove_tree(paths.root());
        failures.extend(removed.err().map(|error| format!("files: {}", chain(&error))));
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(DestroyError { state_dir: state_dir.display().to_string(), failures })
}

fn machines(site: &Site, note: &mut impl FnMut(&str, Result<(), LocalError>)) {
    match record::machines(&site.paths) {
        Ok(records) => {
            for record in records {
                let until = Instant::now() + MACHINE_WAIT;
                let id = record.id().clone();
                let removed = FileLock::acquire(&site.paths.machine_lock(&id), until)
                    .and_then(|_lock| site.remove(record, until));
                note(&format!("machine {id}"), removed);
            }
        }
        Err(error) => note("machines", Err(error)),
    }
    match record::unrecorded(&site.paths) {
        Ok(ids) => {
            for id in ids {
                let until = Instant::now() + MACHINE_WAIT;
                let removed = FileLock::acquire(&site.paths.machine_lock(&id), until)
                    .and_then(|_lock| site.remove_unrecorded(&id, until));
                note(&format!("machine {id}, which has no record"), removed);
            }
        }
        Err(error) => note("machines", Err(error)),
    }
    let lock_dir = site.paths.locks();
    note("control groups", site.cgroups.remove_all(Instant::now() + MACHINE_WAIT));
    note("locks", files::remove_tree(&lock_dir));
}

/// What is left of an installation on this host, one line each: mounts below its directory, its control groups, its
/// directory. Empty after a successful [`destroy`]; for tests and for `down` to prove that it did its work.
#[must_use]
pub fn leftovers(state_dir: &Path, install: &keelson_protocol::InstallId) -> Vec<String> {
    let paths = Paths::new(state_dir);
    let mut found = Vec::new();
    match mounts::below(paths.root()) {
        Ok(points) => found.extend(points.iter().map(|point| format!("mount {}", point.display()))),
        Err(error) => found.push(chain(&error)),
    }
    match super::cgroups::Cgroups::detect(install) {
        Ok(groups) => {
            found.extend(groups.leftovers().iter().map(|g| format!("control group {}", g.display())))
        }
        Err(error) => found.push(chain(&error)),
    }
    if paths.root().exists() {
        found.push(format!("directory {}", paths.root().display()));
    }
    found
}
