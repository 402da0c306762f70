//! Remedies: what is done when starting a unit again is no help, as the config has it.
//!
//! One at a time. A remedy that begins is in the ledger first, and so is each act that is done, so that an agent that
//! is killed between any two of them goes on where it was, and no restart gives back a budget. Which one comes next when
//! one has not helped is decided by the order in the config and by the limits alone: the first has no more of its budget
//! left, so the second is taken.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::EventKind;
use keelson_protocol::remedy::{FENCE, FENCE_REBOOT, RemedyAct, RemedyLimit, RemedySpec};
use keelson_protocol::{MonoTime, WallTime};

use crate::action::{Step, StepKey};
use crate::core::AgentCore;
use crate::desired::Desired;
use crate::digest::Digest;
use crate::event::StepOutput;
use crate::ledger::{Progress, RemedyRecord};
use crate::looks::Class;
use crate::units::SETTLED_AFTER;

mod trigger;

/// A failed act is tried so often; then it is left out and told.
const ACT_TRIES_MAX: u32 = 3;
/// Units that are held must be down by then: systemd kills after their own time to stop, which is half a minute.
const HOLD_MAX: Duration = Duration::from_secs(180);
/// A reboot that was ordered has begun to end programs; a machine that is still there then did not reboot.
const REBOOT_MAX: Duration = Duration::from_secs(300);
/// Longest word on what an act did, in bytes; an event takes those of a whole remedy of today.
const DID_BYTES_MAX: usize = 100;
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// What is known of remedies beside the ledger.
#[derive(Debug, Default)]
pub(crate) struct Remedies {
    runs: BTreeMap<String, RemedyRun>,
    /// How much was used after the last try to make room that made none, in percent.
    in_vain_at: BTreeMap<String, u8>,
    /// How often progress was noted in the ledger, and how much of it is on the disk.
    pub(crate) noted: u64,
    pub(crate) written: u64,
}

#[derive(Debug, Default)]
struct RemedyRun {
    /// It is due, and begins then.
    begins_at: Option<MonoTime>,
    /// That its budget is used up was told.
    withheld: bool,
    /// Since when it is not due any more.
    calm_since: Option<MonoTime>,
    /// Units that it holds down, whatever its config says now.
    hold: Vec<String>,
    /// Since when its progress waits to be on the disk.
    unwritten_since: Option<MonoTime>,
    /// That the machine is to be rebooted was told.
    announced: bool,
    /// How often the act in hand failed.
    tries: u32,
    /// Since when its units are being stopped.
    holding: Option<MonoTime>,
    /// When the machine was told to reboot.
    rebooting: Option<MonoTime>,
    /// Since when all acts are done.
    settling: Option<MonoTime>,
}

/// Why a remedy does not begin.
enum Held {
    /// The last time was a moment ago.
    Cooling,
    /// Its budget is used up, in words.
    Spent(String),
}

/// Identifies a remedy: one that was begun is not gone on with as another one.
fn digest(spec: &RemedySpec) -> Digest {
    Digest::of(&postcard::to_stdvec(spec).expect("a specification has no type that postcard cannot write"))
}

impl AgentCore {
    pub(crate) fn reconcile_remedies(&mut self, config: &NodeConfig, desired: &Desired) {
        self.ask_for_triggers(config);
        // A machine that gave up its work has nothing to mend before it may take it up again.
        if self.ledger.fence.is_some() {
            return;
        }
        match self.remedy_under_way() {
            Some(name) => self.go_on(config, desired, &name),
            None => self.begin_one(config, desired),
        }
    }

    fn remedy_under_way(&self) -> Option<String> {
        let mut records = self.ledger.remedies.iter();
        records.find(|(_, record)| record.progress.is_some()).map(|(name, _)| name.clone())
    }

    /// Whether no remedy is under way.
    pub(crate) fn mends_nothing(&self) -> bool {
        self.remedy_under_way().is_none()
    }

