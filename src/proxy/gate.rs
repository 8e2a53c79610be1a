//! Stands between a connection of HTTP/1.1 and hyper, and lets through only requests whose head and chunks everybody reads alike.
//!
//! It follows the messages: a head (judged by `head` once it is whole), its body (by length, or by `chunks`), the next head. What it refuses
//! reaches hyper as a request of a few bytes in its place; the service then answers that one with the reason, in its turn, with a body and a
//! line in the log as any other. Nothing of the connection is read as a request after that.
//!
//! In the ordinary case, one whole head in one read, the bytes lie where hyper wants them already and nothing is copied.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    chunks::{BadChunks, Chunks},
    connection::{Lingering, MAX_FORGOTTEN, State},
    head::{self, BadHead, Framing, Search},
};

/// Longest time for which a refused client may go on sending, so that the reset of a connection with unread bytes does not take the refusal with it.
const LINGER: Duration = Duration::from_secs(5);

/// So much is read of the first words on an idle connection, bytes: most heads are shorter, and the rest of the others is read as always.
const FIRST: usize = 2 * 1024;

/// Where a connection is in its messages.
#[derive(Debug)]
enum At {
    Head(Search),
    Body {
        left: u64,
    },
    Chunks {
        chunks: Chunks,
        last: bool,
    },
    /// In chunks that are none.
    Broken,
    /// Whatever comes is nobody's.
    Over,
}

const NEXT: At = At::Head(Search::new());

/// Why nothing more is let through.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    BadHead(BadHead),
    BadChunks,
}

/// The messages of a connection. Pure.
#[derive(Debug)]
struct Walk(At);

impl Walk {
    /// How many bytes of `bytes`, which hyper does not have yet, it may have: never more than up to the end of one request. None: more must come.
    fn admit(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        let At::Head(search) = &mut self.0 else {
            return self.body(bytes);
        };
        let Some(length) = search.end(bytes).map_err(Stop::BadHead)? else {
            return Ok(0);
        };
        let (head, rest) = bytes.split_at(length);
        self.0 = match head::check(head).map_err(Stop::BadHead)? {
            Framing::Length(0) => NEXT,
            Framing::Length(left) => At::Body { left },
            Framing::Chunked { last } => At::Chunks { chunks: Chunks::default(), last },
        };
        // The head goes first in any case, so that there is a request to refuse.
        let body = match &self.0 {
            At::Head(_) => 0,
            _ => self.body(rest).unwrap_or_else(|_| {
                self.0 = At::Broken;
                0
            }),
        };
        Ok(length + body)
    }

    fn body(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        match &mut self.0 {
            At::Body { left } => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                if *left == 0 {
                    self.0 = NEXT;
                }
                Ok(here)
            }
            At::Chunks { chunks, last } => {
                let here = chunks.take(bytes).map_err(|_| Stop::BadChunks)?;
                if chunks.is_whole() {
                    self.0 = if *last { At::Over } else { NEXT };
                }
                Ok(here)
            }
            At::Broken => Err(Stop::BadChunks),
            At::Head(_) | At::Over => Ok(0),
        }
    }
}

/// A connection's bytes as hyper may have them.
pub(crate) struct Gate<S> {
    stream: S,
    state: Arc<State>,
    walk: Walk,
    /// Bytes that came and that hyper does not have yet.
    held: BytesMut,
    /// So many of them it may have.
    ready: usize,
    /// Bytes that came after the last request.
    forgotten: usize,
    lingering: Lingering,
}

impl<S> Gate<S> {
    pub(crate) fn new(stream: S, state: Arc<State>) -> Self {
        let walk = Walk(NEXT);
        Self { stream, state, walk, held: BytesMut::new(), ready: 0, forgotten: 0, lingering: Lingering::default() }
    }

