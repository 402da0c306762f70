//! Peer probes: evidence about a machine that does not come over its own link.
//!
//! An agent is asked about machines of its own cluster only, and is believed only about what it was asked: no message of
//! an agent says anything about a machine that this coordinator did not want to know about.

use std::collections::BTreeSet;

use keelson_planner::node::{nearest, peer_target};
use keelson_protocol::message::ToAgent;
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::{ClusterName, MachineId, MonoTime, SecretBytes};
use ring::hmac;

use crate::effect::SessionId;
use crate::limits::{PEER_ANSWER_WITHIN, PEER_ANSWERS_MAX, PEERS_ASKED_MAX};
use crate::state::{CoordinatorCore, Now};

/// A question to peers about one machine. The next one about it takes its place.
#[derive(Debug, Clone)]
pub(crate) struct PeerQuestion {
    id: u64,
    asked: MonoTime,
    /// Who was asked and has not answered. Their sessions, because an answer counts only in the session of its question.
    open: BTreeSet<SessionId>,
}

/// What a peer last said about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerWord {
    /// Who said it.
    pub by: MachineId,
    /// What it heard.
    pub said: PeerSaid,
    /// When that came here, at most [`PEER_ANSWER_WITHIN`] after it was asked for.
    pub at: MonoTime,
}

impl CoordinatorCore {
    /// Key of a cluster's peer probes. Derived like enrolment tokens, so that it is nowhere stored and the same after a
    /// restart; another cluster's machines cannot make it from theirs.
    pub(crate) fn peer_key(&self, cluster: &ClusterName) -> SecretBytes {
        let text = format!("keelson peers 1|{}|{cluster}", self.settings.install);
        SecretBytes::new(hmac::sign(&self.token_key(), text.as_bytes()).as_ref().to_vec())
    }

    /// Asks at most [`PEERS_ASKED_MAX`] machines of the same cluster that are heard whether they can reach machine `id`:
    /// two of its zone first, then others. What they say comes with later inputs ([`Self::peer_answers`]); an earlier
    /// question about the same machine is given up. Nothing is asked about a machine that no blueprint names.
    ///
    /// Returns how many are asked; with none, nothing will be known. The effects come with [`Self::settle`].
    pub fn ask_peers(&mut self, now: Now, id: &MachineId) -> usize {
        let Some((target, sessions)) = self.whom_to_ask(id) else { return 0 };
        let count = sessions.len();
        self.next_peer_question += 1;
        let question = self.next_peer_question;
        for session in &sessions {
            self.send(*session, ToAgent::ProbePeers { id: question, targets: vec![target.clone()] });
        }
        self.peer_questions
            .insert(id.clone(), PeerQuestion { id: question, asked: now.mono, open: sessions });
        count
    }

    fn whom_to_ask(&self, id: &MachineId) -> Option<(PeerTarget, BTreeSet<SessionId>)> {
        let row = &self.machines.get(id)?.row;
        let planned = self.planned(&row.cluster, id).filter(|m| m.incarnation == row.incarnation)?;
        let blueprint = &self.clusters.get(&row.cluster)?.row.blueprint;
        let heard = |peer: &MachineId| {
            self.machines.get(peer).filter(|peer| !peer.silent).and_then(|peer| peer.session)
        };
        let peers = nearest(blueprint, planned, PEERS_ASKED_MAX, |peer| heard(&peer.id).is_some());
        let sessions = peers.into_iter().filter_map(|peer| heard(&peer.id)).collect();
        Some((peer_target(planned), sessions))
    }

    /// What peers last said about a machine, one word of each, the oldest first.
    #[must_use]
    pub fn peer_answers(&self, id: &MachineId) -> &[PeerWord] {
        self.peer_answers.get(id).map_or(&[], Vec::as_slice)
    }

    /// Takes the answers of machine `by`, those that it was asked for.
    pub(crate) fn on_peers_probed(
        &mut self,
        now: Now,
        session: SessionId,
        by: &MachineId,
        id: u64,
        answers: Vec<PeerAnswer>,
    ) {
        for PeerAnswer { machine, said } in answers {
            let question = self.peer_questions.get_mut(&machine).filter(|question| question.id == id);
            let Some(question) = question.filter(|question| question.open.contains(&session)) else {
                continue;
            };
            question.open.remove(&session);
            if now.mono.since(question.asked) > PEER_ANSWER_WITHIN {
                continue;
            }
            let words = self.peer_answers.entry(machine).or_default();
            words.retain(|word| word.by != *by);
            if words.len() >= PEER_ANSWERS_MAX {
                words.remove(0);
            }
            words.push(PeerWord { by: by.clone(), said, at: now.mono });
        }
    }

    /// A machine is gone, or another one has its id.
    pub(crate) fn forget_peer_answers(&mut self, id: &MachineId) {
        self.peer_questions.remove(id);
        self.peer_answers.remove(id);
    }
}
