//! Fuzzes the parser of a signing request.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keelson_fuzz::trust::signing_request(bytes);
});
