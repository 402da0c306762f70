//! UDP sockets with room for a burst.

use std::net::UdpSocket;

use tracing::debug;

use crate::settings::SOCKET_BUFFER_BYTES;

/// Asks the kernel for large buffers. It may give less; the link works, and loses more in a burst.
pub(crate) fn enlarge_buffers(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    let set = socket
        .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
    if let Err(error) = set {
        debug!(error = %error, "the link's socket keeps its small buffers");
    }
}
