//! The bytes of every released version, kept for ever.
//!
//! `protocol/golden/v<version>/<decoder>-<sample>.bin` holds the encoding of each sample. A change of these bytes is a
//! change of the wire format. `KEELSON_UPDATE_GOLDEN=1` writes those of the newest version, and the fuzz corpora that
//! are made from them; older versions are never written again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "../../tests/fuzz/src/messages.rs"]
mod messages;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Once;

use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use support::samples::{self, Golden};
use support::{corpus_dir, files, golden_dir};

/// The variable that allows to write.
const UPDATE: &str = "KEELSON_UPDATE_GOLDEN";

fn file_name((decoder, sample, _): &Golden) -> String {
    format!("{decoder}-{sample}.bin")
}

#[allow(
    clippy::disallowed_methods,
    reason = "the golden bytes are files; the ban is for the code under test"
)]
fn update() -> bool {
    std::env::var(UPDATE).is_ok_and(|value| value == "1")
}

#[allow(
    clippy::disallowed_methods,
    reason = "the golden bytes are files; the ban is for the code under test"
)]
fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Folder of the newest version. Every test that reads asks here, so that an update comes before the first look.
fn newest_dir() -> PathBuf {
    static UPDATED: Once = Once::new();
    let directory = golden_dir().join(format!("v{VERSION_MAX}"));
    UPDATED.call_once(|| {
        for sample in samples::all().iter().filter(|_| update()) {
            write(&directory.join(file_name(sample)), &sample.2);
            write(&corpus_dir().join(sample.0).join(&sample.1), &sample.2);
        }
    });
    directory
}

#[test]
fn the_newest_version_is_encoded_as_it_was_released() {
    let directory = newest_dir();
    let golden = samples::all();
    let kept = files(&directory);
    let mut made: Vec<(String, Vec<u8>)> =
        golden.iter().map(|sample| (file_name(sample), sample.2.clone())).collect();
    made.sort();
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&made), "set {UPDATE}=1 once, and look at the difference");
    for ((name, kept), (_, made)) in kept.iter().zip(&made) {
        assert_eq!(kept, made, "{name}: the wire format changed; {UPDATE}=1 only before a release");
    }
}

#[test]
fn every_version_that_is_spoken_still_decodes() {
    newest_dir();
    for version in VERSION_MIN.0..=VERSION_MAX.0 {
        let kept = files(&golden_dir().join(format!("v{version}")));
        assert!(!kept.is_empty(), "version {version} has no golden bytes");
        for (name, bytes) in kept {
            let (target, _) = name.split_once('-').unwrap();
            let (_, check) = messages::DECODERS.iter().find(|(decoder, _)| *decoder == target).unwrap();
            assert!(check(&bytes), "{name} of version {version} is no message any more");
        }
    }
}

#[test]
fn no_message_passes_for_another() {
    for (decoder, sample, bytes) in samples::all() {
        for (other, check) in messages::DECODERS {
            assert_eq!(check(&bytes), other == decoder, "{decoder}-{sample} at {other}");
        }
    }
}

#[test]
fn the_corpora_hold_the_golden_bytes() {
    newest_dir();
    for (decoder, sample, bytes) in samples::all() {
        let corpus = files(&corpus_dir().join(decoder));
        let found = corpus.iter().find(|(name, _)| *name == sample);
        assert_eq!(found.map(|(_, kept)| kept), Some(&bytes), "{decoder}/{sample}; set {UPDATE}=1");
    }
}
