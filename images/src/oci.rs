//! A small writer of container images, from files and layers: the same bytes for the same input.
//!
//! The file is an OCI image layout in a tar (<https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>)
//! that also carries the `manifest.json` of a docker archive, so `ctr images import`, skopeo and podman all take it.
//! Layers are not compressed: a node imports the image from its own disk, and unpacking would cost boot time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::manifest::Architecture;

/// Media type of the manifest of an image.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// User and group of a process without rights in our images: the id that Kubernetes documents use for "nonroot".
const NONROOT_ID: u32 = 65_532;

/// A container image to write: one static program and what it needs to know users and names.
#[derive(Clone, Debug)]
pub struct OciImage<'a> {
    /// Name with registry and tag.
    pub name: &'a str,
    /// Absolute path of the program in the image.
    pub entrypoint: &'a str,
    /// Content of the program, a static binary.
    pub program: &'a [u8],
    /// TCP ports that it listens on.
    pub ports: &'a [u16],
    /// What the program runs on.
    pub architecture: Architecture,
    /// Time of all files, in seconds since 1970.
    pub epoch: u64,
}

impl OciImage<'_> {
    /// The bytes of the image file.
    ///
    /// # Errors
    /// When a path does not fit a tar header.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let layer = self.layer()?;
        let config = ImageConfig {
            entrypoint: vec![self.entrypoint.to_owned()],
            ports: self.ports.to_vec(),
            ..ImageConfig::default()
        };
        let image = Image { name: self.name, layers: vec![&layer], config: &config };
        archive(&[image], self.architecture, self.epoch)
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut archive = Archive::new(self.epoch);
        let passwd = format!(
            "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{NONROOT_ID}:{NONROOT_ID}:nonroot:/:/sbin/nologin\n\
             nobody:x:65534:65534:nobody:/:/sbin/nologin\n"
        );
        let group = format!("root:x:0:\nnonroot:x:{NONROOT_ID}:\nnogroup:x:65534:\n");
        archive.dir("etc/")?;
        archive.file("etc/group", 0o644, group.as_bytes())?;
        // Without it a static program asks DNS only and misses the names in /etc/hosts.
        archive.file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n")?;
        archive.file("etc/passwd", 0o644, passwd.as_bytes())?;
        archive.file(self.entrypoint.trim_start_matches('/'), 0o755, self.program)?;
        archive.finish()
    }
}

/// How a container of an image is run (image-spec, "config"): what is empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ImageConfig {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) ports: Vec<u16>,
}

