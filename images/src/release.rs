//! Releases: the named, immutable sets of upstream parts that belong together. They are data (`releases/*.json`).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The release files, newest first. The first one is what a cluster gets when nobody says otherwise.
const RELEASE_FILES: [&str; 2] =
    [include_str!("../releases/1.37.2.json"), include_str!("../releases/1.36.3.json")];

/// The name of the sandbox image that every release of this version of Keelson carries.
pub const PAUSE_IMAGE: &str = "registry.keelson.internal/pause:3.10";
/// The name of the DNS image that the newest release carries. Other releases name theirs in [`Release`].
pub const COREDNS_IMAGE: &str = "registry.keelson.internal/coredns:1.15.0";
/// The name of the demo application's image.
pub const DEMO_IMAGE: &str = "registry.keelson.internal/demo:0.1.0";
/// The name of the image of the pods of a cluster check; `keelson-check` uses it by this name.
pub const PROBE_IMAGE: &str = "registry.keelson.internal/probe:0.1.0";

/// The name of a release, for example `1.37.2`: digits and dots only, as it becomes part of paths on every node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseName(String);

/// A release name has other characters than digits and dots, is empty or too long.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a release name (like 1.37.2: digits and dots)")]
pub struct InvalidReleaseName(String);

impl TryFrom<String> for ReleaseName {
    type Error = InvalidReleaseName;

    fn try_from(text: String) -> Result<ReleaseName, InvalidReleaseName> {
        let part_is_number = |part: &str| {
            !part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if text.split('.').count() == 3 && text.split('.').all(part_is_number) {
            Ok(ReleaseName(text))
        } else {
            Err(InvalidReleaseName(text))
        }
    }
}

impl From<ReleaseName> for String {
    fn from(name: ReleaseName) -> String {
        name.0
    }
}

impl std::fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl ReleaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One release: which version of each upstream project, under which names its container images are on a node, and
/// which releases may be upgraded to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Version of this format; 1.
    pub schema: u32,
    /// Its name.
    pub name: ReleaseName,
    /// The releases from which a cluster may go to this one. Kubernetes allows one minor version at a time:
    /// <https://kubernetes.io/releases/version-skew-policy/>.
    pub upgrade_from: Vec<ReleaseName>,
    /// Upstream project to version, for example `kubernetes` to `1.37.2`.
    pub components: BTreeMap<String, String>,
    /// Part (`pause`, `coredns`) to the name of its container image.
    pub container_images: BTreeMap<String, String>,
}

static RELEASES: LazyLock<Vec<Release>> = LazyLock::new(|| {
    let parse = |text: &&str| serde_json::from_str(text).expect("the release files are checked by a test");
    RELEASE_FILES.iter().map(parse).collect()
});

/// No release has this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no release {name:?}; known are {known}")]
pub struct UnknownRelease {
    /// What was asked for.
    pub name: String,
    /// What there is, separated by commas.
    pub known: String,
}

impl Release {
    /// All releases, newest first.
    pub fn all() -> &'static [Release] {
        &RELEASES
    }

    /// The newest release.
    pub fn newest() -> &'static Release {
        &RELEASES[0]
    }

    /// The release called `name`.
    ///
    /// # Errors
    /// There is none; the error lists those that there are.
    pub fn find(name: &str) -> Result<&'static Release, UnknownRelease> {
        Release::all().iter().find(|release| release.name.as_str() == name).ok_or_else(|| UnknownRelease {
            name: name.to_owned(),
            known: Release::all().iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether a cluster on release `from` may go to this one directly.
    pub fn can_follow(&self, from: &ReleaseName) -> bool {
        self.upgrade_from.contains(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_files_are_sound() {
        for release in Release::all() {
            assert_eq!(release.schema, 1);
            assert_eq!(release.components["kubernetes"], release.name.as_str());
            for project in ["etcd", "containerd", "runc", "coredns", "cni-plugins"] {
                assert!(release.components.contains_key(project), "{project}");
            }
            assert_eq!(release.container_images["pause"], PAUSE_IMAGE);
            let dns = format!("registry.keelson.internal/coredns:{}", release.components["coredns"]);
            assert_eq!(release.container_images["coredns"], dns);
            for from in &release.upgrade_from {
                assert!(Release::find(from.as_str()).is_ok(), "{from}");
            }
        }
        assert_eq!(Release::newest().container_images["coredns"], COREDNS_IMAGE);
    }

    #[test]
    fn upgrade_paths_go_one_way() {
        let (old, new) = (Release::find("1.36.3").unwrap(), Release::find("1.37.2").unwrap());
        assert!(new.can_follow(&old.name));
        assert!(!old.can_follow(&new.name));
        assert!(!new.can_follow(&new.name));
    }

    #[test]
    fn names() {
        let unknown = Release::find("1.0.0").unwrap_err().to_string();
        assert_eq!(unknown, "there is no release \"1.0.0\"; known are 1.37.2, 1.36.3");
        for wrong in ["", "1", "1.2", "1.2.3.4", "1.2.x", "../1.2", "1..2", "1.2.33333", " 1.2.3"] {
            assert!(ReleaseName::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
