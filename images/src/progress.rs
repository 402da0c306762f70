//! How a build tells what it is doing.

use std::time::{Duration, Instant};

/// Something that happened in a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressEvent {
    /// A step began that takes seconds or minutes.
    Started {
        /// What is done, for example `build kubernetes 1.37.2`.
        step: String,
        /// How long it usually takes, when it is long enough to say so.
        usual: Option<Duration>,
    },
    /// The step that began last is waiting for another builder of the same thing.
    Waiting {
        /// What is waited for.
        step: String,
    },
    /// A note on the step that runs, for example the bytes transferred.
    Note {
        /// The note, one line.
        text: String,
    },
    /// A step ended well.
    Finished {
        /// As in `Started`.
        step: String,
        /// How long it took.
        took: Duration,
    },
    /// A step needed nothing, as its result is in the cache.
    Cached {
        /// What was not done.
        step: String,
    },
}

/// Receives what happens in a build.
pub trait Progress {
    /// Called in order, from the thread that builds. Must return quickly.
    fn event(&mut self, event: ProgressEvent);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _event: ProgressEvent) {}
}

/// Keeps all events; for tests and for reports after the fact.
#[derive(Clone, Debug, Default)]
pub struct Recorded(pub Vec<ProgressEvent>);

impl Progress for Recorded {
    fn event(&mut self, event: ProgressEvent) {
        self.0.push(event);
    }
}

/// Runs `work` as a step.
pub(crate) fn step<T, E>(
    progress: &mut dyn Progress,
    name: String,
    usual: Option<Duration>,
    work: impl FnOnce(&mut dyn Progress) -> Result<T, E>,
) -> Result<T, E> {
    progress.event(ProgressEvent::Started { step: name.clone(), usual });
    let start = Instant::now();
    let value = work(progress)?;
    progress.event(ProgressEvent::Finished { step: name, took: start.elapsed() });
    Ok(value)
}
