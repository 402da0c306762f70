//! Every limit of the transport, with its unit and reason, and the QUIC settings of both sides.
//!
//! The coordinator holds 20,000 connections, so each of its windows is small; an agent holds one or two, so that it can
//! afford more. Windows bound what a peer may make us buffer; memory is only used when data really waits.

use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::limits;
use quinn::{IdleTimeout, TransportConfig, VarInt};

/// Application protocol of the link (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"keelson/1";

/// How long a handshake may take. Three retransmissions of a lost packet fit (1 s, 2 s, 4 s apart less the first).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a whole enrolment may take on the coordinator, the core's answer included.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an agent waits for an enrolment, handshake included: a little longer than both of the coordinator's
/// limits, so that the coordinator's reason arrives instead of our own time-out.
pub const ENROL_WAIT: Duration = Duration::from_secs(12);

/// How long a connection with a certificate may wait with its `Hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an agent waits for the answer to its `Hello`. A coordinator that has 20,000 of them to answer needs time.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a session that is closed politely may take to deliver what is queued.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long after a rotation the first connection stays open, so that heartbeats which are on their way arrive.
pub const ROTATION_OVERLAP: Duration = Duration::from_millis(500);

/// A connection on which nothing came for this long is lost: ten heartbeats.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an agent sends a keep-alive when it sends nothing else: three fit into the idle timeout.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Most TLS handshakes that the coordinator works on at a time. More would only make all of them slower, until all of
/// them time out.
pub const HANDSHAKES_MAX: usize = 512;

/// Most connection attempts that wait for their handshake; more are refused at once and come back with backoff. At
/// 3,000 handshakes a second this is less than one second of work, well below [`HANDSHAKE_TIMEOUT`].
pub const HANDSHAKES_WAITING_MAX: usize = 2_048;

/// Most enrolments at a time. Machines without a certificate must not be able to use up what sessions need.
pub const ENROLMENTS_MAX: usize = 128;

/// Most sessions of a coordinator: the 20,000 that we design for, and a quarter more for rotations and reconnects.
pub const SESSIONS_MAX: usize = 25_000;

/// Most messages that wait to be sent in a session. A receiver that is this far behind is better served by a new
/// session and the whole state than by old messages.
pub const QUEUE_MESSAGES_MAX: usize = 64;

/// Most bytes that wait to be sent in a session: two whole configs.
pub const QUEUE_BYTES_MAX: usize = 2 * limits::TO_AGENT_BYTES_MAX;

/// Most events of a [`crate::LinkClient`] that its owner has not taken yet.
pub const CLIENT_EVENTS_MAX: usize = 64;

/// Most bulk streams of a session at a time.
pub const BULK_STREAMS_MAX: u32 = 4;

/// How long opening a bulk stream may take, the agent's reply included.
pub const BULK_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Malformed datagrams that are forgiven in a session; one more closes it. A sane agent sends none, and what a network
/// damages never passes the packet's authentication.
pub const HEARTBEATS_MALFORMED_MAX: u32 = 8;

/// Heartbeats that may come at once, after a pause of the network.
pub const HEARTBEAT_BURST_MAX: u32 = 32;

/// Heartbeats that may come each second on average; more are dropped. Four times what an agent sends.
pub const HEARTBEATS_PER_SECOND_MAX: u32 = 4;

/// Control messages that may come at once: what an agent has to say after a reconnect.
pub const MESSAGE_BURST_MAX: u32 = 256;

/// Control messages that may come each second on average; more have to wait in the agent's send buffer.
pub const MESSAGES_PER_SECOND_MAX: u32 = 32;

/// Largest reason in a close, in bytes.
pub const CLOSE_REASON_BYTES_MAX: usize = 512;

/// Time that one handshake costs a busy coordinator; the pace at which a fleet is asked to come back after a restart.
/// 20,000 agents then need 10 s, far below the 30 s that are our goal.
pub const HANDSHAKE_PACE: Duration = Duration::from_micros(500);

/// Time between two stateless resets, by which a restarted coordinator tells agents that it does not know them any
/// more. Heartbeats come in bursts, and whoever gets no reset tries again a second later, so the pace is that of bursts;
/// the handshakes that follow have limits of their own ([`HANDSHAKES_MAX`], [`HANDSHAKES_WAITING_MAX`]).
pub const RESET_INTERVAL: Duration = Duration::from_micros(100);

/// Sessions that one [`crate::LinkEndpoint`] opens at a time. A machine has one or two. A process that plays a whole
/// fleet would otherwise begin so many handshakes at once that all of them time out, and begin again.
pub const DIALS_MAX: usize = 256;

/// Buffer of a UDP socket, in bytes: half a second of heartbeats of the whole fleet, each with the kernel's own
/// bookkeeping, while the process is held up. The kernel may give less (`net.core.rmem_max`).
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Window of one stream towards the coordinator, in bytes.
const COORDINATOR_STREAM_WINDOW: u32 = 64 * 1024;

/// Window of one stream towards an agent, in bytes: release content at 10 MB/s over a path of 25 ms.
const AGENT_STREAM_WINDOW: u32 = 256 * 1024;

/// Sent and not yet acknowledged bytes of a connection of the coordinator.
const COORDINATOR_SEND_WINDOW: u64 = 256 * 1024;

/// Sent and not yet acknowledged bytes of a connection of an agent.
const AGENT_SEND_WINDOW: u64 = 512 * 1024;

/// Buffers for datagrams, in bytes. Only the newest heartbeats are of interest: when there is no room, quinn drops the
/// oldest.
const DATAGRAM_BUFFER_BYTES: usize = 8 * limits::HEARTBEAT_BYTES_MAX;

/// Settings of the coordinator's connections.
pub(crate) fn coordinator_transport() -> Arc<TransportConfig> {
    let mut config = common_transport();
    // The control stream, or the enrolment, and nothing else.
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.stream_receive_window(VarInt::from_u32(COORDINATOR_STREAM_WINDOW));
    config.receive_window(connection_window(COORDINATOR_STREAM_WINDOW));
    config.send_window(COORDINATOR_SEND_WINDOW);
    Arc::new(config)
}

/// Settings of an agent's connections.
pub(crate) fn agent_transport() -> Arc<TransportConfig> {
    let mut config = common_transport();
    config.max_concurrent_bidi_streams(VarInt::from_u32(BULK_STREAMS_MAX));
    config.stream_receive_window(VarInt::from_u32(AGENT_STREAM_WINDOW));
    config.receive_window(connection_window(AGENT_STREAM_WINDOW));
    config.send_window(AGENT_SEND_WINDOW);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// One window for each stream that can exist, so that bulk streams which nobody reads never block the control stream.
fn connection_window(stream_window: u32) -> VarInt {
    VarInt::from_u32(stream_window * (BULK_STREAMS_MAX + 1))
}

fn common_transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("ten seconds fit a QUIC varint")));
    config.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    config.datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    // Probing for a larger MTU costs several packets in each of 20,000 handshakes of a returning fleet, and heartbeats
    // gain nothing from it.
    config.mtu_discovery_config(None);
    config.allow_spin(false);
    config
}
