//! The software bill of materials: CycloneDX 1.6 (<https://cyclonedx.org/docs/1.6/json/>), the same for the same image.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::KeyBuilder;
use crate::layers::LayerRecord;
use crate::manifest::DebianPackage;
use crate::release::ReleaseName;
use crate::upstream::buildinfo::GoModule;

/// One thing that is part of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Component {
    /// Package URL (<https://github.com/package-url/purl-spec>); identifies it.
    pub(crate) purl: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// SHA-256 of the package file, in hexadecimal, where its ecosystem pins that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Go's own kind of sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) go_sum: Option<String>,
}

impl Component {
    pub(crate) fn debian(package: &DebianPackage) -> Component {
        let DebianPackage { name, version, architecture } = package;
        Component {
            purl: format!(
                "pkg:deb/debian/{}@{}?arch={architecture}&distro=debian-12",
                encode(name, ""),
                encode(version, "")
            ),
            name: name.clone(),
            version: version.clone(),
            sha256: None,
            go_sum: None,
        }
    }

    pub(crate) fn go(module: &GoModule) -> Component {
        Component {
            purl: format!("pkg:golang/{}@{}", encode(&module.path, "/"), encode(&module.version, "")),
            name: module.path.clone(),
            version: module.version.clone(),
            sha256: None,
            go_sum: module.sum.clone(),
        }
    }
}

/// Percent-encodes all but unreserved characters and those in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte);
        if plain || keep.as_bytes().contains(&byte) {
            encoded.push(byte.into());
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    encoded
}

/// A Cargo.lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is not in Cargo's form.
    #[error("the Cargo.lock cannot be understood")]
    Malformed(#[from] toml::de::Error),
    /// A crate that goes into the image is not in it.
    #[error("the Cargo.lock has no package {package:?}; build the workspace first")]
    NoPackage {
        /// The name of the crate.
        package: String,
    },
}

#[derive(Deserialize)]
struct LockFile {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// The crates that `package` needs according to a Cargo.lock, itself included. A lock file does not tell what is only
/// for tests and builds, so this may name more than is compiled in, never less.
pub(crate) fn cargo_components(lock: &str, package: &str) -> Result<Vec<Component>, LockError> {
    let lock: LockFile = toml::from_str(lock)?;
    let find = |wanted: &str| {
        let mut parts = wanted.split(' ');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next());
        lock.package.iter().find(|p| p.name == name && version.is_none_or(|version| p.version == version))
    };
    let mut found = BTreeMap::new();
    let mut pending = vec![package.to_owned()];
    while let Some(wanted) = pending.pop() {
        let locked = find(&wanted).ok_or(LockError::NoPackage { package: wanted })?;
        let purl = format!("pkg:cargo/{}@{}", encode(&locked.name, ""), encode(&locked.version, ""));
        let component = Component {
            purl: purl.clone(),
            name: locked.name.clone(),
            version: locked.version.clone(),
            sha256: locked.checksum.clone(),
            go_sum: None,
        };
        if found.insert(purl, component).is_none() {
            pending.extend(locked.dependencies.iter().cloned());
        }
    }
    Ok(found.into_values().collect())
}

/// The document for an image of these layers.
pub(crate) fn document(release: &ReleaseName, layers: &[LayerRecord]) -> Vec<u8> {
    let mut serial = KeyBuilder::new("sbom");
    let mut components: BTreeMap<&str, (&Component, Vec<&str>)> = BTreeMap::new();
    for layer in layers {
        serial = serial.with(layer.layer.name.as_str(), layer.layer.digest.as_bytes());
        for component in &layer.content.components {
            let layers = &mut components.entry(&component.purl).or_insert((component, Vec::new())).1;
            if layers.last() != Some(&layer.layer.name.as_str()) {
                layers.push(layer.layer.name.as_str());
            }
        }
    }
    let components: Vec<Value> = components.values().map(|(c, layers)| describe(c, layers)).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid(serial.finish().as_bytes()),
        "version": 1,
        "metadata": {"component": {
            "type": "operating-system",
            "name": "keelson-node",
            "version": release.as_str(),
            "bom-ref": "image",
        }},
        "components": components,
    });
    let mut bytes = crate::oci::to_json(&document);
    bytes.push(b'\n');
    bytes
}

