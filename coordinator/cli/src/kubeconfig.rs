//! Kubeconfig files: entries of our own names go in and out, everything else stays as it is.
//!
//! A cluster's entry carries an extension that names the installation that made it, so that two installations with a
//! cluster of the same name do not overwrite each other, and a delete removes only what it made. Writes are atomic and
//! leave the file before them beside it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keelson_api::{Code, Problem};
use serde_norway::{Mapping, Value};

use crate::failure::Failure;
use crate::session::Session;

/// Largest kubeconfig that is changed, in bytes: thousands of clusters.
const KUBECONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Lists of a kubeconfig that hold entries by name.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];
/// Name of the extension that marks an entry as ours.
const EXTENSION: &str = "keelson.dev/made-by";

/// Whether the current context may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CurrentContext {
    /// It stays as it is.
    Keep,
    /// The new entry becomes current.
    Set,
}

/// Name of a cluster's entries.
pub(crate) fn entry_name(cluster: &str) -> String {
    format!("keelson-{cluster}")
}

/// Files that kubectl reads, first one first.
pub(crate) fn files(session: &Session) -> Vec<PathBuf> {
    if let Some(list) = session.variable("KUBECONFIG") {
        return list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    }
    session.home().map(|home| vec![home.join(".kube/config")]).unwrap_or_default()
}

/// The file to write to: the one that has the entry already, else the first.
pub(crate) fn target(session: &Session, cluster: &str) -> Result<PathBuf, Failure> {
    let files = files(session);
    let name = entry_name(cluster);
    let has = |path: &&PathBuf| load(path).is_ok_and(|config| find(&config, "clusters", &name).is_some());
    let missing =
        || Failure::new(Code::KubeconfigUnusable, "there is no home directory to write a kubeconfig to");
    files.iter().find(has).or(files.first()).cloned().ok_or_else(missing)
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Failure {
    let what = format!("the kubeconfig {} cannot be changed; it is as it was", path.display());
    Problem::new(Code::KubeconfigUnusable, what).because(why).into()
}

fn empty() -> Mapping {
    let mut config = Mapping::new();
    config.insert("apiVersion".into(), "v1".into());
    config.insert("kind".into(), "Config".into());
    for list in LISTS {
        config.insert(list.into(), Value::Sequence(Vec::new()));
    }
    config
}

fn load(path: &Path) -> Result<Mapping, Failure> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(empty()),
        Err(error) => return Err(unusable(path, error)),
    };
    if length > KUBECONFIG_BYTES_MAX {
        return Err(unusable(path, format!("it has {length} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    if text.trim().is_empty() {
        return Ok(empty());
    }
    // The parser's message could quote a secret, so it is not passed on.
    match serde_norway::from_str::<Value>(&text) {
        Ok(Value::Mapping(config)) => Ok(config),
        _ => Err(unusable(path, "it is no YAML mapping")),
    }
}

fn find<'a>(config: &'a Mapping, list: &str, name: &str) -> Option<&'a Value> {
    let entries = config.get(list)?.as_sequence()?;
    entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
}

fn maker(entry: &Value) -> Option<&str> {
    let body = entry.get("cluster")?.get("extensions")?.as_sequence()?;
    let ours =
        body.iter().find(|extension| extension.get("name").and_then(Value::as_str) == Some(EXTENSION))?;
    ours.get("extension")?.get("install")?.as_str()
}

fn mark(entry: &mut Value, install: &str) {
    let Some(Value::Mapping(body)) = entry.get_mut("cluster") else { return };
    let mut content = Mapping::new();
    content.insert("install".into(), install.into());
    let mut extension = Mapping::new();
    extension.insert("name".into(), EXTENSION.into());
    extension.insert("extension".into(), Value::Mapping(content));
    body.insert("extensions".into(), Value::Sequence(vec![Value::Mapping(extension)]));
}

/// Merges the entries of `kubeconfig` (as the coordinator made it) into the file `path`.
pub(crate) fn merge(
    path: &Path,
    cluster: &str,
    install: &str,
    kubeconfig: &str,
    current: CurrentContext,
) -> Result<(), Failure> {
    let name = entry_name(cluster);
    let mut config = load(path)?;
    if let Some(entry) = find(&config, "clusters", &name)
        && maker(entry) != Some(install)
    {
        let other = maker(entry).unwrap_or("somebody else");
        let what = format!("{} has an entry {name} that was made by {other}", path.display());
        let remedy =
            format!("write to a file of its own: keelson cluster kubeconfig {cluster} --file ./{name}");
        return Err(Problem::new(Code::KubeconfigUnusable, what).remedy(remedy).into());
    }
    let new: Value = serde_norway::from_str(kubeconfig).map_err(|_| {
        Failure::new(Code::UnexpectedAnswer, "the coordinator sent a kubeconfig that is not YAML")
    })?;
    for list in LISTS {
        let wanted = new.get(list).and_then(Value::as_sequence).and_then(|entries| entries.first()).cloned();
        let Some(mut entry) = wanted.filter(|entry| entry.get("name").and_then(Value::as_str) == Some(&name))
        else {
            let what = format!("the coordinator sent a kubeconfig without an entry {name} in {list}");
            return Err(Failure::new(Code::UnexpectedAnswer, what));
        };
        if list == "clusters" {
            mark(&mut entry, install);
        }
        let entries =
            entries_mut(&mut config, list).ok_or_else(|| unusable(path, format!("{list} is no list")))?;
        match entries.iter_mut().find(|old| old.get("name").and_then(Value::as_str) == Some(&name)) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }
    if current == CurrentContext::Set {
        config.insert("current-context".into(), name.into());
    }
    save(path, &config)
}

