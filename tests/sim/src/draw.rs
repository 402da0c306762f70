//! What a seed stands for: a fleet, what its users ask for, and what goes wrong. Swarm style: each seed draws first which
//! kinds of faults exist at all and how often, so that some runs have much of few kinds and others little of many.

use keelson_model::{DrainSpec, DrainThen, Plan, PlanName, PoolName, RepairAction, Role, Taint, TaintEffect};
use keelson_protocol::ClusterName;

use crate::case::{Case, Fault, FaultKind, Side, Target, Timed, Way, Weather, Wish};
use crate::coordinator::settings;
use crate::rng::{Stream, Tree};

/// Most faults of a case: more would leave no time for anything to recover.
const FAULTS_MAX: usize = 2_000;
/// Shortest and longest mean time between two faults of a kind, in milliseconds.
const PAUSE_MS: (u64, u64) = (60_000, 20 * 60_000);
/// Shortest and longest time that a fault lasts, in milliseconds.
const LASTS_MS: (u64, u64) = (1_000, 5 * 60_000);
/// Largest jump of a wall clock, in milliseconds: certificates begin two hours early, and the real link refuses those that have
/// not begun.
const JUMP_MS: u64 = 3_600_000;
/// The same of the coordinator's: what it counts in hours would last longer than a run otherwise.
const COORDINATOR_JUMP_MS: u64 = 4 * 60_000;
/// People who ask for repairs side by side do so within this time, in milliseconds: a fence takes no longer.
const TOGETHER_MS: u64 = 500;
/// Most workers of a drawn cluster.
const WORKERS_MAX: u64 = 8;
/// Shortest and longest mean time between two wishes about a cluster, in milliseconds.
const WISH_PAUSE_MS: (u64, u64) = (5 * 60_000, 30 * 60_000);

/// Shortest and longest time that a drain is given, in seconds.
const DRAIN_S: (u64, u64) = (30, 1_200);

/// What a run is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fleet {
    /// About how many machines there are.
    pub machines: u64,
    /// How long faults and wishes come, in milliseconds.
    pub duration_ms: u64,
    /// Whether anything goes wrong.
    pub faults: bool,
}

/// The case of a seed.
#[must_use]
pub fn draw(seed: u64, fleet: Fleet) -> Case {
    let tree = Tree::root(seed).child("case");
    let (weather, faults) = if fleet.faults {
        (weather(&mut tree.child("weather").stream()), faults(&tree.child("faults"), fleet.duration_ms))
    } else {
        (Weather::default(), Vec::new())
    };
    let wishes = wishes(&tree.child("wishes"), fleet);
    Case { seed, duration_ms: fleet.duration_ms, weather, faults, wishes }
}

/// Messages of a slow network take up to twice as long, in milliseconds.
const SLOW_MS: u64 = 2_000;

/// Shortest time for which short certificates of links are valid, and how much longer it may be, in minutes.
const LINK_MINUTES_MIN: u64 = 15;
const LINK_MINUTES: u64 = 45;

fn weather(random: &mut Stream) -> Weather {
    let mut odds = |most: u64| {
        let exists = random.chance(500);
        let odds = random.between(1, most);
        if exists { odds } else { 0 }
    };
    let mut permille = |most: u64| u32::try_from(odds(most)).unwrap_or(0);
    Weather {
        loss_permille: permille(100),
        duplicate_permille: permille(100),
        drift_ppm: permille(200),
        provider_lost_permille: permille(200),
        provider_broken_permille: permille(200),
        provider_full_permille: permille(400),
        answers_lost_permille: permille(100),
        unit_crash_permille: permille(200),
        step_fails_permille: permille(100),
        // Of the networks that delay, half do so for longer than a heartbeat may stay away.
        jitter_ms: match odds(2 * SLOW_MS) {
            most if most > SLOW_MS => most,
            most => most / 10,
        },
        provider_lag: usize::try_from(odds(3)).unwrap_or(0),
        calls_late_permille: u32::try_from(odds(100)).unwrap_or(0),
        link_life_ms: match odds(LINK_MINUTES) {
            0 => 0,
            minutes => (LINK_MINUTES_MIN + minutes) * 60_000,
        },
    }
}

