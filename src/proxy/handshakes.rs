//! How many clients may be at their handshake at once. Where there is no place left the oldest one goes, so that a flood of connections that
//! say nothing pushes out itself: whoever is at work is through in a few round trips, and long gone from the far end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// All that are at it.
pub(crate) struct Handshakes {
    places: usize,
    begun: Mutex<Begun>,
}

#[derive(Default)]
struct Begun {
    /// Number of the next one: the lowest number is the oldest.
    next: u64,
    /// Dropping the sender tells whoever waits.
    each: BTreeMap<u64, oneshot::Sender<()>>,
}

/// The place of one; dropping it gives it back.
pub(crate) struct Place {
    number: u64,
    all: Arc<Handshakes>,
    lost: oneshot::Receiver<()>,
}

impl Handshakes {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(1), begun: Mutex::default() })
    }

    /// A place, at the cost of the oldest where all are taken.
    pub(crate) fn begin(self: &Arc<Self>) -> Place {
        let (held, lost) = oneshot::channel();
        let mut begun = self.lock();
        if begun.each.len() >= self.places {
            begun.each.pop_first();
        }
        let number = begun.next;
        begun.next += 1;
        begun.each.insert(number, held);
        Place { number, all: Arc::clone(self), lost }
    }

    fn lock(&self) -> MutexGuard<'_, Begun> {
        // Nothing under the lock can panic.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Returns when somebody else needs it.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.lost).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().each.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_lost(place: &mut Place) -> bool {
        timeout(Duration::from_millis(1), place.lost()).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_goes_where_there_is_no_place_left() {
        let all = Handshakes::new(2);
        let (mut first, mut second) = (all.begin(), all.begin());
        assert!(!is_lost(&mut first).await);
        let mut third = all.begin();
        assert!(is_lost(&mut first).await && !is_lost(&mut second).await && !is_lost(&mut third).await);
        drop(first);
        drop(second);
        let fourth = all.begin();
        assert!(!is_lost(&mut third).await, "a place that was given back is free");
        drop((third, fourth));
        assert!(all.lock().each.is_empty());
    }
}
