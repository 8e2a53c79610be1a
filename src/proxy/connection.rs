//! How long a client's connection may be silent. One state a connection, looked at by the one task that drives it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::head::BadHead;

/// A request's head must be whole so long after its first byte.
const HEAD: Duration = Duration::from_secs(10);
/// A connection may be idle so long: as long as nginx's.
const IDLE: Duration = Duration::from_secs(75);
/// After so long hyper goes, see `doze`: a client with more to ask asks sooner, as a rule.
const DOZE: Duration = Duration::from_secs(1);
/// A client may take nothing of its answers for so long: sq itself gives up after 32 s.
const STALLED: Duration = Duration::from_secs(30);
/// A connection may be idle so long once the process retires. One over HTTP/1.1 cannot be told to go but in an answer, and to close it means to
/// fail whoever sends at that moment; most clients with something to ask ask within this.
const IDLE_RETIRING: Duration = Duration::from_secs(5);
/// Most bytes that are read and forgotten after the last word of a connection.
pub(super) const MAX_FORGOTTEN: usize = 64 << 20;

/// What is known of a connection. Times are milliseconds since its start.
#[derive(Debug)]
pub(crate) struct State {
    start: Instant,
    /// It is one of HTTP/2: several requests at once, and frames that belong to none.
    multiplexed: bool,
    requests: AtomicU32,
    /// Those whose answers have a body that is not out yet: each is given up where no piece of it is taken for [`STALLED`].
    streaming: AtomicU32,
    in_head: AtomicBool,
    blocked: AtomicBool,
    /// A request has come.
    asked: AtomicBool,
    /// Something may be let go of as long as nothing is asked.
    awake: AtomicBool,
    /// Another process serves on.
    retiring: AtomicBool,
    cut: AtomicBool,
    /// Requests of the process that did not finish in time.
    all_cut: Arc<AtomicU64>,
    /// Since when it is idle or blocked; or the last piece of an answer.
    since: AtomicU64,
    /// Since when it is in a head: other requests may be under way.
    head_since: AtomicU64,
    /// Why nothing more on it is read as a request.
    refused: OnceLock<BadHead>,
}

/// Why a connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// Nothing is asked: let go of what can be let go of, and go on.
    Drowsy,
    /// Nothing is asked any more: say goodbye.
    Idle,
    /// Too slow: drop it.
    Slow,
}

/// A request on a connection; dropping it ends it.
pub(crate) struct Busy {
    state: Arc<State>,
    streams: bool,
}

