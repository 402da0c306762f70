//! Peers on the network: answering their pings, and pinging them.
//!
//! Answering is a task of its own that waits for nothing else, so that a machine with a dead disk still says that it
//! lives. It is as cheap as it can be for whoever floods it: one buffer, no memory for what is refused, and so many
//! datagrams in a moment that the agent's other work goes on.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_agent_core::PeerChannel;
use keelson_protocol::peer::{
    DATAGRAM_BYTES_MAX, Datagram, DatagramError, DatagramKind, PeerAnswer, PeerKey, PeerKeyError, PeerSaid,
    PeerTarget,
};
use keelson_protocol::{Incarnation, MachineId};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info};

/// Pings to one target: two may be lost.
const PINGS_MAX: usize = 3;
/// Time between two of them.
const PING_EVERY: Duration = Duration::from_millis(100);
/// How long a target has for its answer, from the first ping on: longer than a round trip around the earth, shorter than
/// the patience of whoever decides about a silent machine.
const ANSWER_WITHIN: Duration = Duration::from_millis(400);
/// Most targets that are asked at a time: four questions of the coordinator with all they may name.
const ASKED_MAX: usize = 64;
/// Datagrams that are looked at in one [`WINDOW`]; more wait, or are lost. 6,400 a second are a hundred times what peers
/// ever ask of one machine, and under a flood of 340,000 they took 2.4 % of a processor.
const WINDOW_DATAGRAMS_MAX: u32 = 64;
/// See [`WINDOW_DATAGRAMS_MAX`].
const WINDOW: Duration = Duration::from_millis(10);
/// Wait after the socket could not be read.
const RECEIVE_RETRY: Duration = Duration::from_millis(100);
/// Datagrams that were dropped are told at most this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Why peers are not answered as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeersError {
    #[error("peers cannot be answered at {address}")]
    Listen {
        address: SocketAddrV4,
        #[source]
        source: io::Error,
    },
    #[error("peers cannot be answered")]
    Key(#[from] PeerKeyError),
}

/// Who this machine is to its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) machine: MachineId,
    pub(crate) incarnation: Incarnation,
}

/// What answers peers, running or not.
#[derive(Debug)]
pub(crate) struct Responder {
    me: Me,
    running: Option<Running>,
    /// Datagrams that were no ping of a peer to this machine.
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Running {
    channel: PeerChannel,
    task: JoinHandle<()>,
}

impl Responder {
    pub(crate) fn new(me: Me) -> Self {
        Self { me, running: None, dropped: Arc::default() }
    }

