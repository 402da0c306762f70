//! Peer probes: what is refused, and for which reason, before anything is computed or remembered.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use keelson_protocol::SecretBytes;
use keelson_protocol::peer::{
    DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, Datagram, DatagramError, DatagramKind, PeerKey, PeerKeyError,
};
use proptest::prelude::*;
use support::samples::{peer_datagrams, peer_key};
use support::strategies;

fn ping() -> Vec<u8> {
    let (_, ping) = peer_datagrams().into_iter().find(|(name, _)| name == "ping").unwrap();
    ping.encode(&peer_key())
}

#[test]
fn bytes_that_are_not_ours_are_refused_with_a_reason() {
    fn check(change: impl FnOnce(&mut Vec<u8>), expected: DatagramError) {
        let mut bytes = ping();
        change(&mut bytes);
        assert_eq!(Datagram::decode(&bytes, &peer_key()), Err(expected), "{bytes:?}");
    }
    let foreign = |bytes| DatagramError::Foreign { bytes };
    let length = ping().len();
    check(Vec::clear, foreign(0));
    check(|bytes| bytes.truncate(DATAGRAM_BYTES_MIN - 1), foreign(DATAGRAM_BYTES_MIN - 1));
    check(|bytes| bytes.resize(DATAGRAM_BYTES_MAX + 1, 0), foreign(DATAGRAM_BYTES_MAX + 1));
    check(|bytes| bytes[0] = b'k', foreign(length));
    check(|bytes| bytes[4] = 2, DatagramError::Version { got: 2 });
    check(|bytes| bytes[5] = 0, DatagramError::Malformed);
    check(|bytes| bytes[5] = 3, DatagramError::Malformed);
    check(|bytes| bytes[18] += 1, DatagramError::Malformed);
    check(|bytes| bytes[19] = 255, DatagramError::Malformed);
    check(|bytes| bytes.push(0), DatagramError::Malformed);
    // A border between the two ids that moved is a change like any other.
    check(|bytes| (bytes[18], bytes[19]) = (bytes[18] + 1, bytes[19] - 1), DatagramError::WrongTag);
    check(|bytes| bytes[5] = 2, DatagramError::WrongTag);
    for position in (6..18).chain(20..length) {
        check(|bytes| bytes[position] ^= 1, DatagramError::WrongTag);
    }
    let other = PeerKey::new(&SecretBytes::new(vec![8; 32])).unwrap();
    assert_eq!(Datagram::decode(&ping(), &other), Err(DatagramError::WrongTag));
}

#[test]
fn keys_have_one_length_and_are_never_shown() {
    for bytes in [0, 31, 33] {
        let error = PeerKey::new(&SecretBytes::new(vec![7; bytes])).unwrap_err();
        assert_eq!(error, PeerKeyError { bytes });
        assert_eq!(error.to_string(), format!("the key of peer probes has {bytes} bytes, it must have 32"));
    }
    assert_eq!(format!("{:?}", peer_key()), "PeerKey");
}

proptest! {
    #[test]
    fn probes_come_back_as_they_went(probe in strategies::peer_datagram()) {
        let bytes = probe.encode(&peer_key());
        prop_assert!((DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&bytes.len()));
        let decoded = Datagram::decode(&bytes, &peer_key());
        prop_assert_eq!(decoded.as_ref(), Ok(&probe));
        let pong = probe.pong();
        prop_assert_eq!(pong.kind, DatagramKind::Pong);
        prop_assert_eq!(pong.encode(&peer_key()).len(), bytes.len());
    }
}
