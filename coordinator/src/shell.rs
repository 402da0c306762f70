//! The loop around the core: take an input, call `handle`, carry out the effects in order.

use std::collections::BTreeMap;

use keelson_coordinator_core::{CallId, CoordinatorCore, Effect, EnrolId, Input, Now, SessionId};
use keelson_model::FleetEvent;
use keelson_model::etcd::EtcdCall;
use keelson_model::kubernetes::{KubeCall, KubeFailure};
use keelson_pki::sign_leaf;
use keelson_planner::node::etcd_commands;
use keelson_protocol::errors::chain;
use keelson_protocol::message::{EnrolReply, Refusal, RefusalCode, ToAgent};
use keelson_protocol::{ClusterName, MachineId};
use keelson_store::{Store, StoreError};
use keelson_transport::{EnrolReplier, LEAF_LIFE, LinkCa, LinkEvent, SessionHandle};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::kubernetes::{self, KubeClients};
use crate::link;
use crate::providers::Infrastructure;
use crate::remote;

/// How often time passes for the core: a machine is called late within this time.
const TICK: std::time::Duration = std::time::Duration::from_millis(250);
/// Link events that may wait for the loop: a burst of all agents' heartbeats.
pub(crate) const LINK_EVENTS_MAX: usize = 32 * 1024;
/// Link events taken before the loop looks at anything else: a burst of heartbeats must not starve users.
const LINK_BATCH_MAX: usize = 256;
/// Requests of API clients that may wait.
const REQUESTS_MAX: usize = 1_024;

/// Answers to calls that may wait: all that can be under way.
const ANSWERS_MAX: usize = keelson_coordinator_core::PROVIDER_CALLS_MAX
    + keelson_coordinator_core::ETCD_CALLS_MAX
    + keelson_coordinator_core::KUBE_CALLS_MAX;

/// A request of the API, run on the loop's own task so that it sees and changes one consistent state.
type Request = Box<dyn FnOnce(&mut Shell) -> Result<(), StoreError> + Send>;

/// What the loop owns.
pub(crate) struct Shell {
    pub(crate) core: CoordinatorCore,
    pub(crate) store: Store,
    clock: Clock,
    link_ca: LinkCa,
    infrastructure: Infrastructure,
    kube: KubeClients,
    sessions: BTreeMap<SessionId, SessionHandle>,
    enrolments: BTreeMap<EnrolId, EnrolReplier>,
    next_enrolment: u64,
    /// Where the answers to calls come back as inputs.
    answers: mpsc::Sender<Input>,
    revision: watch::Sender<u64>,
}

/// The way to the loop for everybody else.
#[derive(Clone)]
pub(crate) struct Handle {
    requests: mpsc::Sender<Request>,
    pub(crate) revision: watch::Receiver<u64>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is stopping")]
pub(crate) struct Stopping;

impl Handle {
    /// Runs `request` on the loop.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Shell) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Result<T, String>, Stopping> {
        let (sender, receiver) = oneshot::channel();
        let request: Request = Box::new(move |shell| match request(shell) {
            Ok(answer) => {
                // The client may have gone; what it asked for was done.
                let _ = sender.send(Ok(answer));
                Ok(())
            }
            Err(error) => {
                let _ = sender.send(Err(chain(&error)));
                Err(error)
            }
        });
        self.requests.send(request).await.map_err(|_| Stopping)?;
        receiver.await.map_err(|_| Stopping)
    }
}

/// What the loop is made of.
pub(crate) struct Parts {
    pub(crate) core: CoordinatorCore,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) link_ca: LinkCa,
    pub(crate) infrastructure: Infrastructure,
    pub(crate) link: mpsc::Receiver<LinkEvent>,
}

/// Makes the loop; it runs when the returned future is polled, until `stop` is done or the store fails.
pub(crate) fn start(
    parts: Parts,
    stop: impl Future<Output = ()>,
) -> (Handle, impl Future<Output = Result<(), StoreError>>) {
    let (requests, requests_in) = mpsc::channel(REQUESTS_MAX);
    let (answers, answers_in) = mpsc::channel(ANSWERS_MAX);
    let (revision, revision_in) = watch::channel(0);
    let shell = Shell {
        core: parts.core,
        store: parts.store,
        clock: parts.clock,
        link_ca: parts.link_ca,
        infrastructure: parts.infrastructure,
        kube: KubeClients::default(),
        sessions: BTreeMap::new(),
        enrolments: BTreeMap::new(),
        next_enrolment: 0,
        answers,
        revision,
    };
    let handle = Handle { requests, revision: revision_in };
    (handle, shell.run(parts.link, requests_in, answers_in, stop))
}

