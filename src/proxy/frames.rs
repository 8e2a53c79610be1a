//! Counts what a client of HTTP/2 sends that brings no request forward, and ends a connection that consists of it.
//!
//! h2 bounds the memory of a connection, and by itself ends one that resets early, breaks the rules often or never ends its fields. It answers or
//! ignores for ever what costs the client nothing: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, DATA without data, requests that are cancelled
//! once they are under way. Here each such frame costs something, and what is worth answering gives something back.
//!
//! Only the nine bytes before each frame are read (RFC 9113 section 4.1), whose layout is fixed, so nothing here can be of another opinion than h2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::connection::{Lingering, MAX_FORGOTTEN, State};

/// What a connection may owe at most: a browser's greeting is 10 frames, a page that is left cancels 100 requests.
const CREDIT: i64 = 1_000;

/// So much is given back each second.
const EACH_SECOND: i64 = 100;

/// A request pays for the window and the priority that come with it.
const REQUEST: i64 = 2;

/// One that is cancelled has cost more than it was worth.
const RESET: i64 = -4;

/// Everything else.
const OTHER: i64 = -1;

/// Bytes of an upload that pay for one frame: in smaller pieces it is a flood.
const UPLOADED: u64 = 64;

/// Bytes of answers that pay for one frame: clients open their windows by what they have read, the eagerest after each kilobyte.
const ANSWERED: u64 = 256;

/// After the last word of a connection its client may still send for so long.
const LINGER: Duration = Duration::from_secs(2);

/// What every client of HTTP/2 says first.
const PREFACE: u32 = 24;

/// Length of a frame's head.
const FRAME_HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Too many frames that ask for nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many frames that ask for nothing")]
pub(crate) struct Flood;

/// The frames of a connection, as they come. Pure.
#[derive(Debug)]
pub(crate) struct Frames {
    at: At,
    credit: i64,
    paid_until: Instant,
    /// Bytes of answers that have paid for nothing yet.
    answered: u64,
    /// A request's fields have begun and are not whole.
    in_head: bool,
}

#[derive(Debug)]
enum At {
    Preface { left: u32 },
    Head { bytes: [u8; FRAME_HEAD], have: usize },
    Payload { left: u32, ends_head: bool },
}

const NEXT: At = At::Head { bytes: [0; FRAME_HEAD], have: 0 };

impl Frames {
    pub(crate) fn new(now: Instant) -> Self {
        Self { at: At::Preface { left: PREFACE }, credit: CREDIT, paid_until: now, answered: 0, in_head: false }
    }

    /// These bytes came. `now` is asked for only where it matters.
    pub(crate) fn came(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let (taken, next) = match &mut self.at {
                At::Preface { left } => skip(left, bytes, NEXT),
                At::Payload { left, ends_head } => {
                    let ends_head = *ends_head;
                    let (taken, next) = skip(left, bytes, NEXT);
                    self.in_head &= !(next.is_some() && ends_head);
                    (taken, next)
                }
                At::Head { bytes: head, have } => {
                    let taken = (FRAME_HEAD - *have).min(bytes.len());
                    head[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                    *have += taken;
                    let whole = (*have == FRAME_HEAD).then_some(*head);
                    (taken, whole.map(|head| self.frame(head)))
                }
            };
            if let Some(next) = next {
                self.at = next;
            }
            bytes = &bytes[taken..];
            if self.credit < 0 {
                self.collect(now())?;
            }
        }
        Ok(())
    }

    /// So many bytes went out.
    pub(crate) fn went(&mut self, bytes: usize) {
        self.answered += bytes as u64;
        self.earn(self.answered / ANSWERED);
        self.answered %= ANSWERED;
    }

    /// Whether a request's fields are coming.
    pub(crate) fn in_head(&self) -> bool {
        self.in_head
    }

    fn frame(&mut self, head: [u8; FRAME_HEAD]) -> At {
        let [a, b, c, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let ends_head = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
        self.credit += match kind {
            HEADERS => REQUEST,
            RST_STREAM => RESET,
            _ => OTHER,
        };
        if kind == DATA {
            self.earn(u64::from(length) / UPLOADED);
        }
        self.credit = self.credit.min(CREDIT);
        self.in_head |= kind == HEADERS;
        if length > 0 {
            return At::Payload { left: length, ends_head };
        }
        self.in_head &= !ends_head;
        NEXT
    }

    fn earn(&mut self, frames: u64) {
        self.credit = self.credit.saturating_add(i64::try_from(frames).unwrap_or(CREDIT)).min(CREDIT);
    }

    fn collect(&mut self, now: Instant) -> Result<(), Flood> {
        let passed = now.saturating_duration_since(self.paid_until);
        self.earn(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX) * EACH_SECOND.unsigned_abs() / 1_000);
        self.paid_until = now;
        if self.credit < 0 { Err(Flood) } else { Ok(()) }
    }
}

