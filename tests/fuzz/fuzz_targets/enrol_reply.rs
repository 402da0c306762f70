//! Fuzzes the decoder of [`keelson_protocol::message::EnrolReply`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keelson_fuzz::messages::check::<keelson_protocol::message::EnrolReply>(bytes);
});
