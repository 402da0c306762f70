//! Fuzzes the decoder of [`keelson_protocol::message::ShellFrame`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keelson_fuzz::messages::check::<keelson_protocol::message::ShellFrame>(bytes);
});
