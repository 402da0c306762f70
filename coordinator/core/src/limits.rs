//! Limits of the coordinator's decisions, with their reasons.

use std::time::Duration;

/// Life of an enrolment token: a machine that has not asked for its certificate an hour after it was made never booted
/// well, and its token should not lie around.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// First delay before the provider is asked again.
pub const PROVIDER_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest delay before the provider is asked again: an operator who freed a quota should not wait longer.
pub const PROVIDER_RETRY_MAX: Duration = Duration::from_secs(30);
/// Most plans that users make: some for each team; all are read with every list.
pub const PLANS_MAX: usize = 256;
/// How often the provider's list is compared with the blueprints: finds machines that nobody names, and machines that
/// lost their power.
pub const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// The same while some machine is silent: its power is evidence that is needed soon.
pub const LIST_INTERVAL_SILENT: Duration = Duration::from_secs(3);
/// How long after its start the coordinator calls no machine silent that it has not heard yet: 20,000 agents need half
/// a minute to come back.
pub const WARM_UP: Duration = Duration::from_secs(30);
/// As long as machines come back, one at least in this time, the others may still be on their way.
pub const RETURN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// But no longer than this after the start: a fleet in which machines come and go all the time has warmed up too.
pub const WARM_UP_MAX: Duration = Duration::from_secs(120);
/// How long an agent may take from its hello to its first heartbeat: it has to get the welcome first, and a coordinator
/// that welcomes 20,000 of them must not hold its own haste against them. As long as an agent waits for a welcome.
pub const FIRST_HEARTBEAT_MAX: Duration = Duration::from_secs(10);
/// A pause between two ticks that is longer than this means that the coordinator was held up and may have missed
/// heartbeats: four ticks, and less than the limit of silence.
pub const TICK_GAP_MAX: Duration = Duration::from_secs(2);
/// A session whose heartbeats stopped for this long may be replaced by one of another boot of the same machine.
pub const SECOND_HOLDER_AFTER: Duration = Duration::from_secs(3);
/// Provider calls under way at once: enough to make machines in parallel, few enough not to be throttled.
pub const PROVIDER_CALLS_MAX: usize = 16;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long an ended operation is kept.
pub const OPERATION_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often a cluster's etcd is asked for its members while one joins or leaves: as often as a learner may have caught
/// up meanwhile.
pub const ETCD_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Calls to clusters' etcd under way at once, over the fleet.
pub const ETCD_CALLS_MAX: usize = 64;
