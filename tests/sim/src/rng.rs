//! Chance as a tree: a root seed, a child for each purpose, a child of that for each machine. A draw in one place moves no
//! other, so that a change of one fake does not turn every known seed into another run.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// A place in the tree. Draws nothing itself.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    key: [u8; 32],
}

impl Tree {
    /// The root of a seed's tree.
    #[must_use]
    pub(crate) fn root(seed: u64) -> Self {
        Self { key: Sha256::digest(seed.to_be_bytes()).into() }
    }

    /// The child for a purpose.
    #[must_use]
    pub(crate) fn child(&self, purpose: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update(purpose.as_bytes());
        Self { key: hasher.finalize().into() }
    }

    /// The stream of draws of this place.
    #[must_use]
    pub(crate) fn stream(&self) -> Stream {
        // ChaCha8 by name: the stream of `StdRng` may change with its crate, and a seed must mean the same run for ever.
        Stream(ChaCha8Rng::from_seed(self.key))
    }
}

/// Draws, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from zero up to, but without, `bound`; zero when `bound` is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The bias of the remainder is below one in 10^12 for all bounds here.
        self.number() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Whether something happens that happens so many times in a thousand. Draws also when the answer is certain, so that
    /// odds can be set to zero without moving what follows.
    pub(crate) fn chance(&mut self, permille: u32) -> bool {
        self.below(1_000) < u64::from(permille)
    }

    /// One of `choices`; `None` when there is none.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let index = self.below(choices.len() as u64);
        choices.get(usize::try_from(index).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_in_one_place_moves_no_other() {
        let tree = Tree::root(7);
        let mut first = tree.child("a").stream();
        first.number();
        assert_eq!(tree.child("b").stream().number(), Tree::root(7).child("b").stream().number());
        assert_ne!(tree.child("a").stream().number(), tree.child("b").stream().number());
    }

    /// The stream is part of the meaning of every stored seed.
    #[test]
    fn the_stream_never_changes() {
        let mut stream = Tree::root(1).child("x").stream();
        assert_eq!([stream.below(1_000), stream.below(1_000), stream.below(1_000)], [107, 963, 286]);
    }
}
