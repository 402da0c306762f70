//! What must hold for any bytes that are given to a parser of certificates and signing requests.
//!
//! Shared by the fuzz targets (libFuzzer, nightly) and by `tests/transport/tests/untrusted_der.rs` (stable, in CI).

#![allow(unreachable_pub, reason = "public in the fuzz crate, private in the tests that share this file")]

use std::sync::OnceLock;
use std::time::Duration;

use keelson_protocol::{Incarnation, MachineId, WallTime};
use keelson_transport::{LinkCa, PeerIdentity};

/// 2026-01-01.
const NOW: WallTime = WallTime(1_767_225_600_000);
const LIFE: Duration = Duration::from_secs(24 * 3_600);

/// Parses `bytes` as a machine's certificate. Says whether they are one.
///
/// # Panics
/// When the parser does.
pub fn certificate(bytes: &[u8]) -> bool {
    match PeerIdentity::from_certificate(bytes) {
        Ok(peer) => {
            let again = MachineId::new(peer.machine.as_str());
            assert_eq!(again.as_ref(), Ok(&peer.machine), "a name that is none was accepted");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal says why");
            false
        }
    }
}

/// Has `bytes` signed as a signing request. Says whether they are one.
///
/// # Panics
/// When the parser does, or when the certificate names anybody but the machine that the CA was told.
pub fn signing_request(bytes: &[u8]) -> bool {
    static CA: OnceLock<LinkCa> = OnceLock::new();
    let ca = CA.get_or_init(|| LinkCa::generate("fuzz", NOW, LIFE * 365).expect("a CA can be made"));
    let machine = MachineId::new("demo-worker-1").expect("the name is valid");
    match ca.sign_machine(bytes, &machine, Incarnation(3), NOW, LIFE) {
        Ok(chain) => {
            let peer = PeerIdentity::from_certificate(&chain[0]).expect("what we sign can be read");
            assert_eq!((peer.machine, peer.incarnation), (machine, Incarnation(3)));
            assert_eq!(chain[1], ca.certificate_der());
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal says why");
            false
        }
    }
}
