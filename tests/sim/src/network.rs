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
    /// The path between a machine and the coordinator alone.
    Link(usize),
}

impl Cut {
    /// Whether an end is on this side.
    fn holds(self, end: End) -> bool {
        match (self, end) {
            (Self::Coordinator, End::Coordinator) => true,
            (Self::Machine(cut) | Self::Link(cut), End::Machine { machine, .. }) => cut == machine,
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
        if matches!(self.cut, Cut::Link(_)) && from != End::Coordinator && to != End::Coordinator {
            return false;
        }
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
    /// Heartbeats that get lost, of a thousand, and until when.
    heartbeats_lost: (u32, u64),
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
        self.heartbeats_lost = (0, 0);
    }

    /// So many of a thousand heartbeats get lost until a moment.
    pub(crate) fn lose_heartbeats(&mut self, permille: u32, until: u64) {
        self.heartbeats_lost = (permille, until);
    }

    /// How many of a thousand heartbeats get lost now, beside those that the weather takes.
    pub(crate) fn heartbeats_lost(&self, now: u64) -> u32 {
        let (permille, until) = self.heartbeats_lost;
        if now < until { permille } else { 0 }
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

    #[test]
    fn a_link_is_cut_and_peers_still_reach_the_machine() {
        let end = |machine, zone| End::Machine { machine, zone };
        let mut network = Network::default();
        network.cut(Cut::Link(5), Way::Both);
        assert!(!network.passes(end(5, 1), End::Coordinator));
        assert!(!network.passes(End::Coordinator, end(5, 1)));
        assert!(network.connects(end(5, 1), end(6, 1)));
        assert!(network.connects(end(6, 1), End::Coordinator));
        network.heal_all();
        network.cut(Cut::Link(5), Way::Out);
        assert!(!network.passes(end(5, 1), End::Coordinator));
        assert!(network.passes(End::Coordinator, end(5, 1)));
    }

    #[test]
    fn heartbeats_are_lost_until_the_time_is_over_or_all_is_healed() {
        let mut network = Network::default();
        network.lose_heartbeats(700, 60_000);
        assert_eq!((network.heartbeats_lost(59_999), network.heartbeats_lost(60_000)), (700, 0));
        network.heal_all();
        assert_eq!(network.heartbeats_lost(1), 0);
    }
}
