//! Messages that wait to be sent in a session: bounded in number and bytes, never blocking the sender.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::settings::{QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX};

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// The receiver is too far behind.
    Full,
    /// The session has ended or is ending.
    Ended,
}

/// A queue with one reader. Empty, as nearly always, it holds no memory of its own.
#[derive(Debug, Default)]
pub(crate) struct OutQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    end: Option<String>,
}

impl OutQueue {
    /// Adds an encoded message.
    pub(crate) fn push(&self, message: Vec<u8>) -> Result<(), QueueError> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Err(QueueError::Ended);
        }
        let bytes = state.bytes + message.len();
        if state.messages.len() >= QUEUE_MESSAGES_MAX || bytes > QUEUE_BYTES_MAX {
            return Err(QueueError::Full);
        }
        state.bytes = bytes;
        state.messages.push_back(message);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes no more messages; those that wait are still sent. The first reason counts.
    pub(crate) fn end(&self, why: &str) {
        self.lock().end.get_or_insert_with(|| why.to_owned());
        self.changed.notify_one();
    }

    /// Why the queue was ended, if it was.
    pub(crate) fn end_reason(&self) -> Option<String> {
        self.lock().end.clone()
    }

    /// The next message; `None` when the queue is empty and ended. Cancel-safe. For one reader only.
    pub(crate) async fn pop(&self) -> Option<Vec<u8>> {
        loop {
            // `notify_one` keeps one permit, so a push between the look and the wait is not lost.
            {
                let mut state = self.lock();
                if let Some(message) = state.messages.pop_front() {
                    state.bytes -= message.len();
                    if state.messages.is_empty() {
                        state.messages = VecDeque::new();
                    }
                    return Some(message);
                }
                if state.end.is_some() {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_messages_is_bounded() {
        let queue = OutQueue::default();
        for _ in 0..QUEUE_MESSAGES_MAX {
            assert_eq!(queue.push(vec![1]), Ok(()));
        }
        assert_eq!(queue.push(vec![1]), Err(QueueError::Full));
    }

    #[test]
    fn the_bytes_are_bounded() {
        let queue = OutQueue::default();
        assert_eq!(queue.push(vec![0; QUEUE_BYTES_MAX]), Ok(()));
        assert_eq!(queue.push(vec![1]), Err(QueueError::Full));
    }

    #[tokio::test]
    async fn what_waits_is_delivered_after_the_end() {
        let queue = OutQueue::default();
        queue.push(vec![1]).unwrap();
        queue.end("first");
        queue.end("second");
        assert_eq!(queue.push(vec![2]), Err(QueueError::Ended));
        assert_eq!(queue.pop().await, Some(vec![1]));
        assert_eq!(queue.pop().await, None);
        assert_eq!(queue.end_reason().as_deref(), Some("first"));
    }

    #[tokio::test]
    async fn a_push_wakes_the_reader() {
        let queue = OutQueue::default();
        let (message, ()) = tokio::join!(queue.pop(), async { queue.push(vec![7]).unwrap() });
        assert_eq!(message, Some(vec![7]));
    }
}
