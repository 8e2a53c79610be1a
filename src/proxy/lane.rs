//! A tenant's lane in this process: one mutation at a time, a few reads beside it, and a bounded queue for the rest. (Between two processes
//! `in_flight` has the last word.)
//!
//! sq serializes a tenant's requests by one lock anyway, so this costs little; a hundred uploads at once cost it 419 MB and, under a
//! limit of 20 MB, its life (sq-facts).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use tokio::{sync::oneshot, time};

use super::{classify::Kind, measure::Counted, problem::Problem};

/// Longest wait for a turn. sq gives up on one request after 32 s, so whoever waits longer than this waits behind several slow ones.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);

/// How many of a tenant's requests may run and wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Width {
    /// Reads at once.
    pub(crate) reads: u16,
    /// Requests waiting.
    pub(crate) queue: u16,
}

/// The lane of one tenant.
#[derive(Default)]
pub(crate) struct Lane(Mutex<State>);

#[derive(Default)]
struct State {
    mutating: bool,
    reading: u16,
    /// The width of the latest comer: limits change while requests wait.
    reads: u16,
    mutations: VecDeque<oneshot::Sender<Turn>>,
    readers: VecDeque<oneshot::Sender<Turn>>,
}

/// A place in the lane; dropping it lets the next one in.
pub(crate) struct Turn {
    lane: Option<Arc<Lane>>,
    kind: Kind,
}

impl Lane {
    /// Waits for a turn, and is one of `queued` meanwhile. `bounded` is false for those that waited for the instance already: they were counted there.
    pub(crate) async fn enter(self: &Arc<Self>, kind: Kind, width: Width, bounded: bool, queued: &AtomicU64) -> Result<Turn, Problem> {
        let turn = {
            let mut state = self.lock();
            state.reads = width.reads.max(1);
            if state.take(kind) {
                return Ok(self.turn(kind));
            }
            state.forget_the_gone();
            if bounded && state.mutations.len() + state.readers.len() >= usize::from(width.queue) {
                return Err(Problem::QueueFull);
            }
            let (sender, receiver) = oneshot::channel();
            state.queue(kind).push_back(sender);
            receiver
        };
        let _counted = Counted::new(queued);
        match time::timeout(MAX_WAIT, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Problem::QueueTimeout),
        }
    }

    fn turn(self: &Arc<Self>, kind: Kind) -> Turn {
        Turn { lane: Some(Arc::clone(self)), kind }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back a place of `kind` and hands it to whoever waits longest and is still there.
    fn leave(self: &Arc<Self>, kind: Kind) {
        self.lock().give_back(kind);
        loop {
            let next = {
                let mut state = self.lock();
                if !state.has_room(kind) {
                    return;
                }
                let Some(next) = state.queue(kind).pop_front() else {
                    return;
                };
                state.take(kind);
                next
            };
            if let Err(mut unwanted) = next.send(self.turn(kind)) {
                // Its request went away: the place is given back here, not by Drop, which would recurse.
                unwanted.lane = None;
                self.lock().give_back(kind);
            }
        }
    }
}

impl State {
    fn has_room(&self, kind: Kind) -> bool {
        match kind {
            Kind::Mutation => !self.mutating,
            Kind::Read => self.reading < self.reads,
        }
    }

    fn take(&mut self, kind: Kind) -> bool {
        if !self.has_room(kind) {
            return false;
        }
        match kind {
            Kind::Mutation => self.mutating = true,
            Kind::Read => self.reading += 1,
        }
        true
    }

    fn give_back(&mut self, kind: Kind) {
        match kind {
            Kind::Mutation => self.mutating = false,
            Kind::Read => self.reading -= 1,
        }
    }

    fn queue(&mut self, kind: Kind) -> &mut VecDeque<oneshot::Sender<Turn>> {
        match kind {
            Kind::Mutation => &mut self.mutations,
            Kind::Read => &mut self.readers,
        }
    }

    /// Clients that went away while waiting no longer count.
    fn forget_the_gone(&mut self) {
        self.mutations.retain(|waiting| !waiting.is_closed());
        self.readers.retain(|waiting| !waiting.is_closed());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            lane.leave(self.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio_test_poll::poll_once;

    use super::*;

    /// Polls a future once, so that a test can say "it waits" without a clock.
    mod tokio_test_poll {
        use std::{
            future::Future,
            pin::Pin,
            task::{Context, Poll, Waker},
        };

        pub(super) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
            future.poll(&mut Context::from_waker(Waker::noop()))
        }
    }

    const WIDTH: Width = Width { reads: 2, queue: 2 };

    async fn enter(lane: &Arc<Lane>, kind: Kind) -> Result<Turn, Problem> {
        lane.enter(kind, WIDTH, true, &AtomicU64::new(0)).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn mutations_run_one_at_a_time_with_reads_beside_them() {
        let lane = Arc::new(Lane::default());
        let first = enter(&lane, Kind::Mutation).await.unwrap();
        let _reads = [enter(&lane, Kind::Read).await.unwrap(), enter(&lane, Kind::Read).await.unwrap()];
        let mut second = Box::pin(enter(&lane, Kind::Mutation));
        assert!(poll_once(second.as_mut()).is_pending());
        drop(first);
        assert!(matches!(poll_once(second.as_mut()), Poll::Ready(Ok(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_more_than_the_queue_holds_is_refused() {
        let lane = Arc::new(Lane::default());
        let _first = enter(&lane, Kind::Mutation).await.unwrap();
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(enter(&lane, Kind::Mutation))).collect();
        assert!(waiting.iter_mut().all(|turn| poll_once(turn.as_mut()).is_pending()));
        assert!(matches!(enter(&lane, Kind::Mutation).await, Err(Problem::QueueFull)));
        waiting.pop();
        let mut third = Box::pin(enter(&lane, Kind::Mutation));
        assert!(poll_once(third.as_mut()).is_pending(), "one that went away makes room");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn turns_come_in_the_order_of_asking_and_skip_the_gone() {
        let lane = Arc::new(Lane::default());
        let first = enter(&lane, Kind::Mutation).await.unwrap();
        let mut gone = Box::pin(enter(&lane, Kind::Mutation));
        let mut next = Box::pin(enter(&lane, Kind::Mutation));
        assert!(poll_once(gone.as_mut()).is_pending() && poll_once(next.as_mut()).is_pending());
        drop(gone);
        drop(first);
        let Poll::Ready(Ok(turn)) = poll_once(next.as_mut()) else { panic!("the second was skipped") };
        drop(turn);
        assert!(enter(&lane, Kind::Mutation).await.is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_turn_that_nobody_took_is_given_on() {
        let lane = Arc::new(Lane::default());
        let first = enter(&lane, Kind::Mutation).await.unwrap();
        let mut second = Box::pin(enter(&lane, Kind::Mutation));
        assert!(poll_once(second.as_mut()).is_pending());
        drop(first); // the turn now lies in the second's channel
        drop(second);
        assert!(enter(&lane, Kind::Mutation).await.is_ok());
    }
}
