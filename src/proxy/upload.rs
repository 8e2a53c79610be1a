//! A request's body, whole, in memory, before anything goes to sq: sq stores a partial body as if it were whole (sq-facts).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until, timeout};

use super::{problem::Problem, tenant::Tenant};

/// A body may be silent for so long at its start …
const PATIENCE: Duration = Duration::from_secs(10);

/// … and must then arrive at this rate on average, bytes a second. A modem of 1998 sends 5,000.
const MIN_RATE: u64 = 1_024;

/// Memory for bodies of all tenants together, bytes: eight of the largest that sq takes (64 MiB). One tenant may take as much of it as it leaves
/// free: half where it is alone, a third each where there are two. So slow uploads of a few never shut the others out.
const MEMORY: u64 = 512 << 20;

/// Most that is read of a refused body, bytes: the largest that could ever be accepted.
const MAX_DISCARD: u64 = 64 << 20;

/// Longest time for it.
const DISCARD_FOR: Duration = Duration::from_secs(30);

/// A share of the memory for bodies; dropping it gives it back.
pub(crate) struct Share {
    all: Arc<AtomicU64>,
    tenant: Arc<Tenant>,
    bytes: u64,
}

impl Share {
    /// An empty share of what `all` counts, for `tenant`.
    pub(crate) fn of(all: &Arc<AtomicU64>, tenant: &Arc<Tenant>) -> Self {
        Self { all: Arc::clone(all), tenant: Arc::clone(tenant), bytes: 0 }
    }

    fn grow(&mut self, bytes: u64) -> Result<(), Problem> {
        self.bytes += bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let own = self.tenant.body_memory.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > MEMORY.saturating_sub(all) { Err(Problem::OutOfBodyMemory) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
        self.tenant.body_memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a body of at most `limit` bytes to its end.
pub(crate) async fn read(body: &mut Incoming, limit: u64, share: &mut Share) -> Result<Vec<Bytes>, Problem> {
    let mut pieces = Vec::new();
    let keep = |piece: Bytes| {
        share.grow(piece.len() as u64)?;
        append(&mut pieces, piece);
        Ok(())
    };
    each(body, limit, keep).await?;
    Ok(pieces)
}

/// Hands each piece of a body of at most `limit` bytes to `take`, to its end or to the first error.
pub(crate) async fn each(body: &mut Incoming, limit: u64, mut take: impl FnMut(Bytes) -> Result<(), Problem>) -> Result<(), Problem> {
    if body.size_hint().lower() > limit {
        return Err(Problem::BodyTooLarge { limit });
    }
    if body.is_end_stream() {
        return Ok(());
    }
    let start = Instant::now();
    let mut received = 0;
    let deadline = sleep_until(deadline(start, received));
    tokio::pin!(deadline);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut deadline => return Err(Problem::BodyTooSlow),
        };
        let Some(frame) = frame else {
            return Ok(());
        };
        // Trailers mean nothing to sq.
        let Ok(piece) = frame.map_err(|_| Problem::BodyCut)?.into_data() else {
            continue;
        };
        received += piece.len() as u64;
        if received > limit {
            return Err(Problem::BodyTooLarge { limit });
        }
        take(piece)?;
        deadline.as_mut().reset(self::deadline(start, received));
    }
}

/// Reads on what a refused client still sends, and forgets it. Many clients send all before they read anything: they would find the
/// connection reset in place of the refusal.
pub(crate) async fn discard(mut body: Incoming) {
    let mut left = MAX_DISCARD;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |piece| piece.len() as u64));
            if left == 0 {
                return;
            }
        }
    };
    // Who is not done by then loses the refusal.
    let _ = timeout(DISCARD_FOR, all).await;
}

/// When the next byte must be here.
fn deadline(start: Instant, received: u64) -> Instant {
    start + PATIENCE + Duration::from_millis(received.saturating_mul(1_000) / MIN_RATE)
}

/// Small pieces are put together: a body of a million one-byte chunks must not cost a million allocations held at once.
fn append(pieces: &mut Vec<Bytes>, piece: Bytes) {
    const SMALL: usize = 4 * 1024;
    if piece.is_empty() {
        return;
    }
    match pieces.pop() {
        Some(last) if last.len() + piece.len() <= SMALL || (piece.len() < SMALL / 8 && last.len() < 16 * SMALL) => {
            let mut joined = last.try_into_mut().unwrap_or_else(|shared| shared[..].into());
            joined.extend_from_slice(&piece);
            pieces.push(joined.freeze());
        }
        Some(last) => pieces.extend([last, piece]),
        None => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_order_and_tiny_ones_are_joined() {
        let mut pieces = Vec::new();
        let mut whole = Vec::new();
        for i in 0..10_000_u32 {
            let piece = Bytes::from(i.to_le_bytes()[..1 + (i as usize % 3)].to_vec());
            whole.extend_from_slice(&piece);
            append(&mut pieces, piece);
        }
        append(&mut pieces, Bytes::from(vec![7; 100_000]));
        whole.extend_from_slice(&[7; 100_000]);
        assert_eq!(pieces.concat(), whole);
        assert!(pieces.len() < 100, "{}", pieces.len());
    }

    #[test]
    fn a_slow_upload_lives_as_long_as_it_makes_progress() {
        let start = Instant::now();
        assert_eq!(deadline(start, 0), start + PATIENCE);
        assert_eq!(deadline(start, MIN_RATE * 60), start + PATIENCE + Duration::from_secs(60));
    }

    #[test]
    fn memory_for_bodies_is_bounded_and_given_back_and_nobody_takes_what_others_need() {
        let all = Arc::new(AtomicU64::new(0));
        let [greedy, second, third] = std::array::from_fn(|_| Arc::new(Tenant::default()));
        let mut shares = Vec::new();
        let mut take = |tenant: &Arc<Tenant>, bytes| {
            let mut share = Share::of(&all, tenant);
            share.grow(bytes).map(|()| shares.push(share))
        };
        let part = MEMORY / 16;
        let taken = (0..16).take_while(|_| take(&greedy, part).is_ok()).count();
        assert_eq!(taken, 8, "half of it");
        assert_eq!((0..16).take_while(|_| take(&second, part).is_ok()).count(), 4, "half of the rest");
        assert_eq!(take(&third, part), Ok(()));
        assert_eq!(take(&greedy, 1), Err(Problem::OutOfBodyMemory));
        shares.clear();
        let left = [&*all, &greedy.body_memory, &second.body_memory, &third.body_memory].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(left, [0; 4]);
    }
}