    /// Answers as `channel` says, or not at all.
    pub(crate) async fn apply(&mut self, channel: Option<PeerChannel>) -> Result<(), PeersError> {
        if self.running.as_ref().map(|running| &running.channel) == channel.as_ref() {
            return Ok(());
        }
        if let Some(running) = self.running.take() {
            running.task.abort();
            // The port is free only when the task is gone.
            let _ = running.task.await;
        }
        let Some(channel) = channel else { return Ok(()) };
        let (key, address) = (PeerKey::new(&channel.key)?, channel.listen);
        let socket = UdpSocket::bind(address).await;
        let socket = socket.map_err(|source| PeersError::Listen { address, source })?;
        info!(%address, "peers are answered");
        let task = tokio::spawn(respond(socket, key, self.me.clone(), Arc::clone(&self.dropped)));
        self.running = Some(Running { channel, task });
        Ok(())
    }
}

/// Why a datagram is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unanswered {
    #[error(transparent)]
    Bad(#[from] DatagramError),
    #[error("a pong that nobody asked for")]
    Pong,
    #[error("a ping to another machine, or to another incarnation of this one")]
    NotMe,
}

/// The bytes that answer `bytes`.
fn answer(bytes: &[u8], key: &PeerKey, me: &Me) -> Result<Vec<u8>, Unanswered> {
    let ping = Datagram::decode(bytes, key)?;
    match ping.kind {
        DatagramKind::Pong => Err(Unanswered::Pong),
        DatagramKind::Ping if (&ping.asked, ping.incarnation) != (&me.machine, me.incarnation) => {
            Err(Unanswered::NotMe)
        }
        DatagramKind::Ping => Ok(ping.pong().encode(key)),
    }
}

async fn respond(socket: UdpSocket, key: PeerKey, me: Me, dropped: Arc<AtomicU64>) {
    // One byte more, so that what is too long is seen to be.
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    let mut told: Option<Instant> = None;
    let (mut window, mut seen) = (Instant::now(), 0);
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((bytes, from)) => match answer(&buffer[..bytes], &key, &me) {
                // Never waits: when there is no room to send, the peer asks again.
                Ok(pong) => drop(socket.try_send_to(&pong, from)),
                Err(why) => {
                    let count = dropped.fetch_add(1, Ordering::Relaxed) + 1;
                    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                        told = Some(Instant::now());
                        info!(count, %from, %why, "datagrams were dropped that are no pings of peers");
                    }
                }
            },
            Err(error) => {
                debug!(%error, "no datagram could be read");
                tokio::time::sleep(RECEIVE_RETRY).await;
            }
        }
        seen += 1;
        if seen >= WINDOW_DATAGRAMS_MAX {
            sleep_until(window + WINDOW).await;
            (window, seen) = (Instant::now(), 0);
        }
    }
}

/// Asks peers.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    me: Arc<Me>,
    room: Arc<Semaphore>,
}

impl Prober {
    pub(crate) fn new(me: Me) -> Self {
        Self { me: Arc::new(me), room: Arc::new(Semaphore::new(ASKED_MAX)) }
    }

    /// Asks all `targets` at once. Ends after [`ANSWER_WITHIN`] at the latest.
    pub(crate) async fn probe(&self, channel: &PeerChannel, targets: Vec<PeerTarget>) -> Vec<PeerAnswer> {
        let key = PeerKey::new(&channel.key);
        let ask = |target: PeerTarget| {
            let machine = target.machine.clone();
            let (this, key, port) = (self.clone(), key.clone(), channel.listen.port());
            let asked = tokio::spawn(async move {
                match key {
                    Ok(key) => this.ask(&key, &target, port).await,
                    Err(error) => failed(&error),
                }
            });
            (machine, asked)
        };
        // All begin before the first is waited for.
        let asked: Vec<_> = targets.into_iter().map(ask).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for (machine, asked) in asked {
            let said = asked.await.unwrap_or_else(|error| failed(&error));
            answers.push(PeerAnswer { machine, said });
        }
        answers
    }

    async fn ask(&self, key: &PeerKey, target: &PeerTarget, port: u16) -> PeerSaid {
        let Ok(_permit) = self.room.try_acquire() else {
            return PeerSaid::Failed { why: format!("{ASKED_MAX} peers are being asked already") };
        };
        let begin = Instant::now();
        let deadline = begin + ANSWER_WITHIN;
        let socket = match connect(SocketAddr::from((target.address, port))).await {
            Ok(socket) => socket,
            Err(error) => return judge(&error).unwrap_or(PeerSaid::Silent),
        };
        let mut pings: Vec<(Datagram, Instant)> = Vec::with_capacity(PINGS_MAX);
        for next in 1..=PINGS_MAX {
            let ping = match self.ping(target) {
                Ok(ping) => ping,
                Err(said) => return said,
            };
            let bytes = ping.encode(key);
            pings.push((ping, Instant::now()));
            if let Err(error) = socket.send(&bytes).await
                && let Some(said) = judge(&error)
            {
                return said;
            }
            let next = u32::try_from(next).unwrap_or(u32::MAX);
            let until = if pings.len() == PINGS_MAX { deadline } else { begin + PING_EVERY * next };
            if let Ok(said) = timeout_at(until, hear(&socket, key, &pings)).await {
                return said;
            }
        }
        PeerSaid::Silent
    }