fn describe(component: &Component, layers: &[&str]) -> Value {
    let mut properties: Vec<Value> =
        layers.iter().map(|layer| json!({"name": "keelson:layer", "value": layer})).collect();
    if let Some(sum) = &component.go_sum {
        properties.push(json!({"name": "keelson:go-sum", "value": sum}));
    }
    let mut value = json!({
        "type": "library",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
        "properties": properties,
    });
    if let Some(sha256) = &component.sha256 {
        value["hashes"] = json!([{"alg": "SHA-256", "content": sha256}]);
    }
    value
}

/// A name-based UUID (RFC 9562, version 8) of a digest.
fn uuid(digest: &[u8; 32]) -> String {
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layers::{LAYER_SCHEMA, LayerContent};
    use crate::manifest::{LayerName, LayerRef};

    const LOCK: &str = r#"
version = 4

[[package]]
name = "agent"
version = "0.1.0"
dependencies = ["a", "b 2.0.0"]

[[package]]
name = "a"
version = "1.0.0+x"
checksum = "aa"
dependencies = ["agent"]

[[package]]
name = "b"
version = "1.0.0"

[[package]]
name = "b"
version = "2.0.0"

[[package]]
name = "unused"
version = "1.0.0"
"#;

    #[test]
    fn only_what_is_needed_is_named_also_with_cycles_and_two_versions() {
        let components = cargo_components(LOCK, "agent").unwrap();
        let purls: Vec<_> = components.iter().map(|component| component.purl.as_str()).collect();
        assert_eq!(purls, ["pkg:cargo/a@1.0.0%2Bx", "pkg:cargo/agent@0.1.0", "pkg:cargo/b@2.0.0"]);
        let error = cargo_components(LOCK, "absent").unwrap_err().to_string();
        assert_eq!(error, "the Cargo.lock has no package \"absent\"; build the workspace first");
    }

    #[test]
    fn purls() {
        let debian = DebianPackage {
            name: "libstdc++6".to_owned(),
            version: "1:12.2.0-14+deb12u1".to_owned(),
            architecture: "amd64".to_owned(),
        };
        let expected = "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12";
        assert_eq!(Component::debian(&debian).purl, expected);
        let module = GoModule {
            path: "github.com/Azure/go-autorest".to_owned(),
            version: "v14.2.0+incompatible".to_owned(),
            sum: None,
        };
        assert_eq!(
            Component::go(&module).purl,
            "pkg:golang/github.com/Azure/go-autorest@v14.2.0%2Bincompatible"
        );
    }

    #[test]
    fn the_document_names_each_component_once_with_its_layers() {
        let component = cargo_components(LOCK, "b 2.0.0").unwrap().remove(0);
        let record = |name: LayerName| LayerRecord {
            schema: LAYER_SCHEMA,
            layer: LayerRef { name, digest: Digest::of(b""), size_bytes: 0, entries: 0 },
            content: LayerContent {
                components: vec![component.clone(), component.clone()],
                ..LayerContent::default()
            },
        };
        let release = ReleaseName::try_from("1.37.2".to_owned()).unwrap();
        let layers = [record(LayerName::Release), record(LayerName::Agent)];
        let bytes = document(&release, &layers);
        assert_eq!(bytes, document(&release, &layers));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["components"].as_array().unwrap().len(), 1);
        assert_eq!(value["components"][0]["properties"][1]["value"], "agent");
        assert!(value["serialNumber"].as_str().unwrap().starts_with("urn:uuid:"));
    }
}
