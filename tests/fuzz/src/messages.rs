//! What must hold for any bytes that are given to a decoder of the link's messages.
//!
//! Shared by the fuzz targets (libFuzzer, nightly) and by `protocol/tests/untrusted_bytes.rs` (stable, in CI).

#![allow(unreachable_pub, reason = "public in the fuzz crate, private in the tests that share this file")]

use std::fmt::Debug;

use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{
    BulkReply, BulkRequest, EnrolReply, EnrolRequest, ShellFrame, ToAgent, ToCoordinator,
};
use keelson_protocol::wire::{Message, decode, encode, frame_length};

/// Names a decoder: the fuzz target, its corpus folder, and the beginning of its golden files.
pub type Decoder = (&'static str, fn(&[u8]) -> bool);

/// Every decoder of messages.
pub const DECODERS: [Decoder; 8] = [
    ("heartbeat", check::<Heartbeat>),
    ("enrol_request", check::<EnrolRequest>),
    ("enrol_reply", check::<EnrolReply>),
    ("to_coordinator", check::<ToCoordinator>),
    ("to_agent", check::<ToAgent>),
    ("bulk_request", check::<BulkRequest>),
    ("bulk_reply", check::<BulkReply>),
    ("shell_frame", check::<ShellFrame>),
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
