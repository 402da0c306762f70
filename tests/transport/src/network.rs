//! UDP in memory: sockets with addresses, and paths between them that lose, delay, reorder and double packets.
//!
//! Every random choice comes from one seed. TLS keys stay random, so tests assert behaviour and times, never bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Packets that wait at a socket; more are lost, as with a full socket buffer.
const INBOX_PACKETS_MAX: usize = 4_096;

/// How a path from one host to another treats packets.
#[derive(Debug, Clone, Copy)]
pub struct LinkModel {
    /// Time that every packet takes.
    pub delay: Duration,
    /// Up to this much more, by chance: packets overtake each other.
    pub jitter: Duration,
    /// Packets lost, of a thousand.
    pub loss_permille: u32,
    /// Packets that come twice, of a thousand.
    pub duplicate_permille: u32,
    /// Whether nothing passes.
    pub cut: bool,
    /// Capacity, and the longest time that a packet waits for it; what would wait longer is lost.
    pub bandwidth: Option<Bandwidth>,
}

/// Capacity of a path.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Longest queue, as the time that it takes to empty it.
    pub queue_max: Duration,
}

impl LinkModel {
    /// A good local network: half a millisecond, nothing lost.
    pub const GOOD: Self = Self {
        delay: Duration::from_micros(500),
        jitter: Duration::ZERO,
        loss_permille: 0,
        duplicate_permille: 0,
        cut: false,
        bandwidth: None,
    };

    /// Nothing passes.
    pub const CUT: Self = Self { cut: true, ..Self::GOOD };
}

struct Packet {
    from: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Inbox {
    packets: VecDeque<Packet>,
    waker: Option<Waker>,
}

/// A packet on its way: due time, number (so that order is total), destination.
type Flight = Reverse<(Instant, u64, SocketAddr, usize)>;

struct State {
    random: u64,
    default: LinkModel,
    paths: BTreeMap<(IpAddr, IpAddr), LinkModel>,
    free_at: BTreeMap<(IpAddr, IpAddr), Instant>,
    sockets: BTreeMap<SocketAddr, (u64, Inbox)>,
    next_socket: u64,
    flights: BinaryHeap<Flight>,
    cargo: BTreeMap<usize, Packet>,
    next_packet: usize,
    delivered: u64,
    lost: u64,
}

impl State {
    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.next_random() % 1_000 < u64::from(permille)
    }

