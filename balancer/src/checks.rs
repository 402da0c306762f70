//! Asks every target all the time whether it works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::debug;

use crate::health::Answer;
use crate::targets::Targets;

/// How often a target is asked. With [`CHECK_TIMEOUT`] it bounds how long a dead target is believed in.
pub const CHECK_EVERY: Duration = Duration::from_millis(500);
/// How long an answer may take. A healthy API server answers in some milliseconds, one that is short of processors in
/// some hundred; a target that died right after an answer is left after the interval and this time.
pub const CHECK_TIMEOUT: Duration = Duration::from_millis(800);
/// From the death of a target to the end of its connections: what is left of two seconds is for connecting elsewhere.
const DEATH_SEEN_WITHIN: Duration = Duration::from_millis(1_300);
/// A time-out that is noticed so much too late tells of a stall of ours, and nothing of the target.
const STALLED: Duration = Duration::from_millis(200);
/// Fewer targets need no checks: there is nowhere else to go.
const TARGETS_CHECKED_MIN: usize = 2;

const _: () = assert!(CHECK_EVERY.as_millis() + CHECK_TIMEOUT.as_millis() <= DEATH_SEEN_WITHIN.as_millis());
// Two bad answers, each right after the moment of asking, come sooner.
const _: () = assert!(CHECK_EVERY.as_millis() * 2 <= DEATH_SEEN_WITHIN.as_millis());

/// Asks one target. It may keep a connection from one question to the next.
pub trait Ask: Send + 'static {
    /// Asks once. No answer within [`CHECK_TIMEOUT`] counts as silence: the future is dropped then, and what it held
    /// half-way must not be used again.
    ///
    /// # Errors
    /// Why the target does not work, in words for people.
    fn ask(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// Checks under way. Dropping them ends them; what they have found out stays known.
#[derive(Debug, Default)]
pub struct Checks {
    _tasks: JoinSet<()>,
}

impl Checks {
    /// Begins to ask the targets that are on the list now, each by itself, so that a slow one delays no other. Must be
    /// called again for another list.
    pub fn start<A: Ask>(targets: &Arc<Targets>, asker: impl Fn(SocketAddr) -> A) -> Self {
        let addresses = targets.addresses();
        let mut tasks = JoinSet::new();
        if addresses.len() >= TARGETS_CHECKED_MIN {
            for address in addresses {
                tasks.spawn(check(Arc::clone(targets), address, asker(address)));
            }
        }
        Self { _tasks: tasks }
    }
}

async fn check(targets: Arc<Targets>, address: SocketAddr, mut asker: impl Ask) {
    let mut ticks = interval(CHECK_EVERY);
    // A late answer is followed by one question at once, not by all that were missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        let answer = match timeout(CHECK_TIMEOUT, asker.ask()).await {
            Ok(Ok(())) => Answer::Good,
            Ok(Err(why)) => Answer::Bad(why),
            Err(_) if begun.elapsed() > CHECK_TIMEOUT + STALLED => {
                debug!(%address, elapsed = ?begun.elapsed(), "a check came to nothing: this program stood still");
                continue;
            }
            Err(_) => Answer::Silence,
        };
        targets.heard(address, &answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::time::sleep;

    /// Answers as `g`ood, `b`ad, `s`ilence and `l`ate but good; the last one for ever.
    struct Script {
        answers: &'static str,
        asked: usize,
        asked_at: Arc<Mutex<Vec<u128>>>,
        begun: Instant,
    }

    impl Ask for Script {
        async fn ask(&mut self) -> Result<(), String> {
            let place = self.asked.min(self.answers.len() - 1);
            self.asked += 1;
            self.asked_at.lock().unwrap().push(self.begun.elapsed().as_millis());
            match &self.answers[place..=place] {
                "g" => Ok(()),
                "b" => Err("status 503".to_owned()),
                "l" => {
                    sleep(CHECK_TIMEOUT - Duration::from_millis(1)).await;
                    Ok(())
                }
                _ => std::future::pending().await,
            }
        }
    }

    /// When a standing connection of a target with these answers is ended, beside one that works, in milliseconds; and
    /// when the target was asked until then.
    async fn left_at(answers: &'static str) -> (u128, Vec<u128>) {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let targets = Arc::new(Targets::default());
        targets.replace(&[address(1), address(2)]);
        let mut standing = targets.in_turn(Instant::now()).remove(0);
        let (begun, asked_at) = (Instant::now(), Arc::new(Mutex::default()));
        let script = |target: SocketAddr| Script {
            answers: if target == address(1) { answers } else { "g" },
            asked: 0,
            asked_at: if target == address(1) { Arc::clone(&asked_at) } else { Arc::default() },
            begun,
        };
        let checks = Checks::start(&targets, script);
        standing.left().await;
        drop(checks);
        let asked_at = asked_at.lock().unwrap().clone();
        (begun.elapsed().as_millis(), asked_at)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_seen_with_the_first_time_out_and_bad_answers_with_the_second() {
        // The good answer was the last sign of life: all that follows is counted from there.
        assert_eq!(left_at("gs").await, (1_300, vec![0, 500, 1_300]));
        assert_eq!(left_at("gb").await, (1_000, vec![0, 500, 1_000]));
        assert_eq!(left_at("gbgbgbb").await, (3_000, vec![0, 500, 1_000, 1_500, 2_000, 2_500, 3_000]));
        // An answer that took longer than the interval delays the questions that follow, and no more.
        assert_eq!(left_at("glgs").await, (2_599, vec![0, 500, 1_299, 1_799, 2_599]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_our_own_condemns_nobody() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let other = SocketAddr::from(([127, 0, 0, 1], 2));
        let targets = Arc::new(Targets::default());
        targets.replace(&[address, other]);
        struct Slow;
        impl Ask for Slow {
            async fn ask(&mut self) -> Result<(), String> {
                std::future::pending().await
            }
        }
        let checks = Checks::start(&targets, |_| Slow);
        tokio::task::yield_now().await;
        // The clock jumps as it does for a program that was stopped; then the time-outs of both are far too late.
        tokio::time::advance(CHECK_TIMEOUT + STALLED * 2).await;
        tokio::task::yield_now().await;
        drop(checks);
        targets.heard(other, &Answer::Good);
        assert_eq!(
            targets.in_turn(Instant::now()).len(),
            2,
            "the one that did not answer is not known as dead"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_target_is_not_asked() {
        let targets = Arc::new(Targets::default());
        targets.replace(&[SocketAddr::from(([127, 0, 0, 1], 1))]);
        let asked =
            Script { answers: "g", asked: 0, asked_at: Arc::default(), begun: Instant::now() }.asked_at;
        let checks = Checks::start(&targets, |_| Script {
            answers: "g",
            asked: 0,
            asked_at: Arc::clone(&asked),
            begun: Instant::now(),
        });
        sleep(CHECK_EVERY * 4).await;
        drop(checks);
        assert!(asked.lock().unwrap().is_empty());
    }
}