    fn ping(&self, target: &PeerTarget) -> Result<Datagram, PeerSaid> {
        let nonce = keelson_host::random_number().map_err(|error| failed(&error))?;
        Ok(Datagram {
            kind: DatagramKind::Ping,
            nonce,
            asker: self.me.machine.clone(),
            asked: target.machine.clone(),
            incarnation: target.incarnation,
        })
    }
}

/// A socket that takes datagrams of the target only, and hears when its kernel refuses.
async fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// Waits until something says how the target is. Everything else that comes is passed over.
async fn hear(socket: &UdpSocket, key: &PeerKey, pings: &[(Datagram, Instant)]) -> PeerSaid {
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(bytes) => {
                let Ok(pong) = Datagram::decode(&buffer[..bytes], key) else { continue };
                let answered = pings.iter().find(|(ping, _)| ping.pong() == pong);
                if let Some((_, sent)) = answered {
                    let round_trip_us = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
                    return PeerSaid::Answered { round_trip_us };
                }
            }
            Err(error) => {
                if let Some(said) = judge(&error) {
                    return said;
                }
            }
        }
    }
}

/// What an error of the socket says about the target; `None` when it is the same as silence: nobody answers at that
/// address, or there is no way there.
fn judge(error: &io::Error) -> Option<PeerSaid> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(PeerSaid::Refused),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => None,
        _ => Some(failed(error)),
    }
}

