//! A connection of HTTP/1.1 that holds no more than it must while nothing is asked on it.
//!
//! hyper keeps a buffer of 8 KiB for the next head, and room for a whole request's work, as long as its connection lives. Most connections of a
//! host are idle, so hyper is there only from the first byte of a request on, and goes again once the connection was idle for a while (see
//! `connection`). What stays is TLS and the gate, which holds nothing either.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{
    body::{Body, Incoming},
    server::conn::http1::{Builder, Connection, Parts},
    service::HttpService,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{connection::State, gate::Gate};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection, with hyper or without.
pub(crate) struct Dozing<T, S>
where
    S: HttpService<Incoming>,
{
    builder: Builder,
    state: Arc<State>,
    now: Now<T, S>,
}

enum Now<T, S>
where
    S: HttpService<Incoming>,
{
    /// Nothing is asked. `fresh`: nothing ever was.
    Asleep {
        io: Gate<T>,
        service: S,
        fresh: bool,
    },
    /// In a box, since it is larger by far than what is there most of the time.
    Awake(Box<Connection<TokioIo<Gate<T>>, S>>),
    /// Saying goodbye to somebody who asks nothing.
    Closing(Gate<T>),
    Gone,
}

impl<T, S, B> Dozing<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Begins asleep.
    pub(crate) fn new(builder: Builder, state: Arc<State>, io: Gate<T>, service: S) -> Self {
        Self { builder, state, now: Now::Asleep { io, service, fresh: true } }
    }

    /// Lets go of what only a request needs. For a connection on which none is under way and all is out.
    pub(crate) fn doze(mut self: Pin<&mut Self>) {
        self.state.wakes(false);
        self.now = match std::mem::replace(&mut self.now, Now::Gone) {
            Now::Awake(connection) => {
                let Parts { io, read_buf, service, .. } = connection.into_parts();
                let mut io = io.into_inner();
                io.take_back(&read_buf);
                Now::Asleep { io, service, fresh: false }
            }
            now => now,
        };
    }

    /// Ends the connection after what it has asked; one that has just come is let ask first, as hyper does it.
    pub(crate) fn goodbye(mut self: Pin<&mut Self>) {
        match std::mem::replace(&mut self.now, Now::Gone) {
            Now::Asleep { io, fresh: false, .. } => self.now = Now::Closing(io),
            Now::Asleep { io, service, fresh: true } => self.wake(io, service),
            now => self.now = now,
        }
        if let Now::Awake(connection) = &mut self.now {
            Pin::new(&mut **connection).graceful_shutdown();
        }
    }

    fn wake(&mut self, io: Gate<T>, service: S) {
        self.state.wakes(true);
        self.now = Now::Awake(Box::new(self.builder.serve_connection(TokioIo::new(io), service)));
    }
}

// Nothing in it is pinned: what hyper needs to be pinned, it keeps in boxes.
impl<T, S: HttpService<Incoming>> Unpin for Dozing<T, S> {}

impl<T, S, B> Future for Dozing<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.now {
                Now::Awake(connection) => return Pin::new(&mut **connection).poll(cx),
                Now::Asleep { io, .. } => {
                    let asks = ready!(io.poll_asks(cx));
                    if let Now::Asleep { io, service, .. } = std::mem::replace(&mut self.now, Now::Gone) {
                        if asks {
                            self.wake(io, service);
                        } else {
                            self.now = Now::Closing(io);
                        }
                    }
                }
                Now::Closing(io) => {
                    // However it ends: nobody is there to be told.
                    let _ = ready!(Pin::new(io).poll_shutdown(cx));
                    self.now = Now::Gone;
                }
                Now::Gone => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{super::connection::Overdue, *};

    const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

    type Answered = std::future::Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn connection() -> (DuplexStream, Dozing<DuplexStream, impl HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible>>) {
        let (client, server) = duplex(64 * 1024);
        let state = State::new(false, Arc::default());
        let echo =
            |request: Request<Incoming>| -> Answered { std::future::ready(Ok(Response::new(Full::from(request.uri().path().to_owned())))) };
        let gate = Gate::new(server, Arc::clone(&state));
        (client, Dozing::new(Builder::new(), state, gate, service_fn(echo)))
    }

    /// What `client` does while the connection goes on; `None` where that ended first.
    async fn while_on<R>(connection: impl Future, client: impl Future<Output = R>) -> Option<R> {
        tokio::select! {
            biased;
            _ = connection => None,
            result = client => Some(result),
        }
    }

    /// Asks, in two pieces.
    async fn ask(client: &mut DuplexStream, cut: usize) -> String {
        client.write_all(&GET[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&GET[cut..]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n/a") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_serves_from_its_sleep_however_the_head_comes_and_sleeps_again() {
        let (mut client, mut connection) = connection();
        for cut in 0..GET.len() {
            assert!(matches!(connection.now, Now::Asleep { .. }));
            let answer = while_on(&mut connection, ask(&mut client, cut)).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(matches!(connection.now, Now::Awake(_)) && connection.state.due().1 == Overdue::Drowsy);
            Pin::new(&mut connection).doze();
            assert!(connection.state.due().1 == Overdue::Idle, "nothing is left to let go of");
        }
    }

    #[tokio::test]
    async fn goodbye_ends_one_that_dozes_at_once_and_one_that_has_just_come_after_its_first_answer() {
        let (mut client, mut connection) = self::connection();
        while_on(&mut connection, ask(&mut client, 5)).await.unwrap();
        Pin::new(&mut connection).doze();
        Pin::new(&mut connection).goodbye();
        connection.await.unwrap();
        assert_eq!(client.read(&mut [0; 10]).await.unwrap(), 0);

        let (mut client, mut connection) = self::connection();
        Pin::new(&mut connection).goodbye();
        let answer = while_on(&mut connection, ask(&mut client, 5)).await;
        // The answer is out before the end is.
        assert!(answer.is_none_or(|answer| answer.contains("connection: close")));
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_a_connection_that_sleeps() {
        let (client, connection) = connection();
        drop(client);
        connection.await.unwrap();
    }

    #[tokio::test]
    async fn no_byte_that_hyper_had_is_lost() {
        let (mut client, server) = duplex(1024);
        let mut gate = Gate::new(server, State::new(false, Arc::default()));
        gate.take_back(b"GET /a HT");
        client.write_all(b"x").await.unwrap();
        let mut piece = [0; 100];
        assert_eq!(gate.read(&mut piece).await.unwrap(), 9);
        assert_eq!(&piece[..9], b"GET /a HT");
    }
}