impl State {
    /// `all_cut` counts the requests that the process cuts.
    pub(crate) fn new(multiplexed: bool, all_cut: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            multiplexed,
            requests: AtomicU32::new(0),
            streaming: AtomicU32::new(0),
            in_head: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            awake: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            all_cut,
            since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            refused: OnceLock::new(),
        })
    }

    /// Whether it is one of HTTP/2.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.multiplexed
    }

    /// A request's head is whole: called by whoever polls the connection, in the same poll.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether a request has ever come.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The next request that the service sees, the last one, stands for one whose head is not to be read.
    pub(crate) fn refuse(&self, why: BadHead) {
        let _ = self.refused.set(why);
    }

    /// Why the last request was refused, if it was.
    pub(crate) fn refused(&self) -> Option<BadHead> {
        self.refused.get().copied()
    }

    /// Another process serves on from now: nobody must notice, and the connection must come to an end.
    pub(crate) fn retire(&self) {
        self.retiring.store(true, Ordering::Relaxed);
        if self.requests() == 0 && !self.is_in_head() {
            self.touch();
        }
    }

    /// Whether an answer must say that the connection ends with it, since no frame can (as one does in HTTP/2).
    pub(crate) fn ends_with_answer(&self) -> bool {
        !self.multiplexed && self.retiring.load(Ordering::Relaxed)
    }

    /// Whether a head has begun and is not whole: hyper does not see it yet (see `gate`).
    pub(crate) fn is_in_head(&self) -> bool {
        self.in_head.load(Ordering::Relaxed)
    }

    /// Whether there is something to let go of while nothing is asked.
    pub(crate) fn wakes(&self, awake: bool) {
        self.awake.store(awake, Ordering::Relaxed);
    }

    /// A request's work begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy { state: Arc::clone(self), streams: false }
    }

    /// Requests whose answers have not ended.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The process ends before the connection has: each request on it will say so. Returns whether one was still coming, which cannot.
    pub(crate) fn cut(&self) -> bool {
        self.cut.store(true, Ordering::Relaxed);
        let coming = self.requests() == 0 && self.is_in_head();
        if coming {
            self.all_cut.fetch_add(1, Ordering::Relaxed);
        }
        coming
    }

    /// Whether a head is open, as whoever reads the connection sees it: one has begun and is not whole.
    pub(crate) fn head(&self, open: bool) {
        if self.is_in_head() != open {
            self.in_head.store(open, Ordering::Relaxed);
            self.head_since.store(self.age(), Ordering::Relaxed);
        }
    }

    fn age(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.since.store(self.age(), Ordering::Relaxed);
    }

    fn after(&self, milliseconds: &AtomicU64, limit: Duration) -> Instant {
        self.start + Duration::from_millis(milliseconds.load(Ordering::Relaxed)) + limit
    }

    fn wrote(&self, pending: bool) {
        if self.blocked.swap(pending, Ordering::Relaxed) != pending {
            self.touch();
        }
    }

    /// When to look again, and what is due then.
    pub(super) fn due(&self) -> (Instant, Overdue) {
        let due = self.due_of_all();
        if !self.multiplexed || !self.is_in_head() {
            return due;
        }
        // Nothing else of the connection goes on while one is open (RFC 9113 section 4.3).
        let head = self.after(&self.head_since, HEAD);
        if head < due.0 { (head, Overdue::Slow) } else { due }
    }

    fn due_of_all(&self) -> (Instant, Overdue) {
        let stalled = self.blocked.load(Ordering::Relaxed) || self.streaming.load(Ordering::Relaxed) > 0;
        let (limit, what) = if stalled {
            (STALLED, Overdue::Slow)
        } else if self.requests() > 0 {
            return (Instant::now() + IDLE, Overdue::Idle);
        } else if !self.multiplexed && self.is_in_head() {
            // It may have begun while the answer before it went out.
            return (self.after(&self.head_since, HEAD).max(self.after(&self.since, HEAD)), Overdue::Slow);
        } else if self.retiring.load(Ordering::Relaxed) {
            (IDLE_RETIRING, Overdue::Idle)
        } else if self.awake.load(Ordering::Relaxed) {
            (DOZE, Overdue::Drowsy)
        } else {
            (IDLE, Overdue::Idle)
        };
        (self.after(&self.since, limit), what)
    }
}