fn failed(error: &dyn std::error::Error) -> PeerSaid {
    PeerSaid::Failed { why: keelson_protocol::errors::chain(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_protocol::SecretBytes;

    fn machine(number: u8) -> MachineId {
        MachineId::new(format!("demo-worker-{number}")).unwrap()
    }

    /// The machine with this number; its incarnation has the same.
    fn me(number: u8) -> Me {
        Me { machine: machine(number), incarnation: Incarnation(u32::from(number)) }
    }

    /// The machine with this number is at 127.0.0.<number>.
    fn target(number: u8) -> PeerTarget {
        let Me { machine, incarnation } = me(number);
        PeerTarget { machine, incarnation, address: Ipv4Addr::new(127, 0, 0, number) }
    }

    fn secret(byte: u8) -> SecretBytes {
        SecretBytes::new(vec![byte; 32])
    }

    /// A cluster on the loopback network, whose machines all have the same port.
    struct Cluster {
        port: u16,
        /// Holds the port, so that no other test gets it.
        _held: UdpSocket,
    }

    impl Cluster {
        async fn new() -> Self {
            let held = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            Self { port: held.local_addr().unwrap().port(), _held: held }
        }

        fn channel(&self, number: u8, key: u8) -> PeerChannel {
            let listen = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, number), self.port);
            PeerChannel { listen, key: secret(key) }
        }

        async fn responder(&self, number: u8, key: u8) -> Responder {
            let mut responder = Responder::new(me(number));
            responder.apply(Some(self.channel(number, key))).await.unwrap();
            responder
        }

        /// What machine 2, with the right key, hears of `targets`.
        async fn ask(&self, targets: Vec<PeerTarget>) -> Vec<PeerSaid> {
            let answers = Prober::new(me(2)).probe(&self.channel(2, 7), targets.clone()).await;
            assert!(answers.iter().map(|answer| &answer.machine).eq(targets.iter().map(|t| &t.machine)));
            answers.into_iter().map(|answer| answer.said).collect()
        }
    }

    fn word(said: &PeerSaid) -> &'static str {
        match said {
            PeerSaid::Answered { .. } => "answered",
            PeerSaid::Refused => "refused",
            PeerSaid::Silent => "silent",
            PeerSaid::Failed { .. } => "failed",
        }
    }

    fn words(said: &[PeerSaid]) -> Vec<&'static str> {
        said.iter().map(word).collect()
    }

    fn dropped(responder: &Responder) -> u64 {
        responder.dropped.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn each_target_says_what_it_can_and_all_are_asked_at_once() {
        let cluster = Cluster::new().await;
        let good = cluster.responder(3, 7).await;
        let other_key = cluster.responder(5, 8).await;
        let replaced = cluster.responder(6, 7).await;
        // Takes datagrams and says nothing, as a machine that hangs.
        let _hangs = UdpSocket::bind(("127.0.0.7", cluster.port)).await.unwrap();
        let mut old = target(6);
        old.incarnation = Incarnation(1);
        let begin = Instant::now();
        let said = cluster.ask(vec![target(3), target(4), target(5), old, target(7)]).await;
        let took = begin.elapsed();
        assert_eq!(words(&said), ["answered", "refused", "silent", "silent", "silent"]);
        assert!(took >= ANSWER_WITHIN && took < ANSWER_WITHIN * 4, "{took:?}");
        assert_eq!(
            [&good, &other_key, &replaced].map(dropped),
            [0, 3, 3],
            "three pings each, and all are counted"
        );
    }

    #[tokio::test]
    async fn a_target_that_answers_or_refuses_is_not_waited_for() {
        let cluster = Cluster::new().await;
        let _good = cluster.responder(3, 7).await;
        let begin = Instant::now();
        let said = cluster.ask(vec![target(3), target(4)]).await;
        assert!(begin.elapsed() < ANSWER_WITHIN, "{:?}", begin.elapsed());
        let PeerSaid::Answered { round_trip_us } = said[0] else { panic!("{said:?}") };
        assert!((1..100_000).contains(&round_trip_us), "{round_trip_us}");
        assert_eq!(said[1], PeerSaid::Refused);
    }

    /// What an impostor makes of a ping.
    type Reply = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

    /// Machine 3 as somebody who has no key, or an old pong, and answers all the same.
    async fn impostor(
        cluster: &Cluster,
        reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
    ) -> JoinHandle<()> {
        let socket = UdpSocket::bind(("127.0.0.3", cluster.port)).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2 * DATAGRAM_BYTES_MAX];
            loop {
                let (bytes, from) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&reply(&buffer[..bytes]), from).await.unwrap();
            }
        })
    }

    #[tokio::test]
    async fn nothing_but_the_pong_of_this_ping_is_an_answer() {
        let key = PeerKey::new(&secret(7)).unwrap();
        let old = Datagram {
            kind: DatagramKind::Pong,
            nonce: 1,
            asker: machine(2),
            asked: machine(3),
            incarnation: Incarnation(3),
        };
        let of_another = Datagram { asker: machine(4), ..old.clone() };
        let (old, of_another) = (old.encode(&key), of_another.encode(&key));
        let with_another_key = move |bytes: &[u8]| {
            let ping = Datagram::decode(bytes, &key).unwrap();
            ping.pong().encode(&PeerKey::new(&secret(8)).unwrap())
        };
        let replies: [(&str, Reply); 5] = [
            ("an old pong", Box::new(move |_| old.clone())),
            ("a pong to another machine", Box::new(move |_| of_another.clone())),
            ("the ping itself", Box::new(<[u8]>::to_vec)),
            ("a pong with another key", Box::new(with_another_key)),
            ("nothing", Box::new(|_| Vec::new())),
        ];
        for (what, reply) in replies {
            let cluster = Cluster::new().await;
            let impostor = impostor(&cluster, reply).await;
            assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["silent"], "{what}");
            impostor.abort();
        }
    }

    #[tokio::test]
    async fn a_new_key_counts_at_once_and_without_one_nobody_listens() {
        let cluster = Cluster::new().await;
        let mut responder = cluster.responder(3, 8).await;
        assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["silent"]);
        responder.apply(Some(cluster.channel(3, 7))).await.unwrap();
        assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["answered"]);
        responder.apply(Some(cluster.channel(3, 7))).await.unwrap();
        assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["answered"]);
        responder.apply(None).await.unwrap();
        assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["refused"]);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_address() {
        let cluster = Cluster::new().await;
        let error = Responder::new(me(1)).apply(Some(cluster.channel(1, 7))).await.unwrap_err();
        let text = keelson_protocol::errors::chain(&error);
        let expected =
            format!("peers cannot be answered at 127.0.0.1:{}: Address already in use", cluster.port);
        assert!(text.starts_with(&expected), "{text}");
    }

    #[tokio::test]
    async fn a_flood_is_dropped_and_a_ping_still_gets_through() {
        let cluster = Cluster::new().await;
        let responder = cluster.responder(3, 7).await;
        let key = PeerKey::new(&secret(7)).unwrap();
        let ping = Datagram {
            kind: DatagramKind::Ping,
            nonce: 1,
            asker: machine(2),
            asked: machine(3),
            incarnation: Incarnation(3),
        };
        let mut forged = ping.encode(&key);
        *forged.last_mut().unwrap() ^= 1;
        let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        flood.connect(("127.0.0.3", cluster.port)).await.unwrap();
        let begin = Instant::now();
        for junk in [&forged[..], &[0; 1400], b"KLPP"] {
            for _ in 0..1_000 {
                flood.send(junk).await.unwrap();
            }
        }
        assert_eq!(words(&cluster.ask(vec![target(3)]).await), ["answered"]);
        let windows = begin.elapsed().as_millis() / WINDOW.as_millis() + 2;
        let looked_at_max = windows * u128::from(WINDOW_DATAGRAMS_MAX);
        let dropped = dropped(&responder);
        assert!(dropped >= 64 && u128::from(dropped) <= looked_at_max, "{dropped} in {windows} windows");
    }

    #[tokio::test]
    async fn no_more_are_asked_than_there_is_room_for() {
        let cluster = Cluster::new().await;
        let _hangs = UdpSocket::bind(("127.0.0.3", cluster.port)).await.unwrap();
        let said = cluster.ask(vec![target(3); ASKED_MAX + 1]).await;
        assert_eq!(said.iter().filter(|said| word(said) == "silent").count(), ASKED_MAX);
        let failed = PeerSaid::Failed { why: "64 peers are being asked already".to_owned() };
        assert_eq!(said.iter().filter(|said| **said == failed).count(), 1);
    }

    #[test]
    fn only_a_ping_to_this_machine_is_answered_and_never_with_more_bytes() {
        let key = PeerKey::new(&secret(7)).unwrap();
        let ping = Datagram {
            kind: DatagramKind::Ping,
            nonce: 9,
            asker: machine(2),
            asked: machine(3),
            incarnation: Incarnation(3),
        };
        let bytes = ping.encode(&key);
        let pong = answer(&bytes, &key, &me(3)).unwrap();
        assert_eq!((pong.len(), Datagram::decode(&pong, &key)), (bytes.len(), Ok(ping.pong())));
        let successor = Me { incarnation: Incarnation(4), ..me(3) };
        let table = [
            (&bytes, me(4), Unanswered::NotMe),
            (&bytes, successor, Unanswered::NotMe),
            (&pong, me(3), Unanswered::Pong),
            (&Vec::new(), me(3), Unanswered::Bad(DatagramError::Foreign { bytes: 0 })),
        ];
        for (bytes, me, expected) in table {
            assert_eq!(answer(bytes, &key, &me), Err(expected));
        }
    }

    #[test]
    fn errors_of_the_socket_are_judged() {
        let table = [
            (ErrorKind::ConnectionRefused, Some("refused")),
            (ErrorKind::HostUnreachable, None),
            (ErrorKind::NetworkUnreachable, None),
            (ErrorKind::NetworkDown, None),
            (ErrorKind::PermissionDenied, Some("failed")),
        ];
        for (kind, expected) in table {
            assert_eq!(judge(&kind.into()).as_ref().map(word), expected, "{kind}");
        }
    }
}
