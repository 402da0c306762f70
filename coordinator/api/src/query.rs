//! What a list shows, and in which order.
//!
//! Filters and orders are decided here once, so that every implementation of [`crate::Fleet`] answers alike. A page
//! begins after the key of the last item of the page before, so nothing is left out or shown twice while names and
//! times stay; an item whose state changes between two pages of a list ordered by state may be found at either place.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use keelson_model::{BlueprintMachine, ClusterSpec};
use keelson_protocol::{ClusterName, WallTime};

use crate::selector::Selector;
use crate::types::{ClusterState, MachineState, Page, PageRequest};

/// Longest `text` of a filter, in bytes: no name is longer.
pub const TEXT_BYTES_MAX: usize = 253;

/// Keys that every machine has besides the labels of its cluster; they win over labels of the same key.
pub const MACHINE_KEYS: [&str; 4] = ["cluster", "pool", "role", "zone"];

/// Which clusters, in which order, which page of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterQuery {
    /// By their labels.
    pub selector: Selector,
    /// In one of these states; in any when there is none.
    pub states: Vec<ClusterState>,
    /// With this in their name.
    pub text: Option<String>,
    /// In which order.
    pub order: ClusterOrder,
    /// Which page.
    pub page: PageRequest,
}

/// Which machines, in order of their ids, which page of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineQuery {
    /// Only of this cluster.
    pub cluster: Option<ClusterName>,
    /// By the labels of their cluster, and by [`MACHINE_KEYS`].
    pub selector: Selector,
    /// In one of these states; in any when there is none.
    pub states: Vec<MachineState>,
    /// With this in their id.
    pub text: Option<String>,
    /// Which page.
    pub page: PageRequest,
}

/// In which order clusters are listed. Written as `order_by` has it: `name`, `-created`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterOrder {
    /// By what.
    pub by: ClusterKey,
    /// Which way.
    pub direction: Direction,
}

/// By what clusters are ordered; equal ones are in order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClusterKey {
    /// Their names.
    #[default]
    Name,
    /// When they were asked for.
    Created,
    /// Their states, in the order in which the states are described.
    State,
}

/// Which way a list goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// The least first.
    #[default]
    Up,
    /// The greatest first.
    Down,
}

/// Not an order of clusters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no order: choose name, created or state, with `-` in front for the other way round")]
pub struct UnknownOrder {
    text: String,
}

impl FromStr for ClusterOrder {
    type Err = UnknownOrder;

    fn from_str(text: &str) -> Result<Self, UnknownOrder> {
        let (direction, key) =
            text.strip_prefix('-').map_or((Direction::Up, text), |key| (Direction::Down, key));
        let by = match key {
            "name" => ClusterKey::Name,
            "created" => ClusterKey::Created,
            "state" => ClusterKey::State,
            _ => return Err(UnknownOrder { text: text.to_owned() }),
        };
        Ok(Self { by, direction })
    }
}

impl fmt::Display for ClusterOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.direction == Direction::Down { "-" } else { "" };
        let key = match self.by {
            ClusterKey::Name => "name",
            ClusterKey::Created => "created",
            ClusterKey::State => "state",
        };
        write!(f, "{sign}{key}")
    }
}

impl ClusterOrder {
    /// Sorts as text in this order, and is of one cluster only.
    fn key(self, name: &str, created: WallTime, state: impl FnOnce() -> ClusterState) -> String {
        match self.by {
            ClusterKey::Name => name.to_owned(),
            ClusterKey::Created => format!("{:020} {name}", created.0.max(0)),
            ClusterKey::State => format!("{} {name}", state() as u8),
        }
    }
}

impl ClusterQuery {
    /// Everything, in order of names.
    #[must_use]
    pub fn everything(page: PageRequest) -> Self {
        let order = ClusterOrder::default();
        Self { selector: Selector::default(), states: Vec::new(), text: None, order, page }
    }

    /// Cuts the page out of `all`. `facts` are what a cluster is chosen and ordered by; its state and its view are made
    /// only when they are needed, because they are made of all its machines.
    pub fn cut<'a, S: 'a, T>(
        &self,
        all: impl IntoIterator<Item = &'a S>,
        facts: impl Fn(&S) -> (&ClusterSpec, WallTime),
        state: impl Fn(&S) -> ClusterState,
        view: impl Fn(&S) -> T,
    ) -> Page<T> {
        let takes = |item: &&S| {
            let spec = facts(item).0;
            has_text(spec.name.as_str(), self.text.as_deref())
                && self.selector.matches(|key| label(&spec.labels, key))
                && (self.states.is_empty() || self.states.contains(&state(item)))
        };
        let keyed = |item: &'a S| {
            let (spec, created) = facts(item);
            (self.order.key(spec.name.as_str(), created, || state(item)), item)
        };
        let mut chosen: Vec<(String, &S)> = all.into_iter().filter(takes).map(keyed).collect();
        chosen.sort_by(|(one, _), (other, _)| one.cmp(other));
        let key = |(key, _): &(String, &S)| key.clone();
        let view = |(_, item): &(String, &S)| view(item);
        match self.order.direction {
            Direction::Up => Page::upwards(&chosen, &self.page, key, view),
            Direction::Down => Page::downwards(chosen.iter().rev(), &self.page, key, view),
        }
    }
}