    /// The remedy under way, while its acts are not all done.
    fn acting<'a>(&self, config: &'a NodeConfig) -> Option<(&'a RemedySpec, &Progress)> {
        let (name, record) = self.ledger.remedies.iter().find(|(_, record)| record.progress.is_some())?;
        let spec = config.remedies.iter().find(|spec| spec.name == *name)?;
        let progress = record.progress.as_ref()?;
        (progress.spec == digest(spec) && usize::from(progress.done) < spec.acts.len())
            .then_some((spec, progress))
    }

    /// What holds a unit down, in words; `None` when nothing does.
    pub(crate) fn held_for(&self, config: &NodeConfig, unit: &str) -> Option<String> {
        if self.is_fenced_off(config, unit) {
            return Some("somebody to reach: this machine is cut off and has given up its work".to_owned());
        }
        let (name, hold) = match self.acting(config) {
            Some((spec, _)) => (spec.name.clone(), &spec.hold),
            // The config knows it no more, and its act is still under way.
            None => {
                let name = self.remedy_under_way().filter(|name| self.acts_now(name))?;
                let hold = &self.remedies.runs.get(&name)?.hold;
                (name, hold)
            }
        };
        hold.iter().any(|held| held == unit).then(|| format!("the end of remedy {name}"))
    }

    /// Whether an act of a remedy is under way.
    fn acts_now(&self, name: &str) -> bool {
        self.is_in_flight(&StepKey::Act(name.to_owned()))
    }

    /// What is done at the moment beyond the units, in words.
    pub(crate) fn remedy_status(&self) -> Option<String> {
        let config = self.ledger.config.as_ref()?;
        match self.acting(config) {
            Some((spec, progress)) => {
                Some(format!("{}: {} of {} acts are done", spec.name, progress.done, spec.acts.len()))
            }
            None => match self.remedy_under_way() {
                Some(name) => Some(format!("{name}: done; waits to see whether it helped")),
                None => self.next_remedy(),
            },
        }
    }

    /// The remedy that begins next, in words.
    fn next_remedy(&self) -> Option<String> {
        let waits =
            |run: &RemedyRun| run.begins_at.filter(|at| *at > self.now.mono && run.calm_since.is_none());
        let runs = self.remedies.runs.iter();
        let (at, name) = runs.filter_map(|(name, run)| Some((waits(run)?, name))).min()?;
        Some(format!(
            "{name}: begins in {} s, because not all machines may do it at once",
            at.since(self.now.mono).as_secs()
        ))
    }

    /// These units begin anew when they are next started, oneshots included.
    pub(crate) fn forget_starts(&mut self, units: &[String]) {
        for name in units {
            let Some(record) = self.ledger.units.get_mut(name) else { continue };
            record.done = None;
            if let Some(start) = &mut record.start {
                start.inputs = Digest::of_nothing();
            }
        }
    }

    /// The first of these that is not known to be stopped.
    pub(crate) fn first_up<'a>(&self, units: &'a [String]) -> Option<&'a String> {
        units.iter().find(|name| !self.is_known_stopped(name))
    }

    fn begin_one(&mut self, config: &NodeConfig, desired: &Desired) {
        // Where nothing may be done any more, the last resort is what somebody must know of.
        let (mut withheld, mut pending) = (None, false);
        for spec in &config.remedies {
            let Some(cause) = self.cause_of(spec, desired) else {
                self.calms(&spec.name);
                continue;
            };
            if !cause.grave && self.is_in_vain(spec) {
                continue;
            }
            let budget = self.budget(&spec.name, spec.limit);
            let begins_at = self.begins_at(spec, budget.is_ok().then_some(&cause.words));
            if begins_at > self.now.mono {
                self.wake_at(begins_at);
                pending = true;
                continue;
            }
            // It could not be noted, so that no limit would hold: an agent that is killed would do it again.
            if self.unwritten.is_some() && spec.acts.iter().any(RemedyAct::destroys) {
                continue;
            }
            match budget {
                Ok(()) => return self.begin(spec, cause.words),
                Err(Held::Cooling) => {}
                Err(Held::Spent(outcome)) if cause.grave => {
                    withheld = Some((&spec.name, cause.words, outcome));
                }
                Err(Held::Spent(_)) => {}
            }
        }
        if let Some((name, cause, outcome)) = withheld.filter(|_| !pending) {
            let run = self.remedies.runs.entry(name.clone()).or_default();
            if !std::mem::replace(&mut run.withheld, true) {
                self.note(EventKind::RepairWithheld, name, &cause, &outcome);
            }
        }
    }

    /// A remedy is not due. What was told of it is not told again, and its turn not drawn again, when it is due once more a moment
    /// later: a unit may be healthy for a second of each start.
    fn calms(&mut self, name: &str) {
        let now = self.now.mono;
        self.remedies.in_vain_at.remove(name);
        let Some(run) = self.remedies.runs.get_mut(name) else { return };
        let over = run.calm_since.get_or_insert(now).plus(SETTLED_AFTER);
        if over > now {
            self.wake_at(over);
        } else {
            self.remedies.runs.remove(name);
        }
    }

    /// When it may begin: drawn once, and told where there is a `cause` to tell.
    fn begins_at(&mut self, spec: &RemedySpec, cause: Option<&String>) -> MonoTime {
        let run = self.remedies.runs.entry(spec.name.clone()).or_default();
        run.calm_since = None;
        if let Some(at) = run.begins_at {
            return at;
        }
        let spread = Duration::from_secs(spec.limit.spread_s.into());
        if spread.is_zero() {
            return *run.begins_at.insert(self.now.mono);
        }
        let wait = self.seed.jitter(spread);
        let at = *run.begins_at.insert(self.now.mono.plus(wait));
        if let Some(cause) = cause {
            let (seconds, why) = (wait.as_secs(), "because not all machines may do it at once");
            let outcome = format!("begins in {seconds} s if it is still so, {why}");
            self.note(EventKind::RepairDue, &spec.name, cause, &outcome);
        }
        at
    }

    /// Whether the limit allows one more, by the wall clock, because it must hold over reboots.
    fn budget(&mut self, name: &str, limit: RemedyLimit) -> Result<(), Held> {
        let now = self.corrected_now().wall;
        let Some(record) = self.ledger.remedies.get_mut(name) else { return Ok(()) };
        record.forget(now);
        for (period, words, most) in
            [(DAY, "a day", limit.per_day_max), (HOUR, "an hour", limit.per_hour_max)]
        {
            let within: Vec<WallTime> =
                record.begun.iter().copied().filter(|at| now.since(*at) < period).collect();
            let count = within.len();
            // The one whose time has to be over before there is room for another.
            if let Some(at) = count.checked_sub(most.into()).and_then(|surplus| within.get(surplus)) {
                let left = at.plus(period).since(now).as_secs();
                return Err(Held::Spent(format!(
                    "not made: {count} within {words} is the limit, made again in {left} s at the earliest; look at \
                     the machine meanwhile"
                )));
            }
        }
        let cooldown = Duration::from_secs(limit.cooldown_s.into());
        if record.begun.back().is_some_and(|last| now.since(*last) < cooldown) {
            return Err(Held::Cooling);
        }
        Ok(())
    }

    fn begin(&mut self, spec: &RemedySpec, cause: String) {
        let now = self.corrected_now().wall;
        let record = self.ledger.remedies.entry(spec.name.clone()).or_default();
        record.begun.push_back(now);
        let progress = Progress { spec: digest(spec), boot: self.me.boot, done: 0, cause, did: Vec::new() };
        record.progress = Some(progress);
        let run = RemedyRun { hold: spec.hold.clone(), ..RemedyRun::default() };
        self.remedies.runs.insert(spec.name.clone(), run);
        self.forget_starts(&spec.hold);
        self.note_progress();
    }

    /// Progress is in the ledger; it is on the disk when [`Self::is_written`] says so.
    fn note_progress(&mut self) {
        self.remedies.noted += 1;
        self.persist_now();
    }

    /// Whether all progress of remedies is on the disk.
    fn is_written(&self) -> bool {
        self.remedies.written == self.remedies.noted
    }

    fn go_on(&mut self, config: &NodeConfig, desired: &Desired, name: &str) {
        if self.acts_now(name) {
            return;
        }
        let progress = self.ledger.remedies.get(name).and_then(|record| record.progress.as_ref());
        let Some((begun, done)) = progress.map(|progress| (progress.spec, usize::from(progress.done))) else {
            return;
        };
        let spec = config.remedies.iter().find(|spec| spec.name == name && digest(spec) == begun);
        match spec.map(|spec| (spec, spec.acts.get(done))) {
            None => {
                let kind = if done == 0 { EventKind::ActionFailed } else { EventKind::Repaired };
                self.finish(name, kind, "given up, because the config has another one now");
            }
            Some((spec, Some(act))) => self.go_on_with(spec, act),
            Some((spec, None)) => self.await_help(spec, desired),
        }
    }

    fn go_on_with(&mut self, spec: &RemedySpec, act: &RemedyAct) {
        let (now, key) = (self.now.mono, StepKey::Act(spec.name.clone()));
        if let Some(unit) = self.first_up(&spec.hold) {
            let run = self.remedies.runs.entry(spec.name.clone()).or_default();
            if now.since(*run.holding.get_or_insert(now)) >= HOLD_MAX {
                let words = format!("given up: {unit} was not down after {} s", HOLD_MAX.as_secs());
                self.finish(&spec.name, EventKind::RepairFailed, &words);
            }
            return;
        }
        if act.destroys() && !self.may_destroy(&spec.name) {
            return;
        }
        if *act == RemedyAct::Reboot && !self.reboot_is_due(&spec.name) {
            return;
        }
        if self.free(&key) {
            self.run(Step::Act { of: spec.name.clone(), act: act.clone() });
        }
    }

    /// Whether what was begun and done is on the disk, so that no kill and no reboot gives the budget back. A disk that
    /// takes no ledger for long ends the remedy.
    fn may_destroy(&mut self, name: &str) -> bool {
        let (now, written) = (self.now.mono, self.is_written());
        let run = self.remedies.runs.entry(name.to_owned()).or_default();
        if written {
            run.unwritten_since = None;
            return true;
        }
        if now.since(*run.unwritten_since.get_or_insert(now)) >= HOLD_MAX {
            let why = self.unwritten.clone().unwrap_or_else(|| "the disk is slow".to_owned());
            let words = format!("given up: it could not be noted that it was begun: {why}");
            self.finish(name, EventKind::RepairFailed, &words);
        }
        false
    }

    /// Whether the reboot is to be ordered now; one that has happened is an act that is done.
    fn reboot_is_due(&mut self, name: &str) -> bool {
        let now = self.now.mono;
        let record = self.ledger.remedies.get(name).and_then(|record| record.progress.as_ref());
        let Some(progress) = record else { return false };
        if progress.boot != self.me.boot {
            self.act_is_over(name, "the machine was rebooted");
            return false;
        }
        let cause = progress.cause.clone();
        let run = self.remedies.runs.entry(name.to_owned()).or_default();
        if !std::mem::replace(&mut run.announced, true) {
            self.note(EventKind::Repaired, name, &cause, "the machine is being rebooted");
            // The event must outlive the reboot.
            self.note_progress();
            return false;
        }
        if run.rebooting.is_some_and(|at| now.since(at) < REBOOT_MAX) {
            return false;
        }
        if run.tries >= ACT_TRIES_MAX {
            let words = format!("left out: told to {ACT_TRIES_MAX} times, the machine did not reboot");
            self.act_is_over(name, &words);
            return false;
        }
        true
    }

    pub(crate) fn act_done(&mut self, name: &str, result: Result<StepOutput, String>) {
        if name == FENCE {
            return self.fence_done(&result);
        }
        if name == FENCE_REBOOT {
            return self.fence_reboots(&result);
        }
        let now = self.now.mono;
        let run = self.remedies.runs.entry(name.to_owned()).or_default();
        match result {
            Ok(_) if run.announced => (run.rebooting, run.tries) = (Some(now), run.tries + 1),
            Ok(StepOutput::Said(words)) => self.act_is_over(name, &words),
            Ok(_) => self.act_is_over(name, ""),
            Err(why) => {
                run.tries += 1;
                if run.tries >= ACT_TRIES_MAX {
                    self.act_is_over(name, &format!("left out after {ACT_TRIES_MAX} tries: {why}"));
                }
            }
        }
    }

    fn act_is_over(&mut self, name: &str, words: &str) {
        self.remedies.runs.entry(name.to_owned()).or_default().tries = 0;
        let record = self.ledger.remedies.get_mut(name).and_then(|record| record.progress.as_mut());
        let Some(progress) = record else { return };
        progress.done = progress.done.saturating_add(1);
        if !words.is_empty() {
            progress.did.push(words[..words.floor_char_boundary(DID_BYTES_MAX)].to_owned());
        }
        self.note_progress();
    }

    /// All is done: now it must help.
    fn await_help(&mut self, spec: &RemedySpec, desired: &Desired) {
        let now = self.now.mono;
        let run = self.remedies.runs.entry(spec.name.clone()).or_default();
        let since = match run.settling {
            Some(since) => since,
            None => {
                run.settling = Some(now);
                self.forget_answers(spec);
                self.look_again(Class::Pressure);
                self.look_again(Class::Units);
                return;
            }
        };
        let took = now.since(since);
        let verdicts: Vec<Option<bool>> =
            spec.when.iter().map(|trigger| self.is_over(trigger, since)).collect();
        if verdicts.iter().all(|verdict| *verdict == Some(true)) {
            let words = format!("it helped after {} s", took.as_secs());
            return self.finish(&spec.name, EventKind::Repaired, &words);
        }
        let patient = took < Duration::from_secs(spec.limit.settle_s.into());
        if patient && !verdicts.contains(&Some(false)) {
            return;
        }
        match self.cause_of(spec, desired) {
            Some(cause) if cause.grave => {
                let words = format!("it did not help: {}", cause.words);
                self.finish(&spec.name, EventKind::RepairFailed, &words);
            }
            Some(cause) => {
                if let Some(used) = spec.when.iter().find_map(|trigger| self.used_percent(trigger)) {
                    self.remedies.in_vain_at.insert(spec.name.clone(), used);
                }
                self.finish(&spec.name, EventKind::Repaired, &format!("still {}", cause.words));
            }
            None => self.finish(&spec.name, EventKind::Repaired, "whether it helped is not known yet"),
        }
    }

    fn finish(&mut self, name: &str, kind: EventKind, words: &str) {
        let record = self.ledger.remedies.get_mut(name).and_then(|record| record.progress.take());
        let Some(progress) = record else { return };
        let did =
            if progress.did.is_empty() { String::new() } else { format!("; {}", progress.did.join(", ")) };
        self.note(kind, name, &progress.cause, &format!("{words}{did}"));
        self.remedies.runs.remove(name);
        self.look_again(Class::Units);
        self.persist_now();
    }

    /// Records of remedies that no config has any more go with it; one under way is first told.
    pub(crate) fn forget_remedies(&mut self) {
        let Some(config) = &self.ledger.config else { return };
        let wanted = |name: &String| config.remedies.iter().any(|spec| spec.name == *name);
        self.ledger.remedies.retain(|name, record| wanted(name) || record.progress.is_some());
    }
}

impl RemedyRecord {
    /// Drops what is older than every limit, and believes no moment that is still to come: a clock that was ahead must
    /// not withhold repairs until its time has come.
    fn forget(&mut self, now: WallTime) {
        let in_time = |at: &WallTime| now.since(*at) < DAY;
        self.begun = self.begun.iter().map(|at| (*at).min(now)).filter(in_time).collect::<VecDeque<_>>();
    }
}
