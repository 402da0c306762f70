//! Fuzzes the decoder of [`keelson_protocol::peer::Datagram`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keelson_fuzz::messages::peer_datagram(bytes);
});
