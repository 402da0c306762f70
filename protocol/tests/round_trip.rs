//! `decode(encode(x)) == x` for arbitrary messages, and what their encodings never do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::fmt::Debug;

use keelson_protocol::wire::{
    DecodeError, ENVELOPE_BYTES, LENGTH_BYTES, Message, VERSION_MAX, decode, encode, encode_framed,
    frame_length,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use support::strategies;

fn round_trip<M: Message + PartialEq + Debug>(message: &M) -> Result<(), TestCaseError> {
    let bytes = encode(message).unwrap();
    prop_assert!(bytes.len() <= M::BYTES_MAX);
    let version = u16::from_be_bytes([bytes[0], bytes[1]]);
    prop_assert_eq!((version, bytes[2]), (VERSION_MAX.0, M::KIND));
    let decoded = decode::<M>(&bytes);
    prop_assert_eq!(decoded.as_ref(), Ok(message));

    let framed = encode_framed(message).unwrap();
    let (prefix, body) = framed.split_first_chunk::<LENGTH_BYTES>().unwrap();
    prop_assert_eq!(frame_length::<M>(*prefix), Ok(body.len()));
    prop_assert_eq!(body, &bytes[..]);

    // No beginning of a message is a message, nor is a message with something behind it.
    let cut = bytes.len() - 1;
    let expected_short = cut < ENVELOPE_BYTES;
    match decode::<M>(&bytes[..cut]) {
        Err(DecodeError::Malformed { .. }) => prop_assert!(!expected_short),
        Err(DecodeError::TooShort { .. }) => prop_assert!(expected_short),
        other => prop_assert!(false, "{other:?}"),
    }
    let longer = [&bytes[..], &[0]].concat();
    prop_assert!(decode::<M>(&longer).is_err());
    Ok(())
}

proptest! {
    #[test]
    fn heartbeat(message in strategies::heartbeat()) {
        round_trip(&message)?;
    }

    #[test]
    fn enrol_request(message in strategies::enrol_request()) {
        round_trip(&message)?;
    }

    #[test]
    fn enrol_reply(message in strategies::enrol_reply()) {
        round_trip(&message)?;
    }

    #[test]
    fn to_coordinator(message in strategies::to_coordinator()) {
        round_trip(&message)?;
    }

    #[test]
    fn to_agent(message in strategies::to_agent()) {
        round_trip(&message)?;
    }

    #[test]
    fn bulk_request(message in strategies::bulk_request()) {
        round_trip(&message)?;
    }

    #[test]
    fn bulk_reply(message in strategies::bulk_reply()) {
        round_trip(&message)?;
    }

    #[test]
    fn shell_frame(message in strategies::shell_frame()) {
        round_trip(&message)?;
    }

    #[test]
    fn a_config_that_was_made_to_be_valid_is(config in strategies::config()) {
        prop_assert_eq!(config.check(), Ok(()));
    }
}