fn faults(tree: &Tree, duration_ms: u64) -> Vec<Timed<Fault>> {
    let mut kinds = tree.child("kinds").stream();
    let mut faults = Vec::new();
    for kind in FaultKind::DRAWN {
        let mut random = tree.child(&format!("{kind:?}")).stream();
        let pause_ms = random.between(PAUSE_MS.0, PAUSE_MS.1);
        if !kinds.chance(500) {
            continue;
        }
        let mut at_ms = random.below(2 * pause_ms);
        while at_ms < duration_ms {
            let what = fault(kind, &mut random);
            let another = another_person(&what, &mut random);
            faults.push(Timed { at_ms, what });
            faults.extend(another.map(|what| Timed { at_ms: at_ms + random.below(TOGETHER_MS), what }));
            at_ms += 1 + random.below(2 * pause_ms);
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults.truncate(FAULTS_MAX);
    faults
}

/// A second person who asks for the same of the next machine, and knows nothing of the first one.
fn another_person(what: &Fault, random: &mut Stream) -> Option<Fault> {
    let Fault::RepairByHand { target: Target::Drawn(number), action, over } = what else { return None };
    let target = Target::Drawn(number.wrapping_add(1));
    random.chance(500).then_some(Fault::RepairByHand { target, action: *action, over: *over })
}

fn fault(kind: FaultKind, random: &mut Stream) -> Fault {
    let target = Target::Drawn(random.number());
    let for_ms = random.between(LASTS_MS.0, LASTS_MS.1);
    match kind {
        FaultKind::PowerLoss => Fault::PowerLoss { target },
        FaultKind::Reboot => Fault::Reboot { target },
        FaultKind::Freeze => Fault::Freeze { target, for_ms },
        FaultKind::AgentCrash => {
            Fault::AgentCrash { target, actions: u32::try_from(random.below(20)).unwrap_or(0) }
        }
        FaultKind::DiskFull => Fault::DiskFull { target, for_ms },
        FaultKind::DiskLost => Fault::DiskLost { target },
        FaultKind::Vanish => Fault::Vanish { target },
        FaultKind::ComesBack => Fault::ComesBack { target },
        FaultKind::BadBoots => Fault::BadBoots { target, for_ms: 8 * for_ms, hangs: random.chance(500) },
        FaultKind::RepairPaused => Fault::RepairPaused { for_ms: 2 * for_ms },
        FaultKind::AgentOut => Fault::AgentOut { target, for_ms: 3 * for_ms },
        FaultKind::CoordinatorClock => Fault::CoordinatorClock { off_ms: jump(random, COORDINATOR_JUMP_MS) },
        FaultKind::UnitCrash => Fault::UnitCrash { target, unit: random.number() },
        FaultKind::UnitHang => Fault::UnitHang { target, unit: random.number() },
        FaultKind::ClockJump => Fault::ClockJump { target, by_ms: jump(random, JUMP_MS) },
        FaultKind::Partition => {
            let zones = settings().place.zones;
            let zone = random.pick(&zones).cloned().unwrap_or_default();
            let side = match random.below(5) {
                0 => Side::Coordinator,
                1 => Side::Zone(zone),
                2 => Side::Link(target),
                _ => Side::Machine(target),
            };
            let way = *random.pick(&[Way::Both, Way::Out, Way::In]).unwrap_or(&Way::Both);
            Fault::Partition { side, way, for_ms }
        }
        FaultKind::CoordinatorCrash => {
            Fault::CoordinatorCrash { effects: random.below(40), down_ms: random.between(500, 60_000) }
        }
        FaultKind::CoordinatorFreeze => Fault::CoordinatorFreeze { for_ms: random.between(1_000, 60_000) },
        FaultKind::ProviderOut => Fault::ProviderOut { for_ms },
        FaultKind::ProviderListsNothing => Fault::ProviderListsNothing { for_ms },
        FaultKind::BudgetsHold => Fault::BudgetsHold { for_ms },
        FaultKind::ZoneFull => {
            let zone = random.pick(&settings().place.zones).cloned().unwrap_or_default();
            Fault::ZoneFull { zone, for_ms: 4 * for_ms }
        }
        FaultKind::RepairByHand => {
            let action = *random.pick(&RepairAction::ALL).unwrap_or(&RepairAction::PowerCycle);
            Fault::RepairByHand { target, action, over: random.chance(500) }
        }
        FaultKind::HeartbeatsLost => {
            let some = u32::try_from(random.between(100, 999)).unwrap_or(999);
            let permille = if random.chance(500) { 1_000 } else { some };
            Fault::HeartbeatsLost { permille, for_ms }
        }
    }
}

/// How far a clock is set, in milliseconds.
fn jump(random: &mut Stream, most_ms: u64) -> i64 {
    let by_ms = i64::try_from(random.below(2 * most_ms)).unwrap_or(0);
    by_ms - i64::try_from(most_ms).unwrap_or(0)
}

/// Clusters until there are about as many machines as asked for, each with a life of its own.
fn wishes(tree: &Tree, fleet: Fleet) -> Vec<Timed<Wish>> {
    let mut wishes = Vec::new();
    let mut machines = 0;
    for number in 1.. {
        let mut random = tree.child(&number.to_string()).stream();
        let plans = [("tiny", 1, false), ("small", 2, true), ("ha", 6, true), ("ha-stacked", 3, true)];
        let (plan, fixed, grows) = *random.pick(&plans).unwrap_or(&plans[0]);
        let workers = random.between(1, WORKERS_MAX);
        let size = if grows { fixed + workers } else { fixed };
        if machines > 0 && machines + size > fleet.machines {
            break;
        }
        machines += size;
        let cluster: ClusterName = format!("c{number}").parse().expect("that is a name");
        let workers = grows.then(|| u16::try_from(workers).unwrap_or(1));
        let at_ms = random.below(fleet.duration_ms / 10);
        let first = wishes.len();
        let wish = Wish::Create { cluster: cluster.clone(), plan: plan.to_owned(), workers };
        wishes.push(Timed { at_ms, what: wish });
        if grows && fleet.faults {
            changes(&mut random, &cluster, (plan, workers), at_ms, fleet.duration_ms, &mut wishes);
            drains(&mut tree.child(&number.to_string()).child("drains").stream(), &mut wishes[first..]);
            let random = &mut tree.child(&number.to_string()).child("plan").stream();
            if random.chance(500) {
                let own = own_plan(random, plan, &cluster, at_ms, fleet.duration_ms);
                for wish in &mut wishes[first..] {
                    if let Wish::Create { plan, .. } = &mut wish.what {
                        plan.clone_from(&own.0);
                    }
                }
                wishes.splice(first..first, own.1);
            }
        }
    }
    wishes.sort_by_key(|wish| wish.at_ms);
    wishes
}

fn changes(
    random: &mut Stream,
    cluster: &ClusterName,
    (plan, workers): (&str, Option<u16>),
    created_ms: u64,
    duration_ms: u64,
    wishes: &mut Vec<Timed<Wish>>,
) {
    let pause_ms = random.between(WISH_PAUSE_MS.0, WISH_PAUSE_MS.1);
    let mut at_ms = created_ms + random.below(2 * pause_ms);
    while at_ms < duration_ms {
        let odd = *random.pick(&[1, 3, 5]).unwrap_or(&3);
        let size = u16::try_from(random.between(1, WORKERS_MAX)).unwrap_or(1);
        let scale = |pool: &str, count| Wish::Scale {
            cluster: cluster.clone(),
            pool: pool.to_owned(),
            count,
            drain: None,
        };
        let wish = match random.below(10) {
            0 => Wish::Delete { cluster: cluster.clone() },
            1 | 2 if plan != "ha-stacked" => scale("etcd", odd),
            3 | 4 => scale("master", odd),
            _ => scale("worker", size),
        };
        let ends = matches!(wish, Wish::Delete { .. });
        wishes.push(Timed { at_ms, what: wish });
        if ends {
            // Half of them are wanted again, while the old one may still be going.
            if random.chance(500) {
                at_ms += random.below(pause_ms);
                let (cluster, plan) = (cluster.clone(), plan.to_owned());
                wishes.push(Timed { at_ms, what: Wish::Create { cluster, plan, workers } });
            }
            return;
        }
        at_ms += 1 + random.below(2 * pause_ms);
    }
}

/// What users say of drains when they ask for another size, if anything.
fn drains(random: &mut Stream, wishes: &mut [Timed<Wish>]) {
    for wish in wishes {
        let Wish::Scale { drain, .. } = &mut wish.what else { continue };
        let timeout_s = u32::try_from(random.between(DRAIN_S.0, DRAIN_S.1)).unwrap_or(0);
        let then = if random.chance(500) { DrainThen::Wait } else { DrainThen::Force };
        *drain = random.chance(250).then_some(DrainSpec { timeout_s, then });
    }
}

/// A plan of a cluster's own, and how it changes: its name, and what is wished of it.
fn own_plan(
    random: &mut Stream,
    base: &str,
    cluster: &ClusterName,
    created_ms: u64,
    duration_ms: u64,
) -> (String, Vec<Timed<Wish>>) {
    let built_in = Plan::built_in().into_iter().find(|plan| plan.name.0 == base);
    let mut plan = Plan { name: PlanName(cluster.to_string()), ..built_in.expect("that plan is built in") };
    let wish = |at_ms, plan: &Plan| Timed { at_ms, what: Wish::Plan { plan: Box::new(plan.clone()) } };
    let mut wishes = vec![wish(created_ms, &plan)];
    let pause_ms = random.between(WISH_PAUSE_MS.0, WISH_PAUSE_MS.1);
    let mut at_ms = created_ms + random.below(2 * pause_ms);
    while at_ms < duration_ms {
        change_plan(random, &mut plan);
        wishes.push(wish(at_ms, &plan));
        at_ms += 1 + random.below(2 * pause_ms);
    }
    (plan.name.0, wishes)
}

/// One change of a plan, perhaps one that is refused.
fn change_plan(random: &mut Stream, plan: &mut Plan) {
    let extra = PoolName("extra".to_owned());
    let change = random.below(6);
    if change == 0 {
        let worker = plan.worker_pool().cloned();
        match (plan.pools.iter().position(|pool| pool.name == extra), worker) {
            (Some(index), _) => drop(plan.pools.remove(index)),
            (None, Some(mut pool)) => {
                pool.name = extra;
                pool.count = u16::try_from(random.between(1, 3)).unwrap_or(1);
                plan.pools.push(pool);
            }
            (None, None) => {}
        }
        return;
    }
    let index = usize::try_from(random.below(plan.pools.len() as u64)).unwrap_or(0);
    let pool = &mut plan.pools[index];
    match change {
        // With fewer zones a larger etcd would be refused, for good: users do not contradict themselves.
        1 if !pool.roles.contains(&Role::Etcd) => {
            pool.zones = settings().place.zones;
            pool.zones.retain(|_| random.chance(600));
        }
        1 | 2 => pool.size.cpu_millis = Some(1_000 * u32::try_from(random.between(1, 8)).unwrap_or(1)),
        3 => drop(pool.labels.insert("drawn".to_owned(), random.below(100).to_string())),
        4 if pool.taints.is_empty() && pool.has_nodes() => {
            let effect = TaintEffect::NoSchedule;
            pool.taints.push(Taint { key: "drawn".to_owned(), value: String::new(), effect });
        }
        4 => pool.taints.clear(),
        _ if pool.roles.iter().all(|role| *role == Role::Worker) => {
            pool.count = u16::try_from(random.between(1, WORKERS_MAX)).unwrap_or(1);
        }
        _ => pool.count = *random.pick(&[1, 3, 5]).unwrap_or(&3),
    }
}