impl MachineQuery {
    /// Every machine.
    #[must_use]
    pub fn everything(page: PageRequest) -> Self {
        Self { cluster: None, selector: Selector::default(), states: Vec::new(), text: None, page }
    }

    /// Whether it asks for states, which are made of everything that was seen of a cluster.
    #[must_use]
    pub fn asks_for_state(&self) -> bool {
        !self.states.is_empty()
    }

    /// Whether it takes this machine of the cluster `spec`.
    pub fn takes(
        &self,
        spec: &ClusterSpec,
        machine: &BlueprintMachine,
        state: impl FnOnce() -> MachineState,
    ) -> bool {
        let roles: Vec<String> = machine.roles.iter().map(ToString::to_string).collect();
        let values = |key: &str| match key {
            "cluster" => vec![spec.name.as_str()],
            "pool" => vec![machine.pool.0.as_str()],
            "role" => roles.iter().map(String::as_str).collect(),
            "zone" => vec![machine.zone.as_str()],
            _ => label(&spec.labels, key),
        };
        self.cluster.as_ref().is_none_or(|cluster| *cluster == spec.name)
            && has_text(machine.id.as_str(), self.text.as_deref())
            && self.selector.matches(values)
            && (self.states.is_empty() || self.states.contains(&state()))
    }
}

fn label<'a>(labels: &'a BTreeMap<String, String>, key: &str) -> Vec<&'a str> {
    labels.get(key).map(String::as_str).into_iter().collect()
}

fn has_text(name: &str, text: Option<&str>) -> bool {
    text.is_none_or(|text| name.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight clusters: few states and moments, so that pages end between equal ones.
    fn clusters() -> Vec<(ClusterSpec, WallTime, ClusterState)> {
        let states = [ClusterState::Ready, ClusterState::Creating, ClusterState::Failed];
        let one = |index: usize| {
            let env = if index.is_multiple_of(2) { "prod" } else { "dev" };
            let json = format!(
                r#"{{"name":"c{index}","plan":"tiny","release":"1.37.2","labels":{{"env":"{env}"}}}}"#
            );
            let created = WallTime(i64::try_from(index / 3).unwrap() * 1_000);
            (serde_json::from_str(&json).unwrap(), created, states[index % 3])
        };
        (0..8).map(one).collect()
    }

    fn read(query: &mut ClusterQuery, page_size: usize) -> String {
        let all = clusters();
        let (mut names, mut pages) = (String::new(), 0);
        query.page = PageRequest { after: None, limit: page_size };
        loop {
            let page = query.cut(
                &all,
                |(spec, created, _)| (spec, *created),
                |(_, _, state)| *state,
                |(spec, _, _)| spec.name.as_str()[1..].to_owned(),
            );
            names.push_str(&page.items.concat());
            pages += 1;
            assert!(pages < 20);
            query.page.after = page.next;
            if query.page.after.is_none() {
                return names;
            }
        }
    }

    fn check(order: &str, change: impl Fn(&mut ClusterQuery), expected: &str) {
        for page_size in [1, 2, 3, 8] {
            let mut query = ClusterQuery::everything(PageRequest::first());
            query.order = order.parse().unwrap();
            assert_eq!(query.order.to_string(), order);
            change(&mut query);
            assert_eq!(read(&mut query, page_size), expected, "{order} by {page_size}");
        }
    }

    #[test]
    fn pages_have_no_gap_in_any_order_and_under_any_filter() {
        let all = |_: &mut ClusterQuery| {};
        check("name", all, "01234567");
        check("-name", all, "76543210");
        check("created", all, "01234567");
        check("-created", all, "76543210");
        check("state", all, "14703625");
        check("-state", all, "52630741");
        check("state", |query| query.selector = "env=dev".parse().unwrap(), "1735");
        check("-name", |query| query.states = vec![ClusterState::Failed, ClusterState::Ready], "65320");
        check("name", |query| query.text = Some("c7".to_owned()), "7");
    }

    #[test]
    fn orders_that_are_not_known_are_refused() {
        for text in ["", "-", "--name", "age", "Name"] {
            assert!(text.parse::<ClusterOrder>().is_err(), "{text}");
        }
    }
}
