//! What must hold for any bytes that are given to a decoder of the link's messages.
//!
//! Shared by the fuzz targets (libFuzzer, nightly) and by `protocol/tests/untrusted_bytes.rs` (stable, in CI).

#![allow(unreachable_pub, reason = "public in the fuzz crate, private in the tests that share this file")]

use std::fmt::Debug;

use keelson_protocol::SecretBytes;
use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{
    BulkReply, BulkRequest, EnrolReply, EnrolRequest, ShellFrame, ToAgent, ToCoordinator,
};
use keelson_protocol::peer::{Datagram, DatagramError, PeerKey};
use keelson_protocol::wire::{Message, decode, encode, frame_length};
use ring::hmac;

/// Names a decoder: the fuzz target, its corpus folder, and the beginning of its golden files.
pub type Decoder = (&'static str, fn(&[u8]) -> bool);

/// Every decoder of messages.
pub const DECODERS: [Decoder; 9] = [
    ("heartbeat", check::<Heartbeat>),
    ("enrol_request", check::<EnrolRequest>),
    ("enrol_reply", check::<EnrolReply>),
    ("to_coordinator", check::<ToCoordinator>),
    ("to_agent", check::<ToAgent>),
    ("bulk_request", check::<BulkRequest>),
    ("bulk_reply", check::<BulkReply>),
    ("shell_frame", check::<ShellFrame>),
    ("peer_datagram", peer_datagram),
];

/// Decodes `bytes`. Says whether they are a message.
///
/// # Panics
/// When a decoder breaks a promise: bytes over the limit are a message, or a message that was decoded cannot be
/// encoded again, or comes back as another one.
pub fn check<M: Message + PartialEq + Debug>(bytes: &[u8]) -> bool {
    if let Some((prefix, _)) = bytes.split_first_chunk()
        && let Ok(length) = frame_length::<M>(*prefix)
    {
        assert!(length <= M::BYTES_MAX, "a length of {length} was allowed for {}", M::NAME);
    }
    match decode::<M>(bytes) {
        Ok(message) => {
            assert!(bytes.len() <= M::BYTES_MAX, "{} of {} bytes was decoded", M::NAME, bytes.len());
            let again = encode(&message).expect("what was decoded can be encoded");
            assert_eq!(decode::<M>(&again).as_ref(), Ok(&message), "{} changed on its way", M::NAME);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal says why");
            false
        }
    }
}

/// Key of the peer probes in tests, goldens and corpora.
pub const PEER_KEY: [u8; 32] = [7; 32];

/// Bytes of a peer probe's tag.
const TAG_BYTES: usize = 32;

/// Decodes `bytes` as a peer probe, as they are and with a tag that fits: without that, no change of the bytes would get
/// past the tag. Says whether they are one.
///
/// # Panics
/// When the decoder breaks a promise: something that was decoded has other bytes when it is encoded again, a pong is
/// longer than its ping, or bytes with another tag are taken.
pub fn peer_datagram(bytes: &[u8]) -> bool {
    let key = PeerKey::new(&SecretBytes::new(PEER_KEY.to_vec())).expect("the key has its length");
    let checked = |bytes: &[u8]| match Datagram::decode(bytes, &key) {
        Ok(datagram) => {
            assert_eq!(datagram.encode(&key), bytes, "a peer probe changed on its way");
            assert_eq!(datagram.pong().encode(&key).len(), bytes.len(), "a pong is as long as its ping");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal says why");
            false
        }
    };
    let Some(tag_at) = bytes.len().checked_sub(TAG_BYTES) else { return checked(bytes) };
    let (signed, tag) = bytes.split_at(tag_at);
    let fitting = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &PEER_KEY), signed);
    if fitting.as_ref() == tag {
        return checked(bytes);
    }
    let refused = Datagram::decode(bytes, &key);
    assert!(refused.is_err(), "a peer probe with a wrong tag was taken: {refused:?}");
    let fits = checked(&[signed, fitting.as_ref()].concat());
    assert!(!fits || refused == Err(DatagramError::WrongTag), "only the tag was wrong: {refused:?}");
    fits
}
