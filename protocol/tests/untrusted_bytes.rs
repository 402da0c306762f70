//! Decoders and bytes that nobody checked: the fuzz corpora and seeded mutations of them, on stable Rust, in seconds.
//!
//! The fuzz targets in `tests/fuzz` do the same with libFuzzer's coverage for as long as one likes. What they find is
//! added to `tests/fuzz/corpus`, and is tried here from then on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "../../tests/fuzz/src/messages.rs"]
mod messages;
#[path = "../../tests/fuzz/src/mutate.rs"]
mod mutate;
mod support;

use mutate::Mutator;
use proptest::prelude::*;
use support::{corpus_dir, files};

/// Mutations for each decoder. About a second in all in a debug build.
const MUTATIONS: usize = 20_000;

#[test]
fn the_corpora_and_their_mutations_never_break_a_decoder() {
    for (target, check) in messages::DECODERS {
        let corpus: Vec<Vec<u8>> =
            files(&corpus_dir().join(target)).into_iter().map(|(_, bytes)| bytes).collect();
        assert!(!corpus.is_empty(), "{target} has no corpus");
        let whole = corpus.iter().filter(|bytes| check(bytes)).count();
        assert!(whole > 0, "no file of {target}'s corpus is a message");
        let mut mutator = Mutator::new(1);
        let accepted = (0..MUTATIONS).filter(|_| check(&mutator.mutate(&corpus))).count();
        // Without both, the mutations would test nothing behind the envelope, or change nothing.
        assert!(accepted > MUTATIONS / 1_000, "{target}: only {accepted} of {MUTATIONS} were messages");
        assert!(accepted < MUTATIONS * 9 / 10, "{target}: {accepted} of {MUTATIONS} were messages");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_break_a_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (index, (_, check)) in messages::DECODERS.iter().enumerate() {
            check(&bytes);
            // And with an envelope that lets the bytes through to the payload.
            let kind = u8::try_from(index).unwrap() + 1;
            let enveloped = [&[0, 1, kind], &bytes[..]].concat();
            check(&enveloped);
        }
    }
}