    /// Nothing more is let through but what says so.
    fn stop(&mut self, stop: &Stop) -> io::Result<()> {
        self.walk = Walk(At::Over);
        match stop {
            // The service is reading this body: it says what was wrong with it.
            Stop::BadChunks => {
                self.held = BytesMut::new();
                Err(io::Error::new(io::ErrorKind::InvalidData, BadChunks))
            }
            Stop::BadHead(why) => {
                let stand_in = stand_in(&self.held[..self.held.len().min(head::MAX_HEAD)]);
                self.state.refuse(*why);
                self.held = BytesMut::from(stand_in.as_bytes());
                self.ready = self.held.len();
                Ok(())
            }
        }
    }

    /// Gives hyper what it may have of the bytes that are held; whether that was any.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        if self.ready == 0 && !self.held.is_empty() {
            match self.walk.admit(&self.held) {
                Ok(ready) => self.ready = ready,
                Err(stop) => self.stop(&stop)?,
            }
        }
        let given = self.ready.min(buffer.remaining());
        buffer.put_slice(&self.held[..given]);
        self.held.advance(given);
        self.ready -= given;
        if self.held.is_empty() && self.held.capacity() > 0 {
            // An idle connection holds nothing.
            self.held = BytesMut::new();
        }
        Ok(given > 0)
    }
}

