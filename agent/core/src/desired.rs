//! What a config asks for, worked out once when it is accepted: contents with digests, unit texts, inputs of units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keelson_protocol::config::{CertificateSpec, NodeConfig, UnitKind, UnitSpec};

use crate::digest::Digest;
use crate::unit_text;

/// Mode of unit files: everybody may read them, as those of the distribution.
const UNIT_FILE_MODE: u32 = 0o644;

/// A config with all that follows from it.
#[derive(Debug)]
pub(crate) struct Desired {
    /// Every file to own: those of the config and the unit files.
    pub(crate) files: BTreeMap<String, DesiredFile>,
    /// Their paths.
    pub(crate) paths: Arc<[String]>,
    /// Digest of each certificate's specification.
    pub(crate) certificates: BTreeMap<String, Digest>,
    /// Digest of each unit's inputs.
    pub(crate) inputs: BTreeMap<String, Digest>,
    /// Every path that the config makes, certificates included.
    pub(crate) owned: BTreeSet<String>,
}

/// A file to own.
#[derive(Debug)]
pub(crate) struct DesiredFile {
    pub(crate) mode: u32,
    pub(crate) digest: Digest,
    pub(crate) source: Source,
}

/// Where the content of a file comes from, so that it is not kept twice in memory.
#[derive(Debug)]
pub(crate) enum Source {
    /// The config's file with this index.
    Config(usize),
    /// The unit text of the config's unit with this index.
    Unit(usize),
}

impl Desired {
    pub(crate) fn of(config: &NodeConfig) -> Self {
        let mut files = BTreeMap::new();
        for (index, file) in config.files.iter().enumerate() {
            let digest = Digest::of(file.content.bytes());
            files.insert(
                file.path.clone(),
                DesiredFile { mode: file.mode & 0o7777, digest, source: Source::Config(index) },
            );
        }
        for (index, unit) in config.units.iter().enumerate().filter(|(_, unit)| unit.kind != UnitKind::Check)
        {
            let digest = Digest::of(unit_text::render(unit).as_bytes());
            let source = Source::Unit(index);
            files.insert(unit_text::path(&unit.name), DesiredFile { mode: UNIT_FILE_MODE, digest, source });
        }
        let certificates: BTreeMap<String, Digest> =
            config.certificates.iter().map(|spec| (spec.name.clone(), certificate_digest(spec))).collect();
        let inputs = config
            .units
            .iter()
            .map(|unit| (unit.name.clone(), inputs_digest(unit, &files, &certificates)))
            .collect();
        let paths = files.keys().cloned().collect();
        Self { files, paths, certificates, inputs, owned: owned_paths(config) }
    }

    /// Content of a file of this config.
    pub(crate) fn content(config: &NodeConfig, source: &Source) -> Vec<u8> {
        match source {
            Source::Config(index) => config.files[*index].content.bytes().to_vec(),
            Source::Unit(index) => unit_text::render(&config.units[*index]).into_bytes(),
        }
    }
}

/// Every path that a config makes, certificates included.
fn owned_paths(config: &NodeConfig) -> BTreeSet<String> {
    let files = config.files.iter().map(|file| file.path.clone());
    let certificates =
        config.certificates.iter().flat_map(|spec| [spec.certificate_path.clone(), spec.key_path.clone()]);
    files.chain(certificates).collect()
}

fn certificate_digest(spec: &CertificateSpec) -> Digest {
    let bytes = postcard::to_stdvec(spec).expect("a specification has no type that postcard cannot write");
    Digest::of(&bytes)
}

/// Hash of everything whose change makes a restart necessary.
fn inputs_digest(
    unit: &UnitSpec,
    files: &BTreeMap<String, DesiredFile>,
    certificates: &BTreeMap<String, Digest>,
) -> Digest {
    // A check has no text, and nothing to restart: a new probe simply is another question.
    let text = if unit.kind == UnitKind::Check { String::new() } else { unit_text::render(unit) };
    let mut parts: Vec<&[u8]> = vec![text.as_bytes()];
    for input in &unit.restart_on {
        parts.push(input.as_bytes());
        let digest = files.get(input).map(|file| &file.digest).or_else(|| certificates.get(input));
        parts.extend(digest.map(|digest| digest.as_bytes().as_slice()));
    }
    Digest::of_parts(parts)
}
