//! A small mutator for CI, where libFuzzer is not at hand: the same changes from the same seed, on stable Rust.
//!
//! It knows what breaks decoders of length-prefixed formats: numbers that are too large, pieces that are missing,
//! doubled or moved, and the seams between two valid inputs.

#![allow(unreachable_pub, reason = "public in the fuzz crate, private in the tests that share this file")]

/// Numbers that stand at the edges of what decoders handle, as bytes of varints and of DER lengths.
const EDGES: [&[u8]; 8] = [
    &[0x00],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0x84, 0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
];

/// Most changes that are made to one input.
const CHANGES_MAX: u64 = 6;

/// Makes inputs out of seeds and other inputs.
#[derive(Debug, Clone)]
pub struct Mutator(u64);

impl Mutator {
    /// The same `seed` gives the same inputs.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from zero up to, but without, `bound`; zero when that is empty.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap_or(u64::MAX)).unwrap_or(0)
    }

    /// A changed copy of one of `inputs`, which must not be empty.
    #[must_use]
    pub fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.next() % CHANGES_MAX {
            self.change(&mut bytes, inputs);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = (at + 1 + self.below(16)).min(bytes.len());
        let at = at.min(end);
        match self.below(8) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            2 => {
                let edge = EDGES[self.below(EDGES.len())];
                bytes.splice(at..end.min(at + edge.len()), edge.iter().copied());
            }
            3 => {
                let edge = EDGES[self.below(EDGES.len())];
                bytes.splice(at..at, edge.iter().copied());
            }
            4 => bytes.truncate(at),
            5 => {
                bytes.drain(at..end);
            }
            6 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = &inputs[self.below(inputs.len())];
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}
