//! The fleet that both sides know: names of machines, the CA, the port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_coordinator_core::{ClusterRow, MachineRow, Saved, Settings};
use keelson_model::material::Authority;
use keelson_model::{ClusterMaterial, ClusterSpec, MachinePhase, Plan, Progress, Release, ReleaseCatalog};
use keelson_planner::{Addresses, Place, PlanInput, Wanted, plan};
use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use keelson_transport::LinkCa;
use serde_json::json;

/// Machines of each cluster.
const MACHINES_PER_CLUSTER: usize = 10;
/// Life of the benchmark's CA.
const CA_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes a CA and chooses a free port.
pub(crate) fn write_ca(folder: &Path) -> Result<()> {
    let (certificate, key) = LinkCa::generate("bench", wall_now(), CA_LIFE)?.to_pem();
    std::fs::write(folder.join("ca.crt"), certificate)?;
    std::fs::write(folder.join("ca.key"), key.expose_secret())?;
    let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    std::fs::write(folder.join("port"), port.to_string())?;
    Ok(())
}

pub(crate) fn read_ca(folder: &Path) -> Result<LinkCa> {
    let key = SecretBytes::new(std::fs::read(folder.join("ca.key"))?);
    Ok(LinkCa::from_pem(&std::fs::read_to_string(folder.join("ca.crt"))?, &key)?)
}

pub(crate) fn address(folder: &Path) -> Result<SocketAddr> {
    let port: u16 = std::fs::read_to_string(folder.join("port"))?.parse()?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

pub(crate) fn wall_now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Microseconds since 1970: both processes read the same clock, so differences are delays.
pub(crate) fn micros_now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// All machines with their incarnations, the same in every process.
pub(crate) fn machines(count: usize) -> Result<Vec<(MachineId, Incarnation)>> {
    let (_, saved) = saved(count)?;
    Ok(saved.machines.into_iter().map(|row| (row.id, row.incarnation)).take(count).collect())
}

/// What a coordinator of this fleet would have on disk: every cluster planned, every machine enrolled.
pub(crate) fn saved(count: usize) -> Result<(Settings, Saved)> {
    let settings = settings()?;
    let mut saved = Saved::default();
    let mut taken = Addresses::new();
    let plan_of = settings.plans.iter().find(|plan| plan.name.0 == "small").context("no plan small")?;
    let release = settings.releases.releases.values().next().context("no release")?;
    while saved.machines.len() < count {
        let number = saved.clusters.len();
        let spec: ClusterSpec = serde_json::from_value(json!({
            "name": format!("c{number}"), "plan": "small", "release": "1.37.2", "workers": MACHINES_PER_CLUSTER - 2,
            "podNetwork": "172.16.0.0/16", "serviceNetwork": "172.31.0.0/16",
        }))?;
        let next_address =
            taken.last_key_value().map_or(settings.place.first_address, |(address, _)| *address);
        let blueprint = plan(&PlanInput {
            spec: &spec,
            wanted: Wanted::Present,
            plan: plan_of,
            release,
            parent: None,
            progress: &Progress::default(),
            place: &settings.place,
            taken: &taken,
            next_address,
            next_incarnation: Incarnation(u32::try_from(number * MACHINES_PER_CLUSTER + 1)?),
        })?
        .blueprint;
        taken.extend(blueprint.machines.values().map(|machine| (machine.address, spec.name.clone())));
        saved.machines.extend(blueprint.machines.values().map(|machine| MachineRow {
            phase: MachinePhase::Enrolled { since: WallTime(0) },
            enrolled_key: Some("bench".to_owned()),
            ..MachineRow::planned(machine, spec.name.clone(), WallTime(0))
        }));
        saved.material.push((spec.name.clone(), material()));
        let (created, first_ready) = (WallTime(0), Some(WallTime(0)));
        saved.clusters.push(ClusterRow {
            spec,
            wanted: true,
            blueprint,
            created,
            first_ready,
            first_answer: first_ready,
            conditions: Vec::new(),
            repair_paused: None,
        });
    }
    Ok((settings, saved))
}

fn settings() -> Result<Settings> {
    let release: Release = serde_json::from_value(json!({
        "name": "1.37.2", "components": {}, "images": {}, "archives": {}, "upgradeFrom": [], "image": "1234",
    }))?;
    Ok(Settings {
        install: "bench".parse()?,
        place: Place {
            network: "10.0.0.0/8".parse()?,
            first_address: [10, 0, 1, 0].into(),
            zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
        },
        plans: Plan::built_in(),
        releases: ReleaseCatalog { releases: BTreeMap::from([(release.name.clone(), release)]) },
        token_key: SecretBytes::new(vec![1; 32]),
    })
}

/// Keys are of no interest here; real ones would take most of the start.
fn material() -> ClusterMaterial {
    let nothing = SecretBytes::new(Vec::new());
    ClusterMaterial {
        authorities: BTreeMap::new(),
        signer: Authority { certificate: String::new(), key: nothing.clone() },
        service_account_key: nothing.clone(),
        service_account_public_key: String::new(),
        encryption_key: nothing,
    }
}