/// Passes over what is left of something; how many bytes that was, and what comes next if it was all.
fn skip(left: &mut u32, bytes: &[u8], next: At) -> (usize, Option<At>) {
    let here = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(*left);
    *left -= here;
    (here as usize, (*left == 0).then_some(next))
}

/// A connection of HTTP/2 whose frames are counted.
pub(crate) struct Metered<S> {
    stream: S,
    state: Arc<State>,
    frames: Frames,
    lingering: Lingering,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, state: Arc<State>) -> Self {
        Self { stream, state, frames: Frames::new(Instant::now()), lingering: Lingering::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buffer);
        this.frames.came(&buffer.filled()[before..], Instant::now).map_err(io::Error::other)?;
        this.state.head(this.frames.in_head());
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &result {
            self.frames.went(*written);
        }
        result
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        if let Poll::Ready(Ok(written)) = &result {
            self.frames.went(*written);
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A request may have been sent before its client saw the GOAWAY.
        let this = &mut *self;
        this.lingering.poll(&mut this.stream, cx, LINGER, MAX_FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], &vec![0; payload]].concat()
    }

    fn greeted() -> (Frames, Instant) {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || now).unwrap();
        (frames, now)
    }

    /// How many times this may come at once, of at most 10,000.
    fn at_once(bytes: &[u8]) -> usize {
        let (mut frames, now) = greeted();
        (0..10_000).take_while(|_| frames.came(bytes, || now).is_ok()).count()
    }

    #[test]
    fn frames_that_ask_for_nothing_have_an_end() {
        const NAMED: [(&str, u8, usize); 6] =
            [("priority", 2, 5), ("settings", 4, 0), ("ping", 6, 8), ("window update", 8, 4), ("continuation", 9, 0), ("unknown", 77, 3)];
        for (name, kind, payload) in NAMED {
            assert_eq!(at_once(&frame(kind, 0, payload)), 1_000, "{name}");
        }
        assert_eq!(at_once(&frame(DATA, 0, 0)), 1_000);
        assert_eq!(at_once(&frame(DATA, 0, 1)), 1_000);
        assert_eq!(at_once(&[frame(HEADERS, END_HEADERS, 10), frame(RST_STREAM, 0, 4)].concat()), 499);
    }

    #[test]
    fn what_clients_do_has_none() {
        let upload = frame(DATA, 0, 64);
        let request = [frame(HEADERS, END_HEADERS, 30), frame(DATA, 1, 10), frame(8, 0, 4)].concat();
        assert_eq!((at_once(&upload), at_once(&request)), (10_000, 10_000));
        let (mut frames, now) = greeted();
        for _ in 0..10_000 {
            frames.went(1_024);
            frames.came(&[frame(8, 0, 4), frame(8, 0, 4)].concat(), || now).unwrap();
        }
    }

    #[test]
    fn each_second_pays_for_a_hundred() {
        let (mut frames, now) = greeted();
        let pings = frame(6, 0, 8).repeat(100);
        for second in 1..1_000 {
            frames.came(&pings, || now + Duration::from_secs(second)).unwrap();
        }
        let at = now + Duration::from_secs(1_000);
        assert!((0..11).any(|_| frames.came(&pings, || at) == Err(Flood)));
    }

    #[test]
    fn a_head_is_open_from_its_first_frame_to_the_end_of_its_last() {
        for step in [1, 4, 1_000] {
            let (mut frames, now) = greeted();
            let mut feed = |bytes: &[u8]| {
                bytes.chunks(step).for_each(|piece| frames.came(piece, || now).unwrap());
                frames.in_head()
            };
            assert!(!feed(&frame(4, 0, 6)));
            assert!(feed(&frame(HEADERS, 0, 20)));
            assert!(feed(&frame(CONTINUATION, 0, 0)));
            let last = frame(CONTINUATION, END_HEADERS, 20);
            assert!(feed(&last[..last.len() - 1]));
            assert!(!feed(&last[last.len() - 1..]));
            assert!(!feed(&frame(HEADERS, END_HEADERS, 20)));
            assert!(!feed(&frame(HEADERS, END_HEADERS, 0)));
        }
    }
}
