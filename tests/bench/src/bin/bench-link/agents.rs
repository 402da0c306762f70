//! The fleet's agents: one real link client each, with a heartbeat a second.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use keelson_protocol::health::{CgroupVersion, Facts, Heartbeat, NodeState};
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use keelson_protocol::{BootId, Generation};
use keelson_transport::{
    CaTrust, ClientConfig, ClientEvent, Identity, LEAF_LIFE, LinkClient, LinkEndpoint, make_key_request,
};
use serde_json::json;

use crate::child::{answer, questions};
use crate::fleet;

/// A second is cut into this many slots; each agent sends in one of them.
const SLOTS: usize = 1_000;
/// Agents that begin to dial at once; the next ones follow a slot later.
const START_BATCH: usize = 40;

/// Plays the agents until the input ends.
pub(crate) fn run(folder: &Path, count: usize) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(play(folder, count))
}

async fn play(folder: &Path, count: usize) -> Result<()> {
    let identities = identities(folder, count)?;
    let address = fleet::address(folder)?;
    let endpoint = LinkEndpoint::bind(&[address])?;
    let trust = CaTrust::Certificate(fleet::read_ca(folder)?.certificate_der().to_vec());
    let connected = Arc::new(AtomicUsize::new(0));
    let mut questions = questions();
    let mut clients: Vec<LinkClient> = Vec::with_capacity(count);
    let mut identities = identities.into_iter();
    let mut slot = tokio::time::interval(Duration::from_secs(1) / u32::try_from(SLOTS)?);
    for turn in 0_usize.. {
        tokio::select! {
            biased;
            question = questions.recv() => match question {
                Some(()) => answer(&json!({ "connected": connected.load(Ordering::Relaxed) })),
                None => break,
            },
            _ = slot.tick() => {
                for identity in identities.by_ref().take(START_BATCH) {
                    let number = clients.len();
                    let config = config(number, address, &trust, &endpoint);
                    clients.push(start(config, identity, &connected));
                }
                for (number, client) in clients.iter().enumerate().skip(turn % SLOTS).step_by(SLOTS) {
                    client.heartbeat(heartbeat(number, turn / SLOTS));
                }
            }
        }
    }
    Ok(())
}

fn identities(folder: &Path, count: usize) -> Result<Vec<Identity>> {
    let ca = fleet::read_ca(folder)?;
    let identity = |(machine, incarnation)| -> Result<Identity> {
        let request = make_key_request()?;
        let chain =
            ca.sign_machine(&request.signing_request, &machine, incarnation, fleet::wall_now(), LEAF_LIFE)?;
        Ok(Identity { chain, key: request.key })
    };
    fleet::machines(count)?.into_iter().map(identity).collect()
}

fn config(
    number: usize,
    address: std::net::SocketAddr,
    trust: &CaTrust,
    endpoint: &LinkEndpoint,
) -> ClientConfig {
    let hello = move || ToCoordinator::Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        boot: boot(number),
        generation: Some(Generation(1)),
        facts: Box::new(facts(boot(number))),
    };
    let mut config = ClientConfig::new(vec![address], trust.clone(), Box::new(hello), number as u64);
    config.endpoint = Some(endpoint.clone());
    config
}

fn start(config: ClientConfig, identity: Identity, connected: &Arc<AtomicUsize>) -> LinkClient {
    let (client, mut events) = LinkClient::start(config, identity);
    let connected = Arc::clone(connected);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let ClientEvent::Connected { .. } = event {
                connected.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    client
}

fn boot(number: usize) -> BootId {
    BootId(number as u128 + 1)
}

fn heartbeat(number: usize, round: usize) -> Heartbeat {
    Heartbeat {
        sequence: round as u64 + 1,
        boot: boot(number),
        generation: Generation(1),
        state: NodeState::Ready,
        // The moment of sending, so that the other side can tell the delay.
        report: fleet::micros_now(),
    }
}

fn facts(boot: BootId) -> Facts {
    Facts {
        agent_version: "0.1.0".to_owned(),
        kernel: "6.1.0-40-cloud-amd64".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        cgroup: CgroupVersion::V2,
        may_raise_limits: true,
        cpus: 2,
        memory_bytes: 8 << 30,
        disks: Vec::new(),
        image_digest: None,
        releases: Vec::new(),
        boot,
    }
}
