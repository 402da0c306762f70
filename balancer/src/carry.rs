//! Carries one connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::targets::{Candidate, Targets};

/// A target that does not take a connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Buffer of each direction of a connection, in bytes.
const BUFFER_BYTES: usize = 8 * 1024;
/// A peer that is silent is asked for a sign of life after this time: clients are not checked otherwise, nor targets
/// where there is one only ...
const KEEPALIVE_IDLE_S: u32 = 15;
/// ... again so often ...
const KEEPALIVE_INTERVAL_S: u32 = 5;
/// ... and so many times, until the connection is given up: what lost its power is left after half a minute.
const KEEPALIVE_COUNT: u32 = 3;
/// How long sent bytes may stay unacknowledged before the connection is given up, in milliseconds: as long.
const UNACKNOWLEDGED_MS_MAX: u32 = 30_000;

/// Leads `client` to a target and carries both directions until both sides have ended them, or until the target is
/// found dead while another one works. `dial` connects to a target.
pub async fn carry<D>(mut client: TcpStream, targets: &Targets, dial: impl Fn(SocketAddr) -> D)
where
    D: Future<Output = io::Result<TcpStream>>,
{
    // When no target answers, the client is told at once, by closing.
    let Some((mut server, mut candidate)) = connect(targets, dial).await else { return };
    for stream in [&client, &server] {
        if let Err(error) = watch_over(stream) {
            debug!(%error, "a connection is not watched over");
        }
    }
    // Hands on the end of each direction by itself, as a proxy must (half-close).
    let carried = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES);
    tokio::select! {
        carried = carried => debug!(?carried, "a connection ended"),
        () = candidate.left() => {
            debug!(address = %candidate.address(), "a connection leaves a dead target");
            reset(&client);
            reset(&server);
        }
    }
}

/// Tries each target once. One that is found dead meanwhile is not waited for.
async fn connect<D>(targets: &Targets, dial: impl Fn(SocketAddr) -> D) -> Option<(TcpStream, Candidate)>
where
    D: Future<Output = io::Result<TcpStream>>,
{
    for mut candidate in targets.in_turn(Instant::now()) {
        let address = candidate.address();
        let dialled = tokio::select! {
            dialled = timeout(CONNECT_TIMEOUT, dial(address)) => dialled,
            () = candidate.left() => continue,
        };
        match dialled {
            Ok(Ok(stream)) => {
                targets.accepted(address);
                return Some((stream, candidate));
            }
            Ok(Err(error)) => debug!(%address, %error, "a target refused"),
            Err(_) => debug!(%address, "a target did not answer"),
        }
        targets.refused(address, Instant::now());
    }
    None
}

fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS_MAX)?;
    Ok(())
}

/// Makes dropping the stream a reset: the other side must not take what broke off for a whole answer (RFC 9293, section
/// 3.10.4), and the kernel must not keep bytes for a peer that is dead.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(%error, "a connection ends without a reset");
    }
}