impl Busy {
    /// The answer's body goes out from here on.
    pub(crate) fn stream(&mut self) {
        if !std::mem::replace(&mut self.streams, true) {
            self.state.touch();
            self.state.streaming.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The client took a piece of the answer.
    pub(crate) fn progress(&self) {
        if self.streams {
            self.state.touch();
        }
    }

    /// Whether the process cuts this request; if so, it is counted.
    pub(crate) fn is_cut(&self) -> bool {
        let cut = self.state.cut.load(Ordering::Relaxed);
        if cut {
            self.state.all_cut.fetch_add(1, Ordering::Relaxed);
        }
        cut
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.streams {
            self.state.streaming.fetch_sub(1, Ordering::Relaxed);
        }
        if self.state.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.state.touch();
        }
    }
}

/// The end of a connection on which its client may still send. What comes is read and forgotten for a while: to close on it would reset the
/// connection, and a client that meets that while it writes never reads the last word (RFC 9112 section 9.6).
#[derive(Default)]
pub(crate) struct Lingering {
    /// The last word is out.
    end: Option<Pin<Box<Sleep>>>,
    forgotten: usize,
}

impl Lingering {
    /// Sends the end, then waits for the client's: for so long, or so many bytes, at most.
    pub(crate) fn poll<S>(&mut self, stream: &mut S, cx: &mut Context<'_>, longest: Duration, most: usize) -> Poll<io::Result<()>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.end.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(longest)));
        let mut scratch = [0; 4 * 1024];
        loop {
            if end.as_mut().poll(cx).is_ready() || self.forgotten >= most {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.forgotten += buffer.filled().len(),
                // However it ends: the last word is out.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A connection's bytes, and whether its client takes what is written.
pub(crate) struct Watched<S> {
    stream: S,
    state: Arc<State>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, state: Arc<State>) -> Self {
        Self { stream, state }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.state.wrote(result.is_pending());
        result
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.state.wrote(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.state.wrote(result.is_pending());
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Says when a connection is overdue. Poll it after the connection, in the same task.
pub(crate) struct Clock {
    state: Arc<State>,
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    pub(crate) fn new(state: Arc<State>) -> Self {
        let sleep = Box::pin(sleep_until(state.due().0));
        Self { state, sleep }
    }
}

impl Future for Clock {
    type Output = Overdue;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Overdue> {
        loop {
            let (at, what) = self.state.due();
            if at <= Instant::now() {
                return Poll::Ready(what);
            }
            // A timer that is set too early only looks again; setting it anew at each request would cost more.
            if at < self.sleep.deadline() || self.sleep.is_elapsed() {
                self.sleep.as_mut().reset(at);
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(multiplexed: bool) -> Arc<State> {
        State::new(multiplexed, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_told_goodbye_after_75_seconds() {
        let state = new(false);
        let start = Instant::now();
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Idle);
        assert_eq!(start.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_dozes_after_a_second_and_is_idle_from_when_its_last_request_ended() {
        let state = new(false);
        state.wakes(true);
        let mut busy = state.begin();
        tokio::time::advance(IDLE).await;
        assert_eq!(state.due().1, Overdue::Idle, "not while something is asked");
        busy.stream();
        assert_eq!(state.due().1, Overdue::Slow, "nor while an answer goes out");
        drop(busy);
        let start = Instant::now();
        let mut clock = Clock::new(Arc::clone(&state));
        assert_eq!((&mut clock).await, Overdue::Drowsy);
        assert_eq!(start.elapsed(), DOZE);
        state.wakes(false);
        assert_eq!(clock.await, Overdue::Idle);
        assert_eq!(start.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_must_be_whole_in_10_seconds() {
        let state = new(false);
        tokio::time::advance(Duration::from_secs(60)).await;
        state.head(true);
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        state.head(true);
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Slow);
        assert_eq!(start.elapsed(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_came_behind_another_request_has_10_seconds_from_the_end_of_that() {
        let state = new(false);
        let busy = state.begin();
        state.head(true);
        tokio::time::advance(IDLE / 2).await;
        assert_eq!(state.due().1, Overdue::Idle, "it waits for us");
        drop(busy);
        let start = Instant::now();
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Slow);
        assert_eq!(start.elapsed(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_its_time_and_idleness_starts_anew_after_it() {
        let state = new(true);
        let busy = state.begin();
        let mut clock = Clock::new(Arc::clone(&state));
        assert!(tokio::time::timeout(Duration::from_secs(1_000), &mut clock).await.is_err());
        drop(busy);
        let start = Instant::now();
        assert_eq!(clock.await, Overdue::Idle);
        assert!(start.elapsed() <= IDLE && start.elapsed() > IDLE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_of_http_2_must_be_whole_in_10_seconds_whatever_else_goes_on() {
        let state = new(true);
        let mut busy = state.begin();
        busy.stream();
        tokio::time::advance(Duration::from_secs(60)).await;
        state.head(true);
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        state.head(true);
        busy.progress();
        drop(state.begin());
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Slow);
        assert_eq!(start.elapsed(), HEAD);
        state.head(false);
        drop(busy);
        assert_eq!(state.due().1, Overdue::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_its_answer_is_dropped() {
        let state = new(false);
        let _busy = state.begin();
        state.wrote(true);
        let start = Instant::now();
        assert_eq!(Clock::new(state).await, Overdue::Slow);
        assert_eq!(start.elapsed(), STALLED);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_no_piece_is_taken_ends_even_on_a_connection_that_is_not_blocked() {
        let state = new(true);
        let mut busy = state.begin();
        busy.stream();
        tokio::time::advance(STALLED / 2).await;
        busy.progress();
        let start = Instant::now();
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Slow);
        assert_eq!(start.elapsed(), STALLED);
        drop(busy);
        assert_eq!(state.due().1, Overdue::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn once_the_process_retires_an_idle_connection_has_5_seconds_more_and_each_answer_the_same() {
        let state = new(false);
        tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        state.retire();
        assert!(state.ends_with_answer());
        let start = Instant::now();
        tokio::time::advance(IDLE_RETIRING - Duration::from_secs(1)).await;
        drop(state.begin());
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Idle);
        assert_eq!(start.elapsed(), 2 * IDLE_RETIRING - Duration::from_secs(1));
        let multiplexed = new(true);
        multiplexed.retire();
        assert!(!multiplexed.ends_with_answer());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_just_coming_when_the_process_retires_has_its_usual_time() {
        let state = new(false);
        state.head(true);
        tokio::time::advance(IDLE_RETIRING).await;
        state.retire();
        let start = Instant::now();
        assert_eq!(Clock::new(Arc::clone(&state)).await, Overdue::Slow);
        assert_eq!(start.elapsed(), HEAD - IDLE_RETIRING);
        assert!(state.cut(), "and is named if the process ends first");
        assert_eq!(state.all_cut.load(Ordering::Relaxed), 1);
    }
}
