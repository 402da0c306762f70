//! What was last seen of units, by name, and whether the next look says anything else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::MonoTime;

use crate::event::UnitSeen;
use crate::rest::News;

/// Units are looked at each second, and nearly every look says what the last one said. So the answers are kept in the
/// order of the question, and are compared without looking at a name.
#[derive(Debug)]
pub(crate) struct UnitsSeen {
    by_name: BTreeMap<String, UnitSeen>,
    /// Names of the units that are looked at; `None` when they are to be listed anew.
    listed: Option<Arc<[String]>>,
    /// Names of the units that were looked at last.
    asked: Arc<[String]>,
    /// The last answer; `None` when something of it was forgotten since.
    answer: Option<Arc<[UnitSeen]>>,
    /// When that was.
    at: Option<MonoTime>,
}

/// Units are looked at each second. Who has not seen them for longer does not know what they did.
const OUT_OF_SIGHT: Duration = Duration::from_secs(15);

impl Default for UnitsSeen {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), listed: None, asked: Arc::from([]), answer: None, at: None }
    }
}

impl UnitsSeen {
    pub(crate) fn get(&self, name: &str) -> Option<&UnitSeen> {
        self.by_name.get(name)
    }

    /// What was seen of a unit says nothing any more.
    pub(crate) fn forget(&mut self, name: &str) {
        self.by_name.remove(name);
        self.answer = None;
    }

    /// There are more units to look at, or fewer.
    pub(crate) fn list_anew(&mut self) {
        self.listed = None;
    }

    /// Begins a look at all units; `names` lists them when they are other ones than the last time.
    pub(crate) fn ask(&mut self, names: impl Iterator<Item = String>) -> Arc<[String]> {
        let listed = self.listed.get_or_insert_with(|| names.collect());
        if !Arc::ptr_eq(listed, &self.asked) {
            self.asked = Arc::clone(listed);
            self.answer = None;
        }
        Arc::clone(listed)
    }

    /// Whether units were seen a moment ago.
    pub(crate) fn in_sight(&self, now: MonoTime) -> bool {
        self.at.is_some_and(|at| now.since(at) <= OUT_OF_SIGHT)
    }

    /// The look was answered, in the order of its question.
    pub(crate) fn answered(&mut self, seen: Arc<[UnitSeen]>, now: MonoTime) -> News {
        self.at = Some(now);
        let before = self.answer.replace(Arc::clone(&seen));
        if before.is_some_and(|before| Arc::ptr_eq(&before, &seen) || before == seen) {
            return News::None;
        }
        self.by_name = self.asked.iter().cloned().zip(seen.iter().cloned()).collect();
        News::Some
    }
}