/// What hyper sees in the place of a refused request: its method and target where they can be told, for the log.
fn stand_in(head: &[u8]) -> String {
    let mut fields = [httparse::EMPTY_HEADER; 0];
    let mut request = httparse::Request::new(&mut fields);
    // It has fields, so this ends with an error; what came before them is kept.
    let _ = request.parse(head);
    let line = request.method.zip(request.path).filter(|(method, target)| {
        let told = *method != "CONNECT" && target.starts_with('/') && http::Uri::try_from(*target).is_ok();
        told && method.len() + target.len() < 8 * 1024
    });
    let (method, target) = line.unwrap_or(("-", "/"));
    format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n\r\n")
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// Waits until there is something to read, for a connection on which nothing is under way; whether there was, and not the end.
    pub(crate) fn poll_asks(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.held.is_empty() {
            return Poll::Ready(true);
        }
        let mut scratch = [MaybeUninit::uninit(); FIRST];
        let mut came = ReadBuf::uninit(&mut scratch);
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut came));
        self.held.extend_from_slice(came.filled());
        Poll::Ready(read.is_ok() && !self.held.is_empty())
    }

    /// Takes back what hyper had and did not need.
    pub(crate) fn take_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let rest = std::mem::replace(&mut self.held, BytesMut::from(bytes));
            self.held.extend_from_slice(&rest);
            self.ready += bytes.len();
        }
    }

    /// Reads and forgets until the connection ends, for a while.
    fn forget(&mut self, cx: &mut Context<'_>, scratch: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = scratch.filled().len();
        while self.forgotten < MAX_FORGOTTEN {
            ready!(Pin::new(&mut self.stream).poll_read(cx, scratch))?;
            let came = scratch.filled().len() - before;
            if came == 0 {
                break;
            }
            self.forgotten = MAX_FORGOTTEN.min(self.forgotten + came);
            scratch.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }

    fn let_through(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.give(buffer)? {
                return Poll::Ready(Ok(()));
            }
            if matches!(self.walk.0, At::Over) {
                return self.forget(cx, buffer);
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            let came = &buffer.filled()[before..];
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let admitted = if self.held.is_empty() { self.walk.admit(came) } else { Ok(0) };
            let kept = *admitted.as_ref().unwrap_or(&0);
            self.held.extend_from_slice(&came[kept..]);
            buffer.set_filled(before + kept);
            match admitted {
                Ok(0) => {}
                Ok(_) => return Poll::Ready(Ok(())),
                Err(stop) => self.stop(&stop)?,
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let through = self.let_through(cx, buffer);
        // What is held of a head that is whole follows at the next read.
        self.state.head(matches!(self.walk.0, At::Head(_)) && self.ready == 0 && !self.held.is_empty());
        through
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.walk.0 {
            At::Over => this.lingering.poll(&mut this.stream, cx, LINGER, MAX_FORGOTTEN - this.forgotten),
            _ => Pin::new(&mut this.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// What hyper would be given of these bytes, piece by piece as it gets them, and why nothing more.
    async fn through(bytes: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<BadHead>, bool) {
        let (mut client, gate, state) = gate();
        let bytes = bytes.to_vec();
        let sending = tokio::spawn(async move {
            for piece in bytes.chunks(step) {
                // Nobody reads on once a body is broken.
                let _ = client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
        });
        let (pieces, broke) = read_all(gate).await;
        sending.await.unwrap();
        (pieces, state.refused(), broke)
    }

    fn gate() -> (DuplexStream, Gate<DuplexStream>, Arc<State>) {
        let (client, server) = duplex(1 << 20);
        let state = State::new(false, Arc::default());
        (client, Gate::new(server, Arc::clone(&state)), state)
    }

    async fn read_all(mut gate: Gate<DuplexStream>) -> (Vec<Vec<u8>>, bool) {
        let mut pieces = Vec::new();
        loop {
            let mut piece = vec![0; 8 * 1024];
            match gate.read(&mut piece).await {
                Ok(0) => return (pieces, false),
                Ok(length) => pieces.push(piece[..length].to_vec()),
                Err(_) => return (pieces, true),
            }
        }
    }

    const GET: &str = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
    const POST: &str = "POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    const CHUNKED: &str = "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

    #[tokio::test]
    async fn good_requests_pass_byte_for_byte_and_never_two_in_one_piece() {
        let all = [GET, POST, GET, CHUNKED, CHUNKED, POST, GET].concat();
        for step in [1, 2, 7, 30, all.len()] {
            let (pieces, refused, broke) = through(all.as_bytes(), step).await;
            assert_eq!((refused, broke), (None, false));
            assert_eq!(String::from_utf8(pieces.concat()).unwrap(), all, "in steps of {step}");
            for piece in pieces {
                let heads = String::from_utf8(piece).unwrap().matches("HTTP/1.1").count();
                assert!(heads <= 1);
            }
        }
    }

    #[tokio::test]
    async fn a_refused_head_becomes_a_request_that_stands_for_it_and_is_the_last() {
        for step in [1, 9, 10_000] {
            let bad = format!("{POST}GET /d?q=1 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n{GET}");
            let (pieces, refused, broke) = through(bad.as_bytes(), step).await;
            assert_eq!((refused, broke), (Some(BadHead::SeveralHosts), false));
            assert_eq!(String::from_utf8(pieces.concat()).unwrap(), format!("{POST}GET /d?q=1 HTTP/1.1\r\nConnection: close\r\n\r\n"));
        }
        let (pieces, refused, _) = through(b"G(T / HTTP/1.1\r\n\r\n", 100).await;
        assert_eq!(refused, Some(BadHead::Malformed));
        assert_eq!(pieces.concat(), b"- / HTTP/1.1\r\nConnection: close\r\n\r\n");
    }

    #[tokio::test]
    async fn broken_chunks_break_the_body_and_a_length_beside_chunks_is_the_end() {
        let (_, refused, broke) = through(CHUNKED.replace("5\r\n", "5\n").as_bytes(), 1).await;
        assert_eq!((refused, broke), (None, true));
        let both = CHUNKED.replace("Host", "Content-Length: 5\r\nHost");
        let (pieces, refused, broke) = through(format!("{both}{GET}").as_bytes(), 1).await;
        assert_eq!((refused, broke), (None, false));
        assert_eq!(String::from_utf8(pieces.concat()).unwrap(), both);
    }

    #[tokio::test]
    async fn a_head_that_never_ends_is_refused_at_32_kib() {
        let (mut client, mut gate, state) = gate();
        client.write_all(&[b'a'; head::MAX_HEAD - 1]).await.unwrap();
        let mut piece = [0; 100];
        assert!(tokio::time::timeout(Duration::from_millis(20), gate.read(&mut piece)).await.is_err());
        client.write_all(b"a").await.unwrap();
        assert!(gate.read(&mut piece).await.unwrap() > 0);
        assert_eq!(state.refused(), Some(BadHead::TooLong));
    }

    #[tokio::test]
    async fn a_head_is_open_from_its_first_byte_to_its_last_also_behind_another_request_and_never_after_a_refusal() {
        let (mut client, mut gate, state) = gate();
        let mut piece = [0; 100];
        let mut read = async |bytes: &[u8]| {
            client.write_all(bytes).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(20), gate.read(&mut piece)).await;
            state.is_in_head()
        };
        assert!(!read(b"").await);
        assert!(read(b"GET /a HT").await);
        assert!(!read(b"TP/1.1\r\nHost: x\r\n\r\n").await, "it is hyper's");
        let busy = state.begin();
        assert!(read(b"GET /b").await && !state.cut(), "the one under way tells of the cut");
        drop(busy);
        assert!(state.cut());
        assert!(!read(b" no\r\n\r\n").await, "refused");
        assert!(!read(b"rubbish").await && !state.cut());
        let (mut client, mut gate, state) = self::gate();
        let last = CHUNKED.replace("Host", "Content-Length: 5\r\nHost");
        client.write_all(format!("{last}GET /b").as_bytes()).await.unwrap();
        assert!(gate.read(&mut [0; 1_000]).await.unwrap() > 0 && !state.is_in_head(), "nobody's, behind the last request");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_may_end_what_it_sends_but_not_for_ever() {
        let (mut client, mut gate, _) = gate();
        client.write_all(b"no\r\n\r\n").await.unwrap();
        assert!(gate.read(&mut [0; 100]).await.unwrap() > 0);
        let start = tokio::time::Instant::now();
        gate.shutdown().await.unwrap();
        assert_eq!(start.elapsed(), LINGER);
        let (client, mut unrefused, _) = self::gate();
        unrefused.shutdown().await.unwrap();
        assert_eq!(start.elapsed(), LINGER, "others go at once");
        drop(client);
    }
}

/// hyper behind the gate, as the fuzz target `head` has it.
#[cfg(test)]
#[path = "../fuzzing/head.rs"]
#[allow(unreachable_pub)] // a door to others in a fuzzing build
mod behind;

#[cfg(test)]
mod against_hyper {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::behind;

    const FRAGMENTS: [&[u8]; 46] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b=c HTTP/1.1\r\n",
        b"POST / HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n",
        b"GET http://x/y HTTP/1.1\r\n",
        b"GET /#x HTTP/1.1\r\n",
        b"HEAD /\xc3\xbc HTTP/1.1\r\n",
        b"GET /a<b HTTP/1.1\r\n",
        b"GET x HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Host: x\r\n",
        b"Host: x\r\n",
        b"Host: x\r\n",
        b"host: a b\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\n",
        b"TE: trailers\r\n",
        b"A:\xff\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"abc",
        b"abc",
        b"3\r\nabc\r\n",
        b"3;x=y\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nT: x\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"fffffffffffffff\r\n",
        b"10000000000000000\r\n",
        b"3 \r\nabc\r\n",
    ];

    /// Requests that are mostly good, so that what follows one is reached.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let head = vec(select(&FRAGMENTS[10..28]), 0..4);
        let body = vec(select(&FRAGMENTS[36..]), 0..3);
        (select(&FRAGMENTS[..10]), head, body)
            .prop_map(|(line, head, body)| [line, b"Host: x\r\n", &head.concat(), b"\r\n", &body.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hyper_takes_whatever_is_let_through(requests in vec(request(), 1..4), step in 1_usize..200) {
            behind::connection(&requests.concat(), step);
            behind::alone(&requests.concat());
        }

        #[test]
        fn nothing_that_is_sent_is_refused_by_hyper_itself(fragments in vec(select(&FRAGMENTS[..]), 0..30), step in 1_usize..200) {
            behind::connection(&fragments.concat(), step);
        }
    }

    #[test]
    fn the_seeds_of_the_fuzzer_pass() {
        for seed in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/head")).unwrap() {
            let bytes = std::fs::read(seed.unwrap().path()).unwrap();
            behind::connection(&bytes[1..], usize::from(bytes[0]));
            behind::alone(&bytes[1..]);
        }
    }
}
