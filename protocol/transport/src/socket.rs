//! UDP sockets with room for a burst.

use std::net::UdpSocket;

use nix::sys::socket::{setsockopt, sockopt};
use tracing::debug;

use crate::settings::SOCKET_BUFFER_BYTES;

/// Asks the kernel for large buffers: beyond the system's limit where this process may (CAP_NET_ADMIN), else up to it.
/// With less the link works, and loses more in a burst.
pub(crate) fn enlarge_buffers(socket: &UdpSocket) {
    let receive = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES));
    let send = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES));
    if let Err(error) = receive.and(send) {
        debug!(%error, "the link's socket keeps its small buffers");
    }
}
