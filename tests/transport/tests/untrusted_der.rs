//! Parsers of certificates and signing requests, and bytes that nobody checked: the fuzz corpora and seeded mutations
//! of them, on stable Rust, in seconds.
//!
//! `KEELSON_UPDATE_GOLDEN=1` makes the seeds of the corpora that are missing. They hold random keys, so that they are
//! made once and not again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "../../fuzz/src/mutate.rs"]
mod mutate;
#[path = "../../fuzz/src/trust.rs"]
mod trust;

use std::path::PathBuf;
use std::time::Duration;

use keelson_protocol::{Incarnation, MachineId, WallTime};
use keelson_transport::{LinkCa, make_key_request};
use mutate::Mutator;
use rcgen::{CertificateParams, DnType, KeyPair};

const NOW: WallTime = WallTime(1_767_225_600_000);
const LIFE: Duration = Duration::from_secs(24 * 3_600);

/// Mutations for each parser. A signature is checked and often made for each, so there are fewer than for messages.
const MUTATIONS: usize = 5_000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target);
    if std::env::var("KEELSON_UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(&directory).unwrap();
        for (name, bytes) in seeds(target) {
            let path = directory.join(name);
            if !path.exists() {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    let ca = LinkCa::generate("corpus", NOW, LIFE).unwrap();
    let plain = make_key_request().unwrap().signing_request;
    if target == "certificate" {
        let machine = MachineId::new("demo-worker-1").unwrap();
        let leaf = ca.sign_machine(&plain, &machine, Incarnation(7), NOW, LIFE).unwrap().remove(0);
        let server = ca.issue_server(NOW, LIFE).unwrap().chain.remove(0);
        return vec![("machine", leaf), ("server", server), ("ca", ca.certificate_der().to_vec())];
    }
    let request = |algorithm| {
        let mut params = CertificateParams::new(vec!["kubernetes".into(), "10.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "admin");
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    vec![
        ("plain", plain),
        ("with_names", request(&rcgen::PKCS_ECDSA_P256_SHA256)),
        ("p384", request(&rcgen::PKCS_ECDSA_P384_SHA384)),
        ("ed25519", request(&rcgen::PKCS_ED25519)),
    ]
}

fn never_breaks(target: &str, check: fn(&[u8]) -> bool) {
    let corpus = corpus(target);
    assert!(corpus.iter().any(|bytes| check(bytes)), "no file of {target}'s corpus is accepted");
    assert!(!corpus.iter().all(|bytes| check(bytes)), "every file of {target}'s corpus is accepted");
    let mut mutator = Mutator::new(1);
    let accepted = (0..MUTATIONS).filter(|_| check(&mutator.mutate(&corpus))).count();
    assert!(accepted < MUTATIONS / 2, "{target}: {accepted} of {MUTATIONS} were accepted");
}

#[test]
fn certificates() {
    never_breaks("certificate", trust::certificate);
}

#[test]
fn signing_requests() {
    never_breaks("signing_request", trust::signing_request);
}
