//! What the fuzz targets check.
//!
//! Purpose: state once what must hold for bytes that come over a trust border. The targets in `fuzz_targets` try it
//! with libFuzzer on a nightly toolchain; `protocol/tests/untrusted_bytes.rs` and
//! `tests/transport/tests/untrusted_der.rs` include these files and try the corpora and seeded mutations on stable, in
//! CI. See README.md for how to run, and what to do with a finding.
//!
//! Deliberately does not know: libFuzzer (only the targets do).

pub mod messages;
pub mod mutate;
pub mod trust;
