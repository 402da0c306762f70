//! The client that writes all the time, and remembers which of its writes were acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, ObjectMeta, PostParams};
use tokio::time::MissedTickBehavior;

use crate::api::{Connection, runtime};

/// A write every 200 ms: gaps are known that precisely, and a run of an hour makes 18,000 small objects.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// A time without a successful write that is longer than this counts as unavailable. Shorter ones are a slow answer.
const GAP: Duration = Duration::from_secs(1);
/// Objects in one page when all are read back: what kubectl asks for.
const PAGE_OBJECTS: u32 = 500;
/// How long reading back may take, with all its tries: the API works again by then, or never.
const READ_MAX: Duration = Duration::from_secs(90);
/// Pause between two tries.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// The key under which an object holds its content.
const KEY: &str = "content";

/// What was written until now.
#[derive(Debug, Default)]
struct Written {
    /// Numbers of the writes that were acknowledged.
    acknowledged: Vec<u64>,
    /// When they were.
    at: Vec<Instant>,
    failed: u64,
}

/// The client.
pub(crate) struct Writer {
    written: Arc<Mutex<Written>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    began: Instant,
    connection: Connection,
    seed: u64,
}

/// What came of all writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sum {
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    pub(crate) failed: u64,
    pub(crate) unavailable: Duration,
    pub(crate) longest: Duration,
}

impl Writer {
    /// Begins to write, with a thread of its own.
    pub(crate) fn start(connection: &Connection, seed: u64) -> Result<Self> {
        let written = Arc::new(Mutex::new(Written::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, mut own) = (Arc::clone(&written), Arc::clone(&stop), connection.clone());
        let runtime = runtime()?;
        let work = move || runtime.block_on(write(&mut own, seed, &shared, &stopped));
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(work)?;
        let (began, connection) = (Instant::now(), connection.clone());
        Ok(Self { written, stop, thread: Some(thread), began, connection, seed })
    }

    /// The longest time without a successful write that touches the time from `from` to `to`.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        gaps(&written.at, self.began, to)
            .filter(|(_, end)| *end >= from)
            .map(length)
            .max()
            .unwrap_or_default()
    }

    /// Ends the writing, reads everything back and says what is missing.
    pub(crate) fn finish(mut self) -> Result<Sum> {
        let ended = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the thread of the writer has panicked"))?;
        }
        let found = runtime()?.block_on(read_back(&mut self.connection))?;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = |number: &&u64| found.get(&name(**number)) != Some(&content(self.seed, **number));
        let gaps: Vec<Duration> = gaps(&written.at, self.began, ended).map(length).collect();
        Ok(Sum {
            acknowledged: written.acknowledged.len(),
            lost: written.acknowledged.iter().filter(is_lost).count(),
            failed: written.failed,
            unavailable: gaps.iter().filter(|gap| **gap > GAP).sum(),
            longest: gaps.into_iter().max().unwrap_or_default(),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn name(number: u64) -> String {
    format!("write-{number:07}")
}

fn content(seed: u64, number: u64) -> String {
    format!("write {number} of the run with seed {seed}")
}

/// The times between successes, with those before the first and after the last.
fn gaps(at: &[Instant], began: Instant, ended: Instant) -> impl Iterator<Item = (Instant, Instant)> {
    let starts = std::iter::once(began).chain(at.iter().copied());
    let ends = at.iter().copied().chain(std::iter::once(ended));
    starts.zip(ends)
}

fn length((start, end): (Instant, Instant)) -> Duration {
    end.saturating_duration_since(start)
}

/// Writes one object after the other. A number whose write failed is not used again: whether it is there is not known.
async fn write(connection: &mut Connection, seed: u64, written: &Mutex<Written>, stop: &AtomicBool) {
    let mut ticks = tokio::time::interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1.. {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let object = ConfigMap {
            metadata: ObjectMeta { name: Some(name(number)), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), content(seed, number))])),
            ..ConfigMap::default()
        };
        let done = match connection.own::<ConfigMap>() {
            Ok(api) => connection.ask(api.create(&PostParams::default(), &object)).await.map(drop),
            Err(error) => Err(error),
        };
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(()) => {
                written.acknowledged.push(number);
                written.at.push(Instant::now());
            }
            Err(_) => written.failed += 1,
        }
    }
}

/// All objects with their contents.
async fn read_back(connection: &mut Connection) -> Result<BTreeMap<String, String>> {
    let until = Instant::now() + READ_MAX;
    loop {
        match read_pages(connection).await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > until => {
                return Err(error).context("what was written cannot be read back");
            }
            Err(_) => tokio::time::sleep(READ_AGAIN).await,
        }
    }
}

async fn read_pages(connection: &mut Connection) -> Result<BTreeMap<String, String>> {
    let (mut found, mut params) = (BTreeMap::new(), ListParams::default().limit(PAGE_OBJECTS));
    loop {
        let api = connection.own::<ConfigMap>()?;
        let page = connection.ask(api.list(&params)).await?;
        found.extend(page.items.into_iter().filter_map(|object| {
            Some((object.metadata.name?, object.data.unwrap_or_default().remove(KEY).unwrap_or_default()))
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_between_successes_and_at_both_ends() {
        let began = Instant::now();
        let after = |ms: u64| began + Duration::from_millis(ms);
        let lengths = |at: &[u64], ended: u64| -> Vec<u128> {
            let at: Vec<Instant> = at.iter().map(|ms| after(*ms)).collect();
            gaps(&at, began, after(ended)).map(|gap| length(gap).as_millis()).collect()
        };
        assert_eq!(lengths(&[], 3000), [3000]);
        assert_eq!(lengths(&[200, 400, 2400], 4000), [200, 200, 2000, 1600]);
        // A success that came after the end was asked for.
        assert_eq!(lengths(&[200, 400], 300), [200, 200, 0]);
    }
}
