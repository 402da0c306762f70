//! What happens when: a queue of events in order of time, and of being put in for the same time.
//!
//! A wheel of one slot for each millisecond of the next seconds, where nearly everything falls, and a heap for what is
//! further away. Putting in and taking out cost the same however many wait.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Milliseconds that the wheel covers; a power of two. Longer than a heartbeat and than most waits, and so short that the
/// wheel stays in the cache.
const SLOTS: usize = 1 << 11;
const MASK: u64 = SLOTS as u64 - 1;
/// Bits of a word of the map of slots in use.
const WORD_BITS: usize = 64;

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// The moment of the last event that was taken, in milliseconds.
    now: u64,
    /// Events of this moment that are still to be taken.
    current: VecDeque<T>,
    slots: Vec<Vec<T>>,
    used: [u64; SLOTS / WORD_BITS],
    later: BinaryHeap<Reverse<Later<T>>>,
    sequence: u64,
    len: usize,
}

#[derive(Debug)]
struct Later<T> {
    at: u64,
    sequence: u64,
    event: T,
}

impl<T> PartialEq for Later<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<T> Eq for Later<T> {}

impl<T> PartialOrd for Later<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Later<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            now: 0,
            current: VecDeque::new(),
            slots: std::iter::repeat_with(Vec::new).take(SLOTS).collect(),
            used: [0; SLOTS / WORD_BITS],
            later: BinaryHeap::new(),
            sequence: 0,
            len: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Puts an event in for `at`, in milliseconds; what is for the past happens now.
    pub(crate) fn push(&mut self, at: u64, event: T) {
        self.len += 1;
        if at <= self.now {
            self.current.push_back(event);
        } else if at - self.now < SLOTS as u64 {
            self.put(at, event);
        } else {
            self.sequence += 1;
            self.later.push(Reverse(Later { at, sequence: self.sequence, event }));
        }
    }

    /// Takes the earliest event, if it is not after `end`, and says when it is.
    pub(crate) fn pop(&mut self, end: u64) -> Option<(u64, T)> {
        if self.current.is_empty() {
            let at = self.next_time().filter(|at| *at <= end)?;
            self.advance(at);
        }
        self.len -= 1;
        self.current.pop_front().map(|event| (self.now, event))
    }

    /// How many wait.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn put(&mut self, at: u64, event: T) {
        let slot = usize::try_from(at & MASK).expect("a slot number is small");
        self.slots[slot].push(event);
        self.used[slot / WORD_BITS] |= 1 << (slot % WORD_BITS);
    }

    /// The moment of the next event after now. What is in the wheel comes before all that is not.
    fn next_time(&self) -> Option<u64> {
        let begin = usize::try_from((self.now + 1) & MASK).expect("a slot number is small");
        for step in 0..=SLOTS / WORD_BITS {
            let word = (begin / WORD_BITS + step) % (SLOTS / WORD_BITS);
            let mut bits = self.used[word];
            if step == 0 {
                bits &= u64::MAX << (begin % WORD_BITS);
            }
            if step == SLOTS / WORD_BITS {
                bits &= !(u64::MAX << (begin % WORD_BITS));
            }
            if bits != 0 {
                let slot = (word * WORD_BITS) as u64 + u64::from(bits.trailing_zeros());
                return Some(self.now + 1 + (slot.wrapping_sub(self.now + 1) & MASK));
            }
        }
        self.later.peek().map(|Reverse(later)| later.at)
    }

    fn advance(&mut self, at: u64) {
        self.now = at;
        let slot = usize::try_from(at & MASK).expect("a slot number is small");
        self.current.extend(self.slots[slot].drain(..));
        self.used[slot / WORD_BITS] &= !(1 << (slot % WORD_BITS));
        // At once, before anything else is put in: so what was put in earlier stays in front.
        while let Some(Reverse(next)) = self.later.peek() {
            if next.at >= at + SLOTS as u64 {
                break;
            }
            let Some(Reverse(next)) = self.later.pop() else { break };
            if next.at <= at { self.current.push_back(next.event) } else { self.put(next.at, next.event) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_being_put_in() {
        let mut queue = Queue::default();
        let mut random = crate::rng::Tree::root(3).stream();
        let mut expected = Vec::new();
        for number in 0..5_000_u64 {
            let at = random.below(60_000);
            queue.push(at, number);
            expected.push((at, number));
        }
        expected.sort_unstable();
        let taken: Vec<(u64, u64)> = std::iter::from_fn(|| queue.pop(u64::MAX)).collect();
        assert_eq!(taken, expected);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_is_put_in_while_others_are_taken_keeps_the_order() {
        let mut queue = Queue::default();
        queue.push(20_000, "far");
        queue.push(15_000, "near");
        assert_eq!(queue.pop(14_000), None);
        assert_eq!(queue.pop(u64::MAX), Some((15_000, "near")));
        queue.push(20_000, "later");
        queue.push(15_000, "at once");
        let rest: Vec<(u64, &str)> = std::iter::from_fn(|| queue.pop(u64::MAX)).collect();
        assert_eq!(rest, [(15_000, "at once"), (20_000, "far"), (20_000, "later")]);
    }
}
