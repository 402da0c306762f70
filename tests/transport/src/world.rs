//! What all tests share: a network, a CA, a wall clock that follows paused time, and addresses.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::health::{CgroupVersion, Facts, Heartbeat, NodeState};
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use keelson_protocol::{BootId, Generation, Incarnation, MachineId, WallTime};
use keelson_transport::{
    CaTrust, ClientConfig, Identity, LEAF_LIFE, LinkCa, LinkEndpoint, ServerConfig, WallClock,
    make_key_request,
};
use quinn::TokioRuntime;
use tokio::time::Instant;

use crate::network::Network;

/// Begin of every test, in wall-clock time: 2026-01-01.
const BEGIN: WallTime = WallTime(1_767_225_600_000);

/// Life of the tests' CA.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Longest that any test waits for one thing, in virtual time.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Everything that a test needs.
#[derive(Debug)]
pub struct World {
    /// The network.
    pub network: Network,
    /// The link CA of the coordinators.
    pub ca: LinkCa,
    begin: Instant,
}

impl World {
    /// A world with a good network. Must be called within a tokio runtime with paused time.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let ca = LinkCa::generate("test link CA", BEGIN, CA_LIFE).expect("a CA can be made");
        Self { network: Network::new(seed), ca, begin: Instant::now() }
    }

    /// The wall clock of this world.
    #[must_use]
    pub fn clock(&self) -> WallClock {
        let begin = self.begin;
        Arc::new(move || BEGIN.plus(begin.elapsed()))
    }

    /// The wall-clock time.
    #[must_use]
    pub fn now(&self) -> WallTime {
        BEGIN.plus(self.begin.elapsed())
    }

    /// Address of coordinator `number`.
    #[must_use]
    pub fn coordinator_address(number: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 0, 0, number), 7_443).into()
    }

    /// Address of machine `number`.
    #[must_use]
    pub fn machine_ip(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, 1, high, low).into()
    }

    /// Name of machine `number`.
    #[must_use]
    pub fn machine_id(number: u16) -> MachineId {
        MachineId::new(format!("demo-worker-{number}")).expect("the name is valid")
    }

    /// A certificate for machine `number`, incarnation 1, with the usual life.
    #[must_use]
    pub fn identity(&self, number: u16) -> Identity {
        self.identity_with(&self.ca, number, 1, LEAF_LIFE)
    }

    /// A certificate of any CA, for any incarnation and life.
    #[must_use]
    pub fn identity_with(&self, ca: &LinkCa, number: u16, incarnation: u32, life: Duration) -> Identity {
        let request = make_key_request().expect("a key can be made");
        let chain = ca
            .sign_machine(
                &request.signing_request,
                &Self::machine_id(number),
                Incarnation(incarnation),
                self.now(),
                life,
            )
            .expect("the request is signed");
        Identity { chain, key: request.key }
    }

    /// Settings of a coordinator with a fresh certificate.
    #[must_use]
    pub fn server_config(&self) -> ServerConfig {
        let identity = self.ca.issue_server(self.now(), LEAF_LIFE).expect("a certificate can be made");
        let mut config = ServerConfig::new(identity, self.ca.certificate_der().to_vec());
        config.clock = self.clock();
        config.reset_key = Some(self.ca.reset_key());
        config
    }

    /// A socket for machine `number`.
    #[must_use]
    pub fn endpoint(&self, number: u16) -> LinkEndpoint {
        let socket = self.network.socket((Self::machine_ip(number), 40_000).into());
        LinkEndpoint::on_socket(socket, Arc::new(TokioRuntime)).expect("a simulated socket works")
    }

    /// Settings of machine `number`'s agent.
    #[must_use]
    pub fn client_config(&self, number: u16, coordinators: &[SocketAddr]) -> ClientConfig {
        let trust = CaTrust::Certificate(self.ca.certificate_der().to_vec());
        let mut config = ClientConfig::new(
            coordinators.to_vec(),
            trust,
            Box::new(move || hello(number)),
            u64::from(number),
        );
        config.endpoint = Some(self.endpoint(number));
        config.clock = self.clock();
        config
    }
}

/// The `Hello` of machine `number`.
#[must_use]
pub fn hello(number: u16) -> ToCoordinator {
    ToCoordinator::Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        boot: boot(number),
        generation: None,
        facts: Box::new(Facts {
            agent_version: "0.1.0".into(),
            kernel: "6.18.0".into(),
            os: "Debian GNU/Linux 12".into(),
            cgroup: CgroupVersion::V2,
            may_raise_limits: true,
            cpus: 2,
            memory_bytes: 4 << 30,
            disks: Vec::new(),
            image_digest: None,
            releases: Vec::new(),
            boot: boot(number),
        }),
    }
}

fn boot(number: u16) -> BootId {
    BootId(u128::from(number))
}

/// Heartbeat `sequence` of machine `number`.
#[must_use]
pub fn heartbeat(number: u16, sequence: u64) -> Heartbeat {
    Heartbeat { sequence, boot: boot(number), generation: Generation(7), state: NodeState::Ready, report: 3 }
}

/// Waits for `future`, but not for ever.
///
/// # Panics
/// When it takes longer than [`PATIENCE`]: then what the test waits for will not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}