fn entries_mut<'a>(config: &'a mut Mapping, list: &str) -> Option<&'a mut Vec<Value>> {
    let key = Value::from(list);
    let missing = config.get(&key).is_none_or(Value::is_null);
    if missing {
        config.insert(key.clone(), Value::Sequence(Vec::new()));
    }
    config.get_mut(&key)?.as_sequence_mut()
}

/// Removes a cluster's entries from `path`, when this installation made them. Says whether there were any.
pub(crate) fn remove(path: &Path, cluster: &str, install: &str) -> Result<bool, Failure> {
    let name = entry_name(cluster);
    let mut config = load(path)?;
    let ours = find(&config, "clusters", &name).and_then(maker) == Some(install);
    if !ours {
        return Ok(false);
    }
    for list in LISTS {
        if let Some(entries) = entries_mut(&mut config, list) {
            entries.retain(|entry| entry.get("name").and_then(Value::as_str) != Some(&name));
        }
    }
    // A current context that no longer exists makes every kubectl fail with a puzzle.
    if config.get("current-context").and_then(Value::as_str) == Some(&name) {
        config.insert("current-context".into(), "".into());
    }
    save(path, &config)?;
    Ok(true)
}

/// Replaces the file in one step, readable by its owner only; what was there before stays beside it.
fn save(path: &Path, config: &Mapping) -> Result<(), Failure> {
    let text = serde_norway::to_string(config).map_err(|_| unusable(path, "it cannot be written as YAML"))?;
    // A link stays a link: what it points to is replaced.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fail = |error: std::io::Error| unusable(path, error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).map_err(fail)?;
    let before = std::fs::read(path).ok();
    if before.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    if let Some(before) = before {
        let mut backup = path.clone().into_os_string();
        backup.push(".keelson-backup");
        replace(directory, Path::new(&backup), &before).map_err(fail)?;
    }
    replace(directory, path, text.as_bytes()).map_err(fail)
}

fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".keelson-").tempfile_in(directory)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Writes `kubeconfig` as a file of its own.
pub(crate) fn write_new(path: &Path, cluster: &str, install: &str, kubeconfig: &str) -> Result<(), Failure> {
    merge(path, cluster, install, kubeconfig, CurrentContext::Set)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "apiVersion: v1\nkind: Config\npreferences: {}\nclusters:\n- name: prod\n  cluster:\n    \
        server: https://prod\nusers:\n- name: me\n  user: {}\ncontexts:\n- name: prod\n  context:\n    cluster: prod\n    \
        user: me\ncurrent-context: prod\n";
    const OURS: &str = "clusters:\n- name: keelson-demo\n  cluster:\n    server: https://127.0.0.1:1\nusers:\n- name: \
        keelson-demo\n  user:\n    client-key-data: aaaa\ncontexts:\n- name: keelson-demo\n  context:\n    cluster: \
        keelson-demo\n    user: keelson-demo\ncurrent-context: keelson-demo\n";

    fn read(path: &Path) -> Value {
        serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn what_others_wrote_stays_and_the_current_context_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, FOREIGN).unwrap();
        merge(&path, "demo", "one", OURS, CurrentContext::Keep).unwrap();
        let merged = read(&path);
        assert_eq!(merged["current-context"], "prod");
        assert_eq!(merged["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(std::fs::read_to_string(dir.path().join("config.keelson-backup")).unwrap(), FOREIGN);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(remove(&path, "demo", "one").unwrap());
        assert_eq!(read(&path), serde_norway::from_str::<Value>(FOREIGN).unwrap());
        assert!(!remove(&path, "demo", "one").unwrap());
    }

    #[test]
    fn the_current_context_changes_only_when_asked_and_never_dangles() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config");
        merge(&path, "demo", "one", OURS, CurrentContext::Keep).unwrap();
        assert!(read(&path).get("current-context").is_none());
        merge(&path, "demo", "one", OURS, CurrentContext::Set).unwrap();
        assert_eq!(read(&path)["current-context"], "keelson-demo");
        assert_eq!(read(&path)["clusters"].as_sequence().unwrap().len(), 1);
        assert!(remove(&path, "demo", "one").unwrap());
        assert_eq!(read(&path)["current-context"], "");
    }

    #[test]
    fn entries_of_another_installation_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        merge(&path, "demo", "one", OURS, CurrentContext::Keep).unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        let failure = merge(&path, "demo", "two", OURS, CurrentContext::Keep).unwrap_err();
        assert_eq!(failure.code(), Some(Code::KubeconfigUnusable));
        assert!(!remove(&path, "demo", "two").unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn a_broken_file_is_not_touched_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "token: [verysecret").unwrap();
        let failure = merge(&path, "demo", "one", OURS, CurrentContext::Keep).unwrap_err();
        assert!(!failure.to_string().contains("verysecret"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "token: [verysecret");
    }
}
