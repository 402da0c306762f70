//! The coordinator's path: link server, core, effects towards agents.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use keelson_coordinator_core::{
    CoordinatorCore, Effect, Input, Machine, Now, ProviderAnswer, ProviderCall, SeenMachine, SessionId,
};
use keelson_protocol::MonoTime;
use keelson_transport::{LEAF_LIFE, LinkEvent, LinkServer, ServerConfig, SessionHandle};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::child::{answer, questions};
use crate::fleet;

/// As in the coordinator.
const TICK: Duration = Duration::from_millis(500);
const LINK_BATCH_MAX: usize = 256;
const LINK_EVENTS_MAX: usize = 32 * 1024;

struct Server {
    core: CoordinatorCore,
    zero: Instant,
    sessions: BTreeMap<SessionId, SessionHandle>,
    /// Delays since the last question, in microseconds.
    delays: Vec<u32>,
}

/// Serves until the input ends.
pub(crate) fn run(folder: &Path, count: usize) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(folder, count))
}

async fn serve(folder: &Path, count: usize) -> Result<()> {
    let ca = fleet::read_ca(folder)?;
    let zero = Instant::now();
    let (settings, saved) = fleet::saved(count)?;
    let core = CoordinatorCore::restore(settings, saved, now(zero));
    let mut server = Server { core, zero, sessions: BTreeMap::new(), delays: Vec::new() };
    let socket = std::net::UdpSocket::bind(fleet::address(folder)?)?;
    let (events, mut link) = mpsc::channel(LINK_EVENTS_MAX);
    let mut config =
        ServerConfig::new(ca.issue_server(fleet::wall_now(), LEAF_LIFE)?, ca.certificate_der().to_vec());
    config.reset_key = Some(ca.reset_key());
    let _link_server = LinkServer::start(socket, config, events)?;
    let mut questions = questions();
    let mut tick = tokio::time::interval(TICK);
    let mut batch = Vec::with_capacity(LINK_BATCH_MAX);
    loop {
        tokio::select! {
            biased;
            question = questions.recv() => match question {
                Some(()) => answer(&server.report()),
                None => return Ok(()),
            },
            _ = tick.tick() => {
                server.take_link(std::iter::from_fn(|| link.try_recv().ok()).take(LINK_EVENTS_MAX));
                server.tick();
            }
            _ = link.recv_many(&mut batch, LINK_BATCH_MAX) => server.take_link(batch.drain(..)),
        }
    }
}

fn now(zero: Instant) -> Now {
    let mono = MonoTime(u64::try_from(zero.elapsed().as_millis()).unwrap_or(u64::MAX));
    Now { mono, wall: fleet::wall_now() }
}

impl Server {
    fn input(&mut self, event: LinkEvent) -> Option<Input> {
        match event {
            LinkEvent::Enrol { .. } => None,
            LinkEvent::Opened { session, peer, hello, .. } => {
                let id = SessionId(session.id().0);
                self.sessions.insert(id, session);
                Some(Input::Opened {
                    session: id,
                    machine: peer.machine,
                    incarnation: peer.incarnation,
                    hello,
                })
            }
            LinkEvent::Heartbeat { session, heartbeat } => {
                let delay = fleet::micros_now().saturating_sub(heartbeat.report);
                self.delays.push(u32::try_from(delay).unwrap_or(u32::MAX));
                Some(Input::Heartbeat { session: SessionId(session.0), heartbeat })
            }
            LinkEvent::Message { session, message } => {
                Some(Input::Message { session: SessionId(session.0), message })
            }
            LinkEvent::Closed { session, why } => {
                self.sessions.remove(&SessionId(session.0));
                Some(Input::Closed { session: SessionId(session.0), why })
            }
        }
    }

    fn tick(&mut self) {
        let effects = self.core.handle(now(self.zero), Input::Tick);
        self.carry_out(effects);
    }

    fn take_link(&mut self, events: impl Iterator<Item = LinkEvent>) {
        let now = now(self.zero);
        for event in events {
            if let Some(input) = self.input(event) {
                self.core.take(now, input);
            }
        }
        let effects = self.core.settle(now);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Provider { id, call } => {
                    let result = Ok(self.provider(&call));
                    let effects = self.core.handle(now(self.zero), Input::Provider { id, result });
                    self.carry_out(effects);
                }
                Effect::Send { session, message } => {
                    if let Some(handle) = self.sessions.get(&session) {
                        // A full queue ends the session, and the agent comes back.
                        let _ = handle.send(*message);
                    }
                }
                Effect::Close { session, why } => {
                    if let Some(handle) = self.sessions.get(&session) {
                        handle.close(why);
                    }
                }
                _ => {}
            }
        }
    }

    /// A provider that has everything, at once.
    fn provider(&self, call: &ProviderCall) -> ProviderAnswer {
        match call {
            ProviderCall::Create { .. } | ProviderCall::PowerOn { .. } | ProviderCall::Rebuild { .. } => {
                ProviderAnswer::Created
            }
            ProviderCall::Fence { .. } => ProviderAnswer::Fenced,
            ProviderCall::Delete { .. } | ProviderCall::Unexpose { .. } => ProviderAnswer::Done,
            ProviderCall::Expose { .. } => ProviderAnswer::Exposed(([127, 0, 0, 1], 6443).into()),
            ProviderCall::List => {
                let seen = |machine: &Machine| SeenMachine {
                    machine: machine.row.id.clone(),
                    cluster: machine.row.cluster.clone(),
                    incarnation: machine.row.incarnation,
                    on: true,
                };
                ProviderAnswer::Machines(self.core.machines().map(seen).collect())
            }
        }
    }

    fn report(&mut self) -> Value {
        let metrics = self.core.metrics();
        let connected = self.core.machines().filter(|machine| machine.session.is_some()).count();
        let mut delays = std::mem::take(&mut self.delays);
        delays.sort_unstable();
        let p99 = delays.get(delays.len() * 99 / 100).copied().unwrap_or(0);
        let cpu_us = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
            let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
            micros(usage.user_time()) + micros(usage.system_time())
        });
        json!({
            "connected": connected,
            "heartbeats": metrics.heartbeats,
            "heartbeats_lost": metrics.heartbeats_lost,
            "silent_ever": metrics.machines_silent,
            "cpu_us": cpu_us,
            "rss_bytes": rss_bytes(),
            "delay_p99_ms": f64::from(p99) / 1_000.0,
        })
    }
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    pages * 4_096
}
