//! The tasks of one agent, so that all of them can be ended and none acts after that.

use std::{future::Future, sync::Arc};

use tokio::{sync::RwLock, task::JoinSet};

/// Tasks under way; dropping it ends them.
#[derive(Debug)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    gate: Gate,
}

/// What a blocking piece of work has to pass: such work cannot be ended half-way, only not begun, or waited for.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<RwLock<Passage>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    Closed,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { set: JoinSet::new(), gate: Gate(Arc::new(RwLock::new(Passage::Open))) }
    }

    /// Begins a task; none any more after a halt.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        // What has ended is let go here, so that the set is as large as what runs.
        while self.set.try_join_next().is_some() {}
        if !self.gate.is_closed() {
            self.set.spawn(task);
        }
    }

    pub(super) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Waits for blocking work that has begun, then ends all tasks: afterwards none of them does anything.
    pub(super) async fn halt(&mut self) {
        *self.gate.0.write().await = Passage::Closed;
        self.set.shutdown().await;
    }
}

impl Gate {
    /// Does the blocking `work` unless the tasks were halted; a halt waits until it is done. Not on a thread of the runtime.
    pub(super) fn pass<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let passage = self.0.blocking_read();
        (*passage == Passage::Open).then(work)
    }

    /// While it cannot be told (a halt waits for its turn), tasks are still ended by that halt.
    fn is_closed(&self) -> bool {
        self.0.try_read().is_ok_and(|passage| *passage == Passage::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn a_halt_waits_for_work_that_has_begun_and_lets_none_begin() {
        let mut tasks = Tasks::new();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let (gate, set) = (tasks.gate(), done.clone());
        let working = tokio::task::spawn_blocking(move || {
            gate.pass(|| {
                let _ = begun.send(());
                let _ = wait.recv();
                set.store(true, Ordering::SeqCst);
            })
        });
        has_begun.await.unwrap();
        let gate = tasks.gate();
        {
            let mut halt = std::pin::pin!(tasks.halt());
            assert!(futures_poll(halt.as_mut()).await.is_none(), "the work has not ended");
            go_on.send(()).unwrap();
            halt.await;
        }
        assert!(done.load(Ordering::SeqCst));
        assert_eq!(working.await.unwrap(), Some(()));
        assert_eq!(tokio::task::spawn_blocking(move || gate.pass(|| ())).await.unwrap(), None);
    }

    /// Polls once.
    async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_halt_ends_every_task_and_none_begins_after_it() {
        let mut tasks = Tasks::new();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<()>();
        let held = sender.clone();
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        tasks.halt().await;
        let late = sender.clone();
        tasks.spawn(async move {
            let _ = late.send(());
        });
        drop(sender);
        assert_eq!(receiver.recv().await, None, "every sender is gone and nothing was sent");
    }
}
