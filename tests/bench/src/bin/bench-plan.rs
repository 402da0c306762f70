//! How long it takes to plan a whole fleet, and how that grows: `cargo xtask bench plan`.
//!
//! Plans clusters of ten machines one after the other, each with its lint, as the coordinator does when it starts.

use std::process::ExitCode;
use std::time::Instant;

use keelson_model::{ClusterSpec, Plan, Progress, Release};
use keelson_planner::{Addresses, Place, PlanError, PlanInput, Wanted, lint, plan};
use keelson_protocol::Incarnation;
use serde_json::{Value, json};

/// Machines of each cluster: one etcd, one master, eight workers.
const MACHINES_PER_CLUSTER: usize = 10;
/// Sizes of fleets, in clusters. The last one is the figure; the others show the growth.
const FLEETS: [usize; 4] = [125, 250, 500, 1_000];

#[expect(clippy::print_stdout, reason = "the result of a benchmark goes to standard output")]
fn main() -> ExitCode {
    let mut growth: Vec<Value> = Vec::new();
    for clusters in FLEETS {
        match measure(clusters) {
            Ok(seconds) => growth.push(json!({
                "clusters": clusters,
                "machines": clusters * MACHINES_PER_CLUSTER,
                "plan_seconds": seconds,
            })),
            Err(error) => {
                println!("{}", json!({ "error": error.to_string() }));
                return ExitCode::FAILURE;
            }
        }
    }
    let last = growth.last().cloned().unwrap_or_default();
    println!(
        "{}",
        json!({ "machines": last["machines"], "plan_seconds": last["plan_seconds"], "growth": growth })
    );
    ExitCode::SUCCESS
}

/// Plans `clusters` clusters; seconds.
fn measure(clusters: usize) -> Result<f64, PlanError> {
    let place = Place {
        network: "10.0.0.0/8".parse().expect("that is a network"),
        first_address: [10, 0, 1, 0].into(),
        zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
    };
    let plans = Plan::built_in();
    let small = plans.iter().find(|plan| plan.name.0 == "small").expect("plan small is built in");
    let release: Release = serde_json::from_value(json!({
        "name": "1.37.2", "components": {}, "images": {}, "archives": {}, "upgradeFrom": [], "image": "1234",
    }))
    .expect("that is a release");
    let specs: Vec<ClusterSpec> = (0..clusters).map(spec).collect();

    let began = Instant::now();
    let mut taken = Addresses::new();
    let mut next_incarnation = 1;
    for spec in &specs {
        let highest = taken.last_key_value().map_or(place.first_address, |(address, _)| *address);
        let blueprint = plan(&PlanInput {
            spec,
            wanted: Wanted::Present,
            plan: small,
            release: &release,
            parent: None,
            progress: &Progress::default(),
            place: &place,
            taken: &taken,
            next_address: highest,
            next_incarnation: Incarnation(next_incarnation),
        })?
        .blueprint;
        assert!(lint(&blueprint, None, &place, &taken).is_empty(), "a plan breaks a rule of its own");
        assert_eq!(blueprint.machines.len(), MACHINES_PER_CLUSTER);
        next_incarnation += u32::try_from(MACHINES_PER_CLUSTER).expect("ten fits");
        taken.extend(blueprint.machines.values().map(|machine| (machine.address, spec.name.clone())));
    }
    Ok(began.elapsed().as_secs_f64())
}

fn spec(number: usize) -> ClusterSpec {
    serde_json::from_value(json!({
        "name": format!("cluster-{number}"),
        "plan": "small",
        "release": "1.37.2",
        "workers": MACHINES_PER_CLUSTER - 2,
        "podNetwork": "172.16.0.0/16",
        "serviceNetwork": "172.31.0.0/16",
    }))
    .expect("that is a spec")
}
