//! Limits of the coordinator's decisions, with their reasons.

use std::time::Duration;

/// Life of an enrolment token: a machine that has not asked for its certificate an hour after it was switched on never
/// booted well, and its token should not lie around.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// First delay before the provider is asked again.
pub const PROVIDER_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest delay before the provider is asked again: an operator who freed a quota should not wait longer.
pub const PROVIDER_RETRY_MAX: Duration = Duration::from_secs(30);
/// How long after the provider has refused for good it is asked again: a quota is raised, a disk made free, and nobody
/// tells us.
pub const REFUSED_RETRY: Duration = Duration::from_secs(120);
/// Most plans that users make: some for each team; all are read with every list.
pub const PLANS_MAX: usize = 256;
/// How often the provider's list is compared with the blueprints: finds machines that nobody names, and machines that
/// lost their power.
pub const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// The same while some machine is silent: its power is evidence that is needed soon.
pub const LIST_INTERVAL_SILENT: Duration = Duration::from_secs(1);
/// After this time in a session a report says what the agent has seen: it has looked at its units, and asked them.
pub const SESSION_SETTLES: Duration = Duration::from_secs(15);
/// How long a member of etcd that leaves stays for masters that may know no other one. They are held back by a machine that is
/// broken for longer than that; without the member they serve nobody, and then they wait for nobody.
pub const MEMBER_IN_USE_MAX: Duration = Duration::from_secs(30 * 60);
/// A list that could not be had for so long is told: without it nobody knows which machines have power.
pub const LIST_FAILED_TOLD_AFTER: Duration = Duration::from_secs(60);
/// A list may show what was so long before it was asked for: what it says of a machine that was switched on since then is
/// not believed, because it would lose its power once more while it boots.
pub const LIST_LAG_MAX: Duration = Duration::from_secs(5);
/// A machine that is refused again and again for the same reason is told of so often.
pub const REFUSAL_TOLD_EVERY: Duration = Duration::from_secs(300);
/// How long a machine of which nothing is known may stay at the provider: long enough for people to notice that an old copy of
/// the database was restored. As long as such a machine itself waits before it switches itself off.
pub const UNKNOWN_MAX: Duration = Duration::from_secs(600);
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
/// heartbeats: eight ticks, and less than the limit of silence.
pub const TICK_GAP_MAX: Duration = Duration::from_secs(2);
/// How long a coordinator that was held up takes to read what came meanwhile. Afterwards one heartbeat of each machine, which
/// takes a second more, tells that it is still there.
pub const BACKLOG_MAX: Duration = Duration::from_secs(1);
/// A session whose heartbeats stopped for this long may be replaced by one of another boot of the same machine.
pub const SECOND_HOLDER_AFTER: Duration = Duration::from_secs(3);
/// Peers that are asked about one machine at a time: two of its zone and one of another, so that one that fails itself, or
/// a zone that is cut off, does not decide alone.
pub const PEERS_ASKED_MAX: usize = 3;
/// Answers of peers that come later are not taken: they take less than half a second on the machine, so that one which was
/// held up for longer tells of a time that is over.
pub const PEER_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Peers whose last word about a machine is kept: those of two questions, and some whose sessions came and went between.
pub const PEER_ANSWERS_MAX: usize = 8;
/// Provider calls under way at once: enough to make machines in parallel, few enough not to be throttled.
pub const PROVIDER_CALLS_MAX: usize = 16;
/// Of these, so many are kept for lists, fences, power and addresses, however many machines come and go.
pub const PROVIDER_CALLS_KEPT: usize = 4;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long an ended operation is kept.
pub const OPERATION_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often a cluster's etcd is asked for its members while one joins or leaves: as often as a learner may have caught
/// up meanwhile.
pub const ETCD_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Calls to clusters' etcd under way at once, over the fleet.
pub const ETCD_CALLS_MAX: usize = 64;
/// How often a cluster's nodes are looked at when nothing happens: to find labels and nodes that somebody has changed.
pub const KUBE_LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The same while a node comes, goes or is silent: its lease is evidence that is needed soon.
pub const KUBE_LOOK_INTERVAL_BUSY: Duration = Duration::from_secs(2);
/// How long all looks through a cluster's endpoint may fail before that is a fault of it: one that is asked for anew, or
/// leads to a master that has just died, is back by then.
pub const ENDPOINT_SILENT_AFTER: Duration = Duration::from_secs(15);
/// How long after a call about a node the next one may be made: pods need seconds to end.
pub const KUBE_RETRY: Duration = Duration::from_secs(1);
/// Calls to API servers under way at once, over the fleet.
pub const KUBE_CALLS_MAX: usize = 128;
/// Part of a cluster's nodes that are drained at the same time, in percent; at least one.
pub const DRAINS_AT_ONCE_PERCENT: usize = 25;
/// How long pods that were forced to go at the end of a drain's time may still take, before the power of their machine
/// goes as well: longer than any sensible grace period.
pub const FORCED_MAX: Duration = Duration::from_secs(600);
/// How long what is left on a machine without power is asked to go, before its node is removed all the same.
pub const EVACUATE_LEFT_MAX: Duration = Duration::from_secs(60);
/// Heartbeats that are this late make a machine suspect: one was lost, and the next one is late. Costs a question to the
/// infrastructure and to three peers, and nothing else.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1_900);
/// A machine with power that is silent on all channels for this long is hung. Long enough for a machine that is moved to
/// another host or swaps, and a tenth of what Kubernetes itself waits.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The same where nothing tells a broken zone from a broken machine.
pub const HUNG_ALONE_AFTER: Duration = Duration::from_secs(40);
/// How long a machine that fell silent with its zone or with the fleet may still be on its way once the first of those are
/// heard again: an agent waits up to 15 seconds before its next try, a try takes 5, and what peers said while the zone was
/// cut off counts for 20.
pub const RETURN_MAX: Duration = Duration::from_secs(30);
/// How often peers are asked about a silent machine.
pub const PEERS_ASK_INTERVAL: Duration = Duration::from_secs(2);
/// The same when it has been silent for long.
pub const PEERS_ASK_INTERVAL_LONG: Duration = Duration::from_secs(15);
/// How long what a peer said counts.
pub const PEER_ANSWER_LIFE: Duration = Duration::from_secs(20);
/// A kubelet that has not renewed its lease for this long does not live: it does so every ten seconds.
pub const LEASE_STALE_AFTER: Duration = Duration::from_secs(15);
/// How long a machine must have been asking to enrol with another key before it is believed where no peer says anything:
/// those that there are have answered several times by then.
pub const OTHER_KEY_ALONE_AFTER: Duration = Duration::from_secs(15);
/// Keys that a machine asked to be certified last, of which it may hold any: answers get lost, and disks take nothing. An
/// agent has one at a time, and another one after each start.
pub const RENEWED_KEYS_MAX: usize = 16;
/// How long a machine whose power was taken away may wait to be made anew while its plan cannot stand that.
pub const RENEW_REFUSED_MAX: Duration = Duration::from_secs(60);
/// The same where its etcd cluster does not say who its members are: it may be what the quorum lacks.
pub const RENEW_UNKNOWN_MAX: Duration = Duration::from_secs(180);
/// How long etcd may fail to answer before that is told.
pub const ETCD_FAILING_TOLD_AFTER: Duration = Duration::from_secs(60);
/// Refusals that are told within [`REFUSAL_TOLD_EVERY`]: whoever reaches the link may ask in any name.
pub const REFUSALS_TOLD_MAX: usize = 1_024;
/// A wall clock that runs ahead of the monotonic one by so much between two looks was set: no clock drifts like that.
pub const CLOCK_STEP_MIN: Duration = Duration::from_secs(2);
/// A member of etcd that ended is started again by its agent, and serves again with what others are left, within this time. Until
/// then those that are taken for dead may be the ones that it needs.
pub const MEMBER_BACK_MAX: Duration = Duration::from_secs(30);
/// How long after the last repair a machine that does not work yet counts as disrupted by us: longer than one needs to
/// boot, and no longer, so that one that is not mended does not hold up the others for ever.
pub const DISRUPTED_MAX: Duration = Duration::from_secs(120);
/// A machine that is being removed tells for so long whether others are silent with it.
pub const WITNESS_MAX: Duration = Duration::from_secs(600);
/// Below so many machines a majority of silent ones says nothing about the coordinator.
pub const FLEET_JUDGED_MIN: u32 = 5;
/// How long the infrastructure must say that a machine is gone before it is made anew: lists lag behind.
pub const MISSING_AFTER: Duration = Duration::from_secs(6);
/// How long an agent that has given up is left to itself: its own budgets return, and what it needs may come back.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// How long an agent may be down on a machine that otherwise lives, before its power is taken.
pub const AGENT_DOWN_AFTER: Duration = Duration::from_secs(300);
/// The same of a machine that does nothing but run pods, when Kubernetes has lost its node with its agent: the kubelet's way
/// to the API server leads through the agent. Kubernetes calls such a node not ready after 50 s, and its pods are no
/// longer served from then on.
pub const NODE_LOST_AFTER: Duration = Duration::from_secs(60);
/// How long the infrastructure may fail to give a machine its power before it is made anew around its disk: what it was
/// built on may be broken, and its disk is whole.
pub const POWERLESS_AFTER: Duration = Duration::from_secs(180);
/// A machine that was switched on, or off and on, so often within an hour needs more than power.
pub const IN_VAIN: usize = 3;
/// How long the infrastructure may fail to take a machine's power for a repair, before the evidence is looked at anew: the
/// machine may be another case by then, and who asked for it may have forgotten it.
pub const BEGIN_MAX: Duration = Duration::from_secs(600);
/// How often it is told at most that the same guard holds a repair.
pub const HOLD_TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long after a fence a session may still open that the machine began before it: as long as a link without life lasts.
pub const FENCE_SETTLES: Duration = Duration::from_secs(10);
/// How often a machine is tried to be made anew around its disk before it is switched on as it is.
pub const REBUILD_TRIES_MAX: u32 = 3;
/// How long a machine may boot before it has asked for its certificate.
pub const UNBORN_AFTER: Duration = Duration::from_secs(180);
/// How long a machine must work before its incident is closed.
pub const MENDED_AFTER: Duration = Duration::from_secs(5);
/// Repairs of one machine in an hour; more means that repair is no remedy.
pub const ACTS_PER_HOUR_MAX: usize = 6;
/// Of these so many that make it anew.
pub const RECREATES_PER_HOUR_MAX: usize = 2;
/// Repairs that a machine's row remembers.
pub const ACTS_KEPT_MAX: usize = 16;
/// Shortest time between two repairs of one machine: long enough for it to boot and to be ready.
pub const COOL_DOWN_MIN: Duration = Duration::from_secs(45);
/// Longest time between two repairs of one machine.
pub const COOL_DOWN_MAX: Duration = Duration::from_secs(900);
/// Part of a cluster, a zone or the fleet that may be broken at once, in percent; at least one machine. Above it nothing
/// disruptive is done. BOSH asks for five machines and a fifth, which never holds for a cluster of four; here the second
/// of four is enough.
pub const BROKEN_PERCENT_MAX: usize = 25;
/// Part of a cluster's workers that may be out of work at once because of us, in percent; at least one.
pub const DISRUPTED_PERCENT_MAX: usize = 10;
/// How long a machine without power waits for its pods to be given up before it is switched on: the API server answers
/// within a second when it answers at all.
pub const EVACUATE_MAX: Duration = Duration::from_secs(5);
/// How long a machine that was switched on may take to speak before its silence counts again.
pub const BOOT_GRACE: Duration = Duration::from_secs(60);
/// How long an agent may be mending its machine before that is an incident: most things it mends within seconds.
pub const REPAIRING_AFTER: Duration = Duration::from_secs(30);
