//! The network: how long a message takes, whether it arrives, and who cannot reach whom.

use crate::case::Way;

/// One end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Coordinator,
    /// A machine, by its number in the world, in a zone, by its number in the place.
    Machine {
        machine: usize,
        zone: usize,
    },
}

/// A side that is cut off, with its machine or zone found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Coordinator,
    Machine(usize),
    Zone(usize),
}

impl Cut {
    fn holds(self, end: End) -> bool {
        match (self, end) {
            (Self::Coordinator, End::Coordinator) => true,
            (Self::Machine(cut), End::Machine { machine, .. }) => cut == machine,
            (Self::Zone(cut), End::Machine { zone, .. }) => cut == zone,
            _ => false,
        }
    }
}

/// A cut that stands.
#[derive(Debug, Clone, Copy)]
struct Rule {
    number: u64,
    cut: Cut,
    way: Way,
}

impl Rule {
    fn stops(self, from: End, to: End) -> bool {
        match (self.cut.holds(from), self.cut.holds(to)) {
            (true, false) => self.way != Way::In,
            (false, true) => self.way != Way::Out,
            _ => false,
        }
    }
}

/// All cuts, in the order in which they came. Delays are drawn where messages are sent.
#[derive(Debug, Default)]
pub(crate) struct Network {
    rules: Vec<Rule>,
    next: u64,
}

impl Network {
    /// Puts up a cut; its number takes it away again.
    pub(crate) fn cut(&mut self, cut: Cut, way: Way) -> u64 {
        self.next += 1;
        self.rules.push(Rule { number: self.next, cut, way });
        self.next
    }

    pub(crate) fn heal(&mut self, number: u64) {
        self.rules.retain(|rule| rule.number != number);
    }

    pub(crate) fn heal_all(&mut self) {
        self.rules.clear();
    }

    /// Whether a message from one end arrives at the other.
    pub(crate) fn passes(&self, from: End, to: End) -> bool {
        self.rules.is_empty() || !self.rules.iter().any(|rule| rule.stops(from, to))
    }

    /// Whether both hear each other.
    pub(crate) fn connects(&self, one: End, other: End) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_between_a_side_and_all_others_and_have_a_direction() {
        let end = |machine, zone| End::Machine { machine, zone };
        let mut network = Network::default();
        let zone = network.cut(Cut::Zone(1), Way::Both);
        assert!(!network.passes(End::Coordinator, end(5, 1)));
        assert!(network.connects(end(5, 1), end(6, 1)));
        assert!(network.connects(end(1, 0), end(2, 2)));
        network.heal(zone);
        network.cut(Cut::Machine(5), Way::Out);
        assert!(!network.passes(end(5, 1), End::Coordinator));
        assert!(network.passes(End::Coordinator, end(5, 1)));
        assert!(!network.connects(end(5, 1), end(6, 1)));
        network.heal_all();
        assert!(network.connects(end(5, 1), End::Coordinator));
    }
}
