//! The body of an answer: made here, or streamed from sq as it comes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::{forward::Rest, in_flight::InFlight, lane::Turn, track::Track, upstream::Upstream};

/// Most bytes of one read from sq.
const READ: usize = 16 * 1024;

/// So many bytes of one answer, then it is somebody else's turn on this thread: encrypting them takes some 30 µs.
const TURN: usize = 64 * 1024;

/// An answer's body, with everything that is held until its last byte is out.
pub(crate) struct AnswerBody {
    first: Option<Bytes>,
    rest: Option<Streamed>,
    pace: Pace,
    track: Track,
}

/// Bytes of one answer since others last had a turn.
#[derive(Default)]
struct Pace(usize);

impl Pace {
    fn sent(&mut self, bytes: usize) {
        self.0 += bytes;
    }

    /// Ready while the turn lasts; else at the next one, behind everybody who can go on now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 < TURN {
            return Poll::Ready(());
        }
        self.0 = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What is still to come from sq, and the tenant's place that it holds.
pub(crate) struct Streamed {
    pub(crate) rest: Rest,
    pub(crate) _held: Held,
}

/// A tenant's place, kept until sq has nothing more to say. In this order: whose turn is next finds the claim to write free.
pub(crate) struct Held {
    _in_flight: InFlight,
    _turn: Turn,
}

impl Held {
    pub(crate) fn new(turn: Turn, in_flight: InFlight) -> Self {
        Self { _in_flight: in_flight, _turn: turn }
    }
}

impl AnswerBody {
    pub(crate) fn new(first: Bytes, rest: Option<Streamed>, mut track: Track) -> Self {
        if rest.is_none() && first.is_empty() {
            track.finished();
        } else {
            // A short one too: a client of HTTP/2 may leave it no room and let it wait here.
            track.streams();
        }
        Self { first: Some(first).filter(|first| !first.is_empty()), rest, pace: Pace::default(), track }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(streamed) = &mut self.rest else {
            return Poll::Ready(None);
        };
        ready!(self.pace.poll(cx));
        let rest = &mut streamed.rest;
        let most = usize::try_from(rest.bytes).unwrap_or(READ).min(READ);
        let piece = ready!(poll_read_some(&rest.stream, most, cx));
        match piece {
            Ok(piece) if !piece.is_empty() => {
                rest.bytes -= piece.len() as u64;
                self.pace.sent(piece.len());
                if rest.bytes == 0
                    && let Some(Streamed { rest, .. }) = self.rest.take()
                {
                    rest.stream.end();
                }
                Poll::Ready(Some(Ok(piece)))
            }
            // The client must see that its answer was cut: an error here makes hyper abort the stream.
            Ok(_) => self.cut(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => self.cut(error),
        }
    }

    fn cut(&mut self, error: io::Error) -> Poll<Option<io::Result<Bytes>>> {
        self.rest = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.poll_rest(cx)),
        };
        if let Some(Ok(piece)) = &piece {
            let length = piece.len();
            self.track.sent(length);
            if self.is_end_stream() {
                self.track.finished();
            }
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        SizeHint::with_exact(first + self.rest.as_ref().map_or(0, |streamed| streamed.rest.bytes))
    }
}

/// Reads at most `most` bytes; none is the end.
fn poll_read_some(stream: &Upstream, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let mut buffer = Vec::with_capacity(most);
    ready!(stream.poll_read(cx, &mut buffer))?;
    // A reserve rounds up, and bytes beyond the announced length are nobody's.
    buffer.truncate(most);
    Poll::Ready(Ok(buffer.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_64_kb_of_one_answer_others_have_their_turn() {
        let mut pace = Pace::default();
        let others = std::cell::Cell::new(0);
        let long = async {
            for _ in 0..3 * TURN / READ {
                std::future::poll_fn(|cx| pace.poll(cx)).await;
                pace.sent(READ);
            }
        };
        let short = async {
            for _ in 0..2 {
                others.set(others.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let long = async {
            long.await;
            assert_eq!(others.get(), 2, "it went on without them");
        };
        tokio::join!(long, short);
    }
}
