//! Fuzzes the parser of a machine's certificate.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keelson_fuzz::trust::certificate(bytes);
});