    fn next_random(&mut self) -> u64 {
        // xorshift64* (Vigna, 2016); good enough for dice.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// When a packet of that size leaves the path's queue; `None` when the queue is full.
    fn departure(&mut self, path: (IpAddr, IpAddr), model: &LinkModel, bytes: usize) -> Option<Instant> {
        let now = Instant::now();
        let Some(bandwidth) = model.bandwidth else { return Some(now) };
        let start = self.free_at.get(&path).copied().unwrap_or(now).max(now);
        if start - now > bandwidth.queue_max {
            return None;
        }
        let nanos = bytes as u64 * 1_000_000_000 / bandwidth.bytes_per_second;
        let end = start + Duration::from_nanos(nanos);
        self.free_at.insert(path, end);
        Some(end)
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let path = (from.ip(), to.ip());
        let model = self.paths.get(&path).copied().unwrap_or(self.default);
        if model.cut || self.chance(model.loss_permille) {
            self.lost += 1;
            return;
        }
        let copies = if self.chance(model.duplicate_permille) { 2 } else { 1 };
        for _ in 0..copies {
            let Some(departure) = self.departure(path, &model, bytes.len()) else {
                self.lost += 1;
                continue;
            };
            let jitter_us = u64::try_from(model.jitter.as_micros()).unwrap_or(u64::MAX);
            let extra = if jitter_us == 0 { 0 } else { self.next_random() % jitter_us };
            let number = self.next_packet;
            self.next_packet += 1;
            self.cargo.insert(number, Packet { from, bytes: bytes.to_vec() });
            let due = departure + model.delay + Duration::from_micros(extra);
            self.flights.push(Reverse((due, number as u64, to, number)));
        }
    }

    /// Delivers what is due, and says when the next packet is.
    fn deliver(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(Reverse((due, _, to, number))) = self.flights.peek().copied() {
            if due > now {
                return Some(due);
            }
            self.flights.pop();
            let packet = self.cargo.remove(&number).expect("every flight has its packet");
            match self.sockets.get_mut(&to) {
                Some((_, inbox)) if inbox.packets.len() < INBOX_PACKETS_MAX => {
                    inbox.packets.push_back(packet);
                    self.delivered += 1;
                    if let Some(waker) = inbox.waker.take() {
                        waker.wake();
                    }
                }
                _ => self.lost += 1,
            }
        }
        None
    }
}

struct Inner {
    state: Mutex<State>,
    sent: Notify,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A network in memory. Clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// A good network, with a task that delivers. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                random: seed | 1,
                default: LinkModel::GOOD,
                paths: BTreeMap::new(),
                free_at: BTreeMap::new(),
                sockets: BTreeMap::new(),
                next_socket: 0,
                flights: BinaryHeap::new(),
                cargo: BTreeMap::new(),
                next_packet: 0,
                delivered: 0,
                lost: 0,
            }),
            sent: Notify::new(),
        });
        tokio::spawn(deliver(Arc::clone(&inner)));
        Self(inner)
    }

    /// How every path without a model of its own treats packets from now on.
    pub fn set_default(&self, model: LinkModel) {
        self.0.lock().default = model;
    }

    /// How packets from `from` to `to` are treated from now on; the other direction is a path of its own.
    pub fn set_path(&self, from: IpAddr, to: IpAddr, model: LinkModel) {
        self.0.lock().paths.insert((from, to), model);
    }

    /// A socket at `address`. One that was there before is cut off without a word, as by `kill -9`.
    #[must_use]
    pub fn socket(&self, address: SocketAddr) -> Arc<SimSocket> {
        let mut state = self.0.lock();
        state.next_socket += 1;
        let id = state.next_socket;
        state.sockets.insert(address, (id, Inbox::default()));
        drop(state);
        Arc::new(SimSocket { network: self.clone(), address, id })
    }

    /// Cuts off the socket at `address`: what it sends is lost, what is sent to it as well.
    pub fn unplug(&self, address: SocketAddr) {
        self.0.lock().sockets.remove(&address);
    }

    /// Packets delivered and lost so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.delivered, state.lost)
    }
}

async fn deliver(inner: Arc<Inner>) {
    loop {
        let next = inner.lock().deliver();
        match next {
            None => inner.sent.notified().await,
            // biased: a packet that was sent in between may be due earlier; look again. Both are cancel-safe.
            Some(due) => tokio::select! {
                biased;
                () = inner.sent.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            },
        }
    }
}

/// A UDP socket of the network.
pub struct SimSocket {
    network: Network,
    address: SocketAddr,
    id: u64,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", self.address)
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let mut state = self.network.0.lock();
        if state.sockets.get(&self.address).is_some_and(|(id, _)| *id == self.id) {
            let step = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            for packet in transmit.contents.chunks(step) {
                state.send(self.address, transmit.destination, packet);
            }
        }
        drop(state);
        self.network.0.sent.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.0.lock();
        let Some((_, inbox)) = state.sockets.get_mut(&self.address).filter(|(id, _)| *id == self.id) else {
            return Poll::Pending;
        };
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()) {
            let Some(packet) = inbox.packets.pop_front() else { break };
            let length = packet.bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&packet.bytes[..length]);
            *meta = RecvMeta::default();
            meta.addr = packet.from;
            meta.len = length;
            meta.stride = length;
            count += 1;
        }
        if count == 0 {
            inbox.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