impl Shell {
    async fn run(
        mut self,
        mut link: mpsc::Receiver<LinkEvent>,
        mut requests: mpsc::Receiver<Request>,
        mut answers: mpsc::Receiver<Input>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        let mut batch = Vec::with_capacity(LINK_BATCH_MAX);
        loop {
            // Every branch is cancel safe: a receive that loses the race leaves its message in the channel.
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                _ = tick.tick() => self.tick(&mut link)?,
                Some(request) = requests.recv() => request(&mut self)?,
                Some(input) = answers.recv() => self.take(input)?,
                count = link.recv_many(&mut batch, LINK_BATCH_MAX), if !link.is_closed() || !link.is_empty() => {
                    debug_assert!(count <= LINK_BATCH_MAX);
                    self.take_link(batch.drain(..))?;
                }
            }
        }
    }

    /// The two clocks.
    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        let effects = self.core.handle(self.clock.now(), input);
        self.carry_out(effects)
    }

    /// Lets time pass, after what has already come over the link: nobody is called silent whose heartbeat waits here.
    fn tick(&mut self, link: &mut mpsc::Receiver<LinkEvent>) -> Result<(), StoreError> {
        let waiting = std::iter::from_fn(|| link.try_recv().ok()).take(LINK_EVENTS_MAX);
        let now = self.clock.now();
        self.hear(now, waiting);
        // Nothing is decided before the core knows for how long it was held up.
        self.core.take(now, Input::Tick);
        let effects = self.core.settle(now);
        self.carry_out(effects)
    }

    fn hear(&mut self, now: Now, events: impl Iterator<Item = LinkEvent>) {
        for event in events {
            let input = link::input(self, event);
            self.core.take(now, input);
        }
    }

    /// Gives many link events to the core and carries out what follows from all of them.
    fn take_link(&mut self, events: impl Iterator<Item = LinkEvent>) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.hear(now, events);
        let effects = self.core.settle(now);
        self.carry_out(effects)
    }

    /// Carries out effects in order. An error of the store ends the coordinator: what cannot be written down must not
    /// be done, and the next start takes up from what was.
    pub(crate) fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), StoreError> {
        if effects.is_empty() {
            return Ok(());
        }
        for effect in effects {
            match effect {
                Effect::Persist(rows) => self.store.apply(&rows)?,
                Effect::Provider { id, call } => self.call_provider(id, call),
                Effect::Etcd { id, session, cluster, call } => self.call_etcd(id, session, &cluster, call),
                Effect::Kube { id, cluster, call } => self.call_kube(id, &cluster, call),
                Effect::Send { session, message } => self.send(session, *message),
                Effect::Close { session, why } => {
                    if let Some(handle) = self.sessions.get(&session) {
                        handle.close(why);
                    }
                }
                Effect::AcceptEnrol { id, machine, incarnation, signing_request } => {
                    let now = self.clock.now().wall;
                    let signed =
                        self.link_ca.sign_machine(&signing_request, &machine, incarnation, now, LEAF_LIFE);
                    let reply = match signed {
                        Ok(chain) => EnrolReply::Accepted { chain },
                        Err(error) => refuse(RefusalCode::BadSigningRequest, &error),
                    };
                    self.reply(id, reply);
                }
                Effect::RefuseEnrol { id, refusal } => self.reply(id, EnrolReply::Refused(refusal)),
                Effect::RenewLink { session, machine, incarnation, signing_request } => {
                    let now = self.clock.now().wall;
                    match self.link_ca.sign_machine(&signing_request, &machine, incarnation, now, LEAF_LIFE) {
                        Ok(chain) => self.send(session, ToAgent::LinkRenewed { chain }),
                        Err(error) => tracing::warn!(%machine, %error, "link certificate not renewed"),
                    }
                }
                Effect::SignLeaf { session, cluster, spec, signing_request } => {
                    let Some(material) = self.core.cluster(&cluster).map(|cluster| cluster.material.clone())
                    else {
                        continue;
                    };
                    let name = spec.name.clone();
                    let signed = sign_leaf(&material, &spec, &signing_request, self.clock.now().wall);
                    let message = match signed {
                        Ok(chain) => ToAgent::Certificate { name, chain },
                        Err(error) => ToAgent::CertificateRefused { name, why: chain(&error) },
                    };
                    self.send(session, message);
                }
                Effect::Note(event) => note(&event),
            }
        }
        self.revision.send_modify(|revision| *revision += 1);
        Ok(())
    }

    fn call_provider(&self, id: CallId, call: keelson_coordinator_core::ProviderCall) {
        let (infrastructure, answers) = (self.infrastructure.clone(), self.answers.clone());
        tokio::spawn(async move {
            let result = infrastructure.perform(call).await;
            // Fails only when the loop has ended; then the next start asks again.
            let _ = answers.send(Input::Provider { id, result }).await;
        });
    }

    fn call_kube(&mut self, id: CallId, name: &ClusterName, call: KubeCall) {
        let now = self.clock.now().wall;
        let core = &self.core;
        self.kube.retain(|name| core.cluster(name).is_some());
        let access = core.endpoint(name).zip(core.cluster(name).map(|cluster| cluster.material.clone()));
        let client = match access {
            Some((endpoint, material)) => self.kube.get(name, &endpoint, &material, now),
            None => Err(KubeFailure::Unreachable { why: "it has no address outside yet".to_owned() }),
        };
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let result = match client {
                Ok(client) => kubernetes::perform(&client, &call).await,
                Err(failure) => Err(failure),
            };
            // Fails only when the loop has ended; then the next start asks again.
            let _ = answers.send(Input::Kube { id, result }).await;
        });
    }

    fn call_etcd(&self, id: CallId, session: SessionId, cluster: &ClusterName, call: EtcdCall) {
        let commands = self.core.cluster(cluster).map(|cluster| {
            let blueprint = &cluster.row.blueprint;
            etcd_commands(blueprint, &blueprint.release, &call)
        });
        let (session, answers) = (self.sessions.get(&session).cloned(), self.answers.clone());
        tokio::spawn(async move {
            let result = match (commands, session) {
                (Some(commands), Some(session)) => remote::etcd(&session, &call, commands).await,
                _ => Err("the machine's session has ended".to_owned()),
            };
            // Fails only when the loop has ended; then the next start asks again.
            let _ = answers.send(Input::Etcd { id, result }).await;
        });
    }

    fn send(&self, session: SessionId, message: ToAgent) {
        if let Some(handle) = self.sessions.get(&session)
            && let Err(error) = handle.send(message)
        {
            tracing::debug!(session = session.0, %error, "not sent; the agent asks again when it is back");
        }
    }

    fn reply(&mut self, id: EnrolId, reply: EnrolReply) {
        if let Some(replier) = self.enrolments.remove(&id) {
            replier.send(reply);
        }
    }

    pub(crate) fn keep_session(&mut self, id: SessionId, session: SessionHandle) {
        self.sessions.insert(id, session);
    }

    pub(crate) fn drop_session(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    pub(crate) fn keep_enrolment(&mut self, replier: EnrolReplier) -> EnrolId {
        let id = EnrolId(self.next_enrolment);
        self.next_enrolment += 1;
        self.enrolments.insert(id, replier);
        id
    }

    /// The session that stands with a machine.
    pub(crate) fn session_of(&self, machine: &MachineId) -> Option<SessionHandle> {
        let session = self.core.machine(machine)?.session?;
        self.sessions.get(&session).cloned()
    }
}

fn refuse(code: RefusalCode, error: &dyn std::error::Error) -> EnrolReply {
    EnrolReply::Refused(Refusal { code, text: chain(error) })
}

fn note(event: &FleetEvent) {
    let cluster = event.cluster.as_ref().map(ToString::to_string);
    let machine = event.machine.as_ref().map(ToString::to_string);
    match event.severity {
        keelson_model::Severity::Info => {
            tracing::info!(
                reason = event.reason,
                cluster,
                machine,
                cause = event.cause,
                outcome = event.outcome
            );
        }
        keelson_model::Severity::Warning | keelson_model::Severity::Alarm => {
            tracing::warn!(
                reason = event.reason,
                cluster,
                machine,
                cause = event.cause,
                outcome = event.outcome
            );
        }
    }
}