impl ImageConfig {
    fn to_json(&self, architecture: Architecture, diff_ids: &[String]) -> Vec<u8> {
        let ports: Value = self.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
        let mut config = json!({"Entrypoint": self.entrypoint, "ExposedPorts": ports, "WorkingDir": "/"});
        for (name, value) in [("Cmd", json!(self.cmd)), ("Env", json!(self.env)), ("User", json!(self.user))]
        {
            if !matches!(value.as_array(), Some(list) if list.is_empty()) && value != json!("") {
                config[name] = value;
            }
        }
        to_json(&json!({
            "architecture": architecture.as_str(),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
    }
}

/// An image of an archive: layers are tar streams, lowest first.
pub(crate) struct Image<'a> {
    pub(crate) name: &'a str,
    pub(crate) layers: Vec<&'a [u8]>,
    pub(crate) config: &'a ImageConfig,
}

/// The bytes of an archive with these images. What several of them have is in it once.
pub(crate) fn archive(images: &[Image<'_>], architecture: Architecture, epoch: u64) -> io::Result<Vec<u8>> {
    let mut blobs: BTreeMap<String, Cow<'_, [u8]>> = BTreeMap::new();
    let mut digests: BTreeMap<(*const u8, usize), String> = BTreeMap::new();
    let (mut entries, mut docker) = (Vec::new(), Vec::new());
    for Image { name, layers, config } in images {
        // A layer of many images is hashed once: they share its memory.
        let layers: Vec<(String, usize)> = layers
            .iter()
            .map(|layer| {
                let digest = digests
                    .entry((layer.as_ptr(), layer.len()))
                    .or_insert_with(|| Digest::of(layer).to_string());
                blobs.entry(blob_path(digest)).or_insert(Cow::Borrowed(layer));
                (digest.clone(), layer.len())
            })
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|(digest, _)| format!("sha256:{digest}")).collect();
        let config = config.to_json(architecture, &diff_ids);
        let described: Vec<Value> = layers
            .iter()
            .map(|(digest, size)| descriptor("application/vnd.oci.image.layer.v1.tar", digest, *size))
            .collect();
        let config_digest = Digest::of(&config).to_string();
        let manifest = to_json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len()),
            "layers": described,
        }));
        let manifest_digest = Digest::of(&manifest).to_string();
        let mut entry = descriptor(MANIFEST, &manifest_digest, manifest.len());
        entry["platform"] = json!({"architecture": architecture.as_str(), "os": "linux"});
        entry["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rsplit(':').next().unwrap_or("latest"),
        });
        entries.push(entry);
        let paths: Vec<String> = layers.iter().map(|(digest, _)| blob_path(digest)).collect();
        docker.push(json!({ "Config": blob_path(&config_digest), "RepoTags": [name], "Layers": paths }));
        blobs.insert(blob_path(&config_digest), Cow::Owned(config));
        blobs.insert(blob_path(&manifest_digest), Cow::Owned(manifest));
    }
    let index = to_json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }));
    let layout = to_json(&json!({"imageLayoutVersion": "1.0.0"}));

    let mut archive = Archive::new(epoch);
    archive.dir("blobs/")?;
    archive.dir("blobs/sha256/")?;
    for (path, blob) in &blobs {
        archive.file(path, 0o644, blob)?;
    }
    archive.file("index.json", 0o644, &index)?;
    archive.file("manifest.json", 0o644, &to_json(&Value::Array(docker)))?;
    archive.file("oci-layout", 0o644, &layout)?;
    archive.finish()
}

/// The bytes of a JSON value with sorted keys, whichever map another crate of the program makes `serde_json` use.
pub(crate) fn to_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(&sorted(value)).expect("a JSON value can be written")
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<_, _> =
                map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

struct Archive {
    tar: tar::Builder<Vec<u8>>,
    epoch: u64,
}

impl Archive {
    fn new(epoch: u64) -> Archive {
        Archive { tar: tar::Builder::new(Vec::new()), epoch }
    }

    fn dir(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, tar::EntryType::Directory, 0o755, &[])
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, tar::EntryType::Regular, mode, content)
    }

    fn entry(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.epoch);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        self.tar.get_mut().flush()?;
        self.tar.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn entries(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, (entry.header().mode().unwrap(), content))
        };
        archive.entries().unwrap().map(read).collect()
    }

    fn sample() -> Vec<u8> {
        let image = OciImage {
            name: "registry.keelson.internal/demo:0.1.0",
            entrypoint: "/demo",
            program: b"program",
            ports: &[8080],
            architecture: Architecture::Amd64,
            epoch: 7,
        };
        image.to_bytes().unwrap()
    }

    #[test]
    fn every_reference_leads_to_a_blob_with_that_digest() {
        let files = entries(&sample());
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path].1).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{digest}")].1;
            assert_eq!(Digest::of(content).to_string(), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index = json("index.json");
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(annotations["io.containerd.image.name"], "registry.keelson.internal/demo:0.1.0");
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = entries(blob(&manifest["layers"][0]));
        assert_eq!(layer["demo"], (0o755, b"program".to_vec()));
        assert_eq!(config["config"]["Entrypoint"], json!(["/demo"]));
        let docker = json("manifest.json");
        assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        assert_eq!(Digest::of(&sample()), Digest::of(&sample()));
    }
}
