//! The TCP balancer in front of the API servers: what runs on this machine speaks to one address, and outlives any one
//! of them.
//!
//! Which server a connection goes to, and when it leaves one, is for `keelson-balancer`; here is who listens, and how a
//! server is asked. A new list of servers touches no connection that stands.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_balancer::{Ask, CHECK_TIMEOUT, Checks, Targets, carry};
use keelson_host::Host;
use keelson_protocol::config::{BalancerCheck, BalancerSpec, Expect, ProbeSpec, ProbeTarget};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Most connections at a time: kubelet, kube-proxy and the pods of the host network need some dozens.
const CONNECTIONS_MAX: usize = 1024;
/// Wait after `accept` failed, for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Connections that are not taken are told this often.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Limit of a probe itself, in milliseconds. The checks end it earlier, and so know silence from a bad answer.
const PROBE_TIMEOUT_MS: u32 = 2 * CHECK_TIMEOUT.as_millis() as u32;

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
#[derive(Debug)]
pub(crate) struct Balancer {
    host: Arc<Host>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    listen: SocketAddr,
    servers: Arc<Targets>,
    listener: JoinHandle<()>,
    /// They end with the balancer: connections that stand are then watched over by the kernel alone.
    checks: Checks,
}

impl Balancer {
    /// One that does not run. `host` asks the servers.
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self { host, running: None }
    }

    /// Runs as `spec` says. Where only the servers or their check change, the listener stays.
    pub(crate) async fn apply(&mut self, spec: Option<BalancerSpec>) -> Result<(), BalancerError> {
        let Some(spec) = spec else {
            self.stop().await;
            return Ok(());
        };
        if let Some(running) = &mut self.running
            && running.listen == spec.listen
        {
            running.servers.replace(&spec.backends);
            running.checks = checks(&self.host, &running.servers, spec.check.as_ref());
            return Ok(());
        }
        self.stop().await;
        let listen = spec.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| BalancerError::Listen { address: listen, source })?;
        info!(%listen, backends = spec.backends.len(), "the balancer listens");
        let servers = Arc::new(Targets::default());
        servers.replace(&spec.backends);
        let checks = checks(&self.host, &servers, spec.check.as_ref());
        let listener = tokio::spawn(accept(listener, Arc::clone(&servers)));
        self.running = Some(Running { listen, servers, listener, checks });
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

fn checks(host: &Arc<Host>, servers: &Arc<Targets>, check: Option<&BalancerCheck>) -> Checks {
    let Some(check) = check else { return Checks::default() };
    Checks::start(servers, |address| Server { host: Arc::clone(host), probe: probe(check, address) })
}

/// A server that is asked.
struct Server {
    host: Arc<Host>,
    probe: ProbeSpec,
}

impl Ask for Server {
    async fn ask(&mut self) -> Result<(), String> {
        self.host.probe(&self.probe).await
    }
}

fn probe(check: &BalancerCheck, address: SocketAddr) -> ProbeSpec {
    ProbeSpec {
        name: format!("the server at {address}"),
        target: ProbeTarget::Https {
            address,
            path: check.path.clone(),
            server_name: check.server_name.clone(),
            ca_path: check.ca_path.clone(),
            client: None,
        },
        expect: Expect::Answer,
        timeout_ms: PROBE_TIMEOUT_MS,
    }
}

async fn accept(listener: TcpListener, servers: Arc<Targets>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut refused = Refused::default();
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                refused.note(&error);
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            refused.note(&format_args!("there are {CONNECTIONS_MAX} already"));
            continue;
        };
        let servers = Arc::clone(&servers);
        tokio::spawn(async move {
            carry(client, &servers, TcpStream::connect).await;
            drop(permit);
        });
    }
}

/// Connections that were not taken. A client that tries again and again must not fill the log.
#[derive(Default)]
struct Refused {
    since_told: u64,
    told: Option<Instant>,
}

impl Refused {
    fn note(&mut self, why: &dyn fmt::Display) {
        self.since_told += 1;
        if self.told.is_none_or(|told| told.elapsed() >= REFUSED_TOLD_EVERY) {
            warn!(count = self.since_told, %why, "the balancer took no more connections");
            *self = Self { since_told: 0, told: Some(Instant::now()) };
        }
    }
}

#[cfg(test)]
mod tests;
