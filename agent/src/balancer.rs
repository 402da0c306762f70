//! The TCP balancer in front of the API servers: what runs on this machine speaks to one address, and outlives any one
//! of them.
//!
//! It balances connections, not requests, and looks at no byte. A new list of servers touches no connection that stands.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_protocol::config::BalancerSpec;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Most connections at a time: kubelet, kube-proxy and the pods of the host network need some dozens.
const CONNECTIONS_MAX: usize = 1024;
/// A server that does not take a connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that refused is asked last for this time.
const AVOIDED_FOR: Duration = Duration::from_secs(5);
/// Buffer of each direction of a connection, in bytes.
const BUFFER_BYTES: usize = 8 * 1024;
/// A peer that is silent is asked for a sign of life after this time ...
const KEEPALIVE_IDLE_S: u32 = 15;
/// ... again so often ...
const KEEPALIVE_INTERVAL_S: u32 = 5;
/// ... and so many times, until the connection is given up: a master that lost its power is left after half a minute.
const KEEPALIVE_COUNT: u32 = 3;
/// Wait after `accept` failed, for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the balancer does not run as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BalancerError {
    #[error("the balancer cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The balancer of this machine, running or not.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    listen: SocketAddr,
    backends: Arc<Backends>,
    listener: JoinHandle<()>,
}

impl Balancer {
    /// Runs as `spec` says. Where only the servers change, the listener stays.
    pub(crate) async fn apply(&mut self, spec: Option<BalancerSpec>) -> Result<(), BalancerError> {
        let Some(spec) = spec else {
            self.stop().await;
            return Ok(());
        };
        if let Some(running) = &self.running
            && running.listen == spec.listen
        {
            running.backends.replace(&spec.backends);
            return Ok(());
        }
        self.stop().await;
        let listen = spec.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| BalancerError::Listen { address: listen, source })?;
        info!(%listen, backends = spec.backends.len(), "the balancer listens");
        let backends = Arc::new(Backends::default());
        backends.replace(&spec.backends);
        let listener = tokio::spawn(accept(listener, Arc::clone(&backends)));
        self.running = Some(Running { listen, backends, listener });
        Ok(())
    }

    /// Ends the listener; connections that stand go on. Waits until the port is free.
    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.listener.abort();
            let _ = running.listener.await;
        }
    }
}

async fn accept(listener: TcpListener, backends: Arc<Backends>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                warn!(%error, "the balancer could not take a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            warn!(CONNECTIONS_MAX, "the balancer has no room for another connection");
            continue;
        };
        let backends = Arc::clone(&backends);
        tokio::spawn(async move {
            carry(client, &backends).await;
            drop(permit);
        });
    }
}

async fn carry(mut client: TcpStream, backends: &Backends) {
    let Some(mut server) = connect(backends).await else { return };
    for stream in [&client, &server] {
        if let Err(error) = watch_over(stream) {
            debug!(%error, "a connection is not watched over");
        }
    }
    // Hands on the end of each direction by itself, as a proxy must (half-close).
    let carried =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await;
    debug!(?carried, "a connection ended");
}

/// Tries each server once, beginning where the last connection left off.
async fn connect(backends: &Backends) -> Option<TcpStream> {
    for address in backends.order(Instant::now()) {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                backends.answered(address);
                return Some(stream);
            }
            Ok(Err(error)) => debug!(%address, %error, "a server refused"),
            Err(_) => debug!(%address, "a server did not answer"),
        }
        backends.refused(address, Instant::now());
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
    Ok(())
}

/// The servers, with what is known of them.
#[derive(Debug, Default)]
struct Backends {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<Backend>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct Backend {
    address: SocketAddr,
    avoided_until: Option<Instant>,
}

impl Backends {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }

    fn replace(&self, addresses: &[SocketAddr]) {
        let mut table = self.lock();
        let known = std::mem::take(&mut table.rows);
        let row = |address: &SocketAddr| {
            let before = known.iter().find(|row| row.address == *address).copied();
            before.unwrap_or(Backend { address: *address, avoided_until: None })
        };
        table.rows = addresses.iter().map(row).collect();
    }

    /// All servers, round robin; those that refused a moment ago last.
    fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let mut table = self.lock();
        let count = table.rows.len();
        let first = table.next;
        table.next = (first + 1) % count.max(1);
        let mut rows: Vec<Backend> = (0..count).map(|step| table.rows[(first + step) % count]).collect();
        rows.sort_by_key(|row| row.avoided_until.is_some_and(|until| until > now));
        rows.into_iter().map(|row| row.address).collect()
    }

    fn mark(&self, address: SocketAddr, avoided_until: Option<Instant>) {
        let mut table = self.lock();
        if let Some(row) = table.rows.iter_mut().find(|row| row.address == address) {
            row.avoided_until = avoided_until;
        }
    }

    fn answered(&self, address: SocketAddr) {
        self.mark(address, None);
    }

    fn refused(&self, address: SocketAddr, now: Instant) {
        self.mark(address, Some(now + AVOIDED_FOR));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Says its name at once, and how much it heard once the client has said all it has.
    async fn server(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    let mut asked = Vec::new();
                    stream.read_to_end(&mut asked).await.unwrap();
                    stream.write_all(format!(":{}", asked.len()).as_bytes()).await.unwrap();
                });
            }
        });
        address
    }

    async fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn connections_go_round_past_dead_servers_and_half_close_passes() {
        let (a, dead, b) = (server("a").await, free_address().await, server("b").await);
        let listen = free_address().await;
        let mut balancer = Balancer::default();
        balancer.apply(Some(BalancerSpec { listen, backends: vec![a, dead, b] })).await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(ask(listen).await);
        }
        assert!(answers.iter().all(|answer| answer == "a:5" || answer == "b:5"), "{answers:?}");
        assert!(answers.contains(&"a:5".to_owned()) && answers.contains(&"b:5".to_owned()));
    }

    #[tokio::test]
    async fn a_new_list_of_servers_touches_no_connection_that_stands() {
        let (a, b) = (server("a").await, server("b").await);
        let listen = free_address().await;
        let mut balancer = Balancer::default();
        balancer.apply(Some(BalancerSpec { listen, backends: vec![a] })).await.unwrap();
        let mut standing = TcpStream::connect(listen).await.unwrap();
        let mut name = [0; 1];
        standing.read_exact(&mut name).await.unwrap();
        standing.write_all(b"first").await.unwrap();
        balancer.apply(Some(BalancerSpec { listen, backends: vec![b] })).await.unwrap();
        assert_eq!(ask(listen).await, "b:5");
        balancer.apply(None).await.unwrap();
        assert!(TcpStream::connect(listen).await.is_err());
        standing.write_all(b" and second").await.unwrap();
        standing.shutdown().await.unwrap();
        let mut answer = String::new();
        standing.read_to_string(&mut answer).await.unwrap();
        assert_eq!((name, answer.as_str()), (*b"a", ":16"));
    }

    #[test]
    fn servers_that_refused_are_asked_last() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let backends = Backends::default();
        backends.replace(&[address(1), address(2), address(3)]);
        let now = Instant::now();
        backends.refused(address(1), now);
        assert_eq!(backends.order(now), [2, 3, 1].map(address));
        assert_eq!(backends.order(now), [2, 3, 1].map(address));
        assert_eq!(backends.order(now + AVOIDED_FOR), [3, 1, 2].map(address));
        backends.replace(&[]);
        assert_eq!(backends.order(now), []);
    }
}
