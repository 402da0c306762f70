//! Peers: answering them, asking them for the coordinator, and asking the neighbours when the coordinator is lost.
//!
//! Nothing is asked while all is well. What neighbours say is the only evidence about this machine's own way out that
//! does not come over the link: with it, a machine that is cut off can be told from one whose coordinator is away.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::{NodeConfig, PeerSpec};
use keelson_protocol::health::EventKind;
use keelson_protocol::limits::PEER_WHY_BYTES_MAX;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};

use crate::action::{Action, PeerChannel, Step, StepKey};
use crate::core::AgentCore;

/// The neighbours are asked when there has been no session for so long: a restart of the coordinator, or a session that
/// moves to another address, is over by then, and no fleet asks around for it.
const LINK_LOST_AFTER: Duration = Duration::from_secs(5);
/// They are asked again this often, until there is a session.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// So many rounds in a row without an answer make a machine alone: one may fall into a moment of congestion.
const ROUNDS_UNANSWERED: u32 = 2;
/// Most questions of the coordinator under way. It needs one answer for each machine that fell silent, and asks again;
/// beyond this the oldest is not answered.
const QUESTIONS_MAX: usize = 4;

/// Whether this machine is cut off, as far as it can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A session with the coordinator stands.
    Connected,
    /// There is none, and the neighbours have not been asked often enough, could not be asked, or there are none.
    Unknown {
        /// Since when there is no session.
        since: MonoTime,
    },
    /// There is none, but a neighbour is there: the coordinator or the way to it is lost, not this machine.
    LinkOnly {
        /// When a neighbour was reached first.
        since: MonoTime,
    },
    /// There is none, and no neighbour was reached in the last rounds.
    Alone {
        /// When that was known.
        since: MonoTime,
    },
}

#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) isolation: Isolation,
    /// Since when there is no session; `None` while one stands.
    lost: Option<MonoTime>,
    /// When the neighbours were asked last, since the session was lost.
    round_began: Option<MonoTime>,
    /// Rounds in a row in which no neighbour was reached.
    unanswered: u32,
    /// Questions under way.
    asked: BTreeMap<u64, AskedBy>,
    id_last: u64,
    responder: Responder,
    responder_ordered: Option<PeerChannel>,
}

/// Who wants the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AskedBy {
    /// The coordinator, under its own number.
    Coordinator { id: u64 },
    /// This agent, about itself.
    Me,
}

/// What is known of what answers peers.
#[derive(Debug, PartialEq, Eq)]
enum Responder {
    /// A step failed: it may answer as before, as ordered, or not at all.
    Unknown,
    /// It answers so, or not at all, as at the start of an agent.
    Known(Option<PeerChannel>),
}

impl Peers {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            isolation: Isolation::Unknown { since: now },
            lost: Some(now),
            round_began: None,
            unanswered: 0,
            asked: BTreeMap::new(),
            id_last: 0,
            responder: Responder::Known(None),
            responder_ordered: None,
        }
    }

    /// Makes room for a question of the coordinator.
    fn forget_oldest(&mut self) {
        let of_coordinator = self.asked.iter().filter(|(_, by)| **by != AskedBy::Me);
        let ids: Vec<u64> = of_coordinator.map(|(id, _)| *id).collect();
        if ids.len() >= QUESTIONS_MAX {
            self.asked.remove(&ids[0]);
        }
    }
}

impl AgentCore {
    /// Whether this machine is cut off, as far as it can know.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.peers.isolation
    }

    /// A session began or ended.
    pub(crate) fn link_changed(&mut self) {
        let now = self.now.mono;
        if !self.link_view.connected() {
            if self.peers.lost.is_none() {
                self.peers.lost = Some(now);
                self.peers.isolation = Isolation::Unknown { since: now };
            }
            return;
        }
        if let Isolation::Alone { since } = self.peers.isolation {
            self.peers_back("the coordinator is back", since);
        }
        self.peers.isolation = Isolation::Connected;
        self.peers.lost = None;
        self.peers.round_began = None;
        self.peers.unanswered = 0;
        // Questions belong to the session that they came in: another coordinator numbers its own from the beginning.
        self.peers.asked.clear();
    }

    pub(crate) fn reconcile_peers(&mut self, config: &NodeConfig) {
        let wanted = config.peers.as_ref().map(PeerChannel::of);
        let answers_so = matches!(&self.peers.responder, Responder::Known(known) if *known == wanted);
        if !answers_so && self.free(&StepKey::Peers) {
            self.peers.responder_ordered.clone_from(&wanted);
            self.run(Step::AnswerPeers(wanted));
        }
        if let Some(spec) = &config.peers {
            self.ask_neighbours(spec);
        }
    }

    pub(crate) fn responder_done(&mut self, done: bool) {
        let ordered = self.peers.responder_ordered.take();
        self.peers.responder = if done { Responder::Known(ordered) } else { Responder::Unknown };
    }

    fn ask_neighbours(&mut self, spec: &PeerSpec) {
        let Some(lost) = self.peers.lost else { return };
        if spec.neighbours.is_empty() || self.peers.asked.values().any(|by| *by == AskedBy::Me) {
            return;
        }
        let began = self.peers.round_began.map(|began| began.plus(ROUND_EVERY));
        let due = began.unwrap_or_else(|| lost.plus(LINK_LOST_AFTER));
        if due > self.now.mono {
            self.wake_at(due);
            return;
        }
        self.peers.round_began = Some(self.now.mono);
        self.ask_peers(AskedBy::Me, PeerChannel::of(spec), spec.neighbours.clone());
    }

    /// The coordinator asks whether this machine can reach others.
    pub(crate) fn coordinator_asks(&mut self, id: u64, targets: Vec<PeerTarget>) {
        let spec = self.ledger.config.as_ref().and_then(|config| config.peers.as_ref());
        match spec.map(PeerChannel::of) {
            Some(channel) => {
                self.peers.forget_oldest();
                self.ask_peers(AskedBy::Coordinator { id }, channel, targets);
            }
            None => {
                let said =
                    PeerSaid::Failed { why: "this machine was not told how to ask its peers".to_owned() };
                let answer = |target: PeerTarget| PeerAnswer { machine: target.machine, said: said.clone() };
                let answers = targets.into_iter().map(answer).collect();
                self.push(Action::Send(ToCoordinator::PeersProbed { id, answers }));
            }
        }
    }

    fn ask_peers(&mut self, by: AskedBy, channel: PeerChannel, targets: Vec<PeerTarget>) {
        self.peers.id_last += 1;
        let id = self.peers.id_last;
        self.peers.asked.insert(id, by);
        self.push(Action::ProbePeers { id, channel, targets });
    }

    pub(crate) fn peers_probed(&mut self, id: u64, mut answers: Vec<PeerAnswer>) {
        match self.peers.asked.remove(&id) {
            None => {}
            Some(AskedBy::Coordinator { id }) => {
                answers.iter_mut().for_each(bound);
                self.push(Action::Send(ToCoordinator::PeersProbed { id, answers }));
            }
            Some(AskedBy::Me) => self.round_answered(&answers),
        }
    }

    fn round_answered(&mut self, answers: &[PeerAnswer]) {
        let now = self.now.mono;
        // A refusal is signed by nobody, but somebody beyond this machine's own network card sent it.
        let reached = answers
            .iter()
            .find(|answer| matches!(answer.said, PeerSaid::Answered { .. } | PeerSaid::Refused));
        if let Some(answer) = reached {
            self.peers.unanswered = 0;
            if let Isolation::Alone { since } = self.peers.isolation {
                self.peers_back(&format!("{} can be reached again", answer.machine), since);
            }
            if !matches!(self.peers.isolation, Isolation::LinkOnly { .. }) {
                self.peers.isolation = Isolation::LinkOnly { since: now };
            }
            return;
        }
        // Where nobody could be asked nothing is learnt, and what was known stays.
        if !answers.iter().any(|answer| answer.said == PeerSaid::Silent) {
            return;
        }
        self.peers.unanswered += 1;
        let alone = matches!(self.peers.isolation, Isolation::Alone { .. });
        if self.peers.unanswered >= ROUNDS_UNANSWERED && !alone {
            self.peers.isolation = Isolation::Alone { since: now };
            let lost = self.peers.lost.map(|lost| now.since(lost).as_secs()).unwrap_or_default();
            let cause = format!(
                "no coordinator for {lost} s, and none of {} neighbours answered {ROUNDS_UNANSWERED} times in a row",
                answers.len()
            );
            self.note(
                EventKind::PeersLost,
                "peers",
                &cause,
                "this machine is cut off; it goes on as it was told",
            );
        }
    }

    fn peers_back(&mut self, cause: &str, alone_since: MonoTime) {
        let outcome =
            format!("this machine was cut off for {} s", self.now.mono.since(alone_since).as_secs());
        self.note(EventKind::PeersBack, "peers", cause, &outcome);
    }
}

/// Cuts a reason at a character border when it is longer than a message may hold.
fn bound(answer: &mut PeerAnswer) {
    if let PeerSaid::Failed { why } = &mut answer.said {
        why.truncate(why.floor_char_boundary(PEER_WHY_BYTES_MAX));
    }
}
