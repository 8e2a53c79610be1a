//! Accept, TLS, HTTP/1.1 or HTTP/2 by ALPN, and the end of it all.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use super::{
    arrival::{Arrived, arrive},
    client_address,
    connection::{Clock, Overdue, State, Watched},
    doze::Dozing,
    first_words::Listeners,
    frames::Metered,
    gate::Gate,
    handshakes::Handshakes,
    head::MAX_HEAD,
    measure::Counted,
    neighbours::Neighbours,
    plain,
    service::{Shared, handle},
};
use http::{Request, header::STRICT_TRANSPORT_SECURITY};
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

/// Most connections at once, where there are descriptors for them.
const MAX_CONNECTIONS: usize = 20_000;

/// Most connections to the plain port at once. They last 10 s at most, and are not to take places from those that are served.
const MAX_PLAIN: usize = 512;

/// Most clients at their handshake at once, where there are places for so many: each takes about 20 KB, and one that is at work some 100 ms.
const MAX_HANDSHAKES: usize = 4_096;

/// One address has at most one in so many places: enough for a whole office behind one, and three such leave room for the others.
const SHARE: usize = 4;

/// Descriptors that are not connections: logs, pages, listeners, the runtime's own.
const OTHER_DESCRIPTORS: u64 = 100;

/// Streams at once on a connection of HTTP/2 (RFC 9113 section 6.5.2 wants at least 100).
const MAX_STREAMS: u32 = 100;

/// Streams that a client may open and take back before they are looked at (CVE-2023-44487), and such as must be taken back here since it broke
/// the rules (CVE-2025-8671), on one connection. A good client does neither; one on a bad line may cancel what it has asked for.
const MAX_EARLY_RESETS: usize = 20;
const MAX_ERRORS: usize = 128;

/// Unread bytes of an upload, per stream and per connection of HTTP/2: enough for 100 Mbit/s over 80 ms.
const WINDOW: u32 = 1 << 20;

/// Time for the last bytes after a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// After a failed accept (no descriptor left, say).
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accept and serve.
    Serving,
    /// Accept nothing more, and let each connection end as its client does not notice: another process serves on.
    Retiring,
    /// Accept nothing more, end each connection after what it has asked.
    Draining,
    /// Drop whatever is left.
    Cutting,
}

/// Everything that faces the network.
pub(crate) struct Server {
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    room: Arc<Semaphore>,
    /// For connections to the plain port.
    plain_room: Arc<Semaphore>,
    handshakes: Arc<Handshakes>,
    neighbours: Arc<Neighbours>,
    /// What `room` holds when nobody is connected.
    seats: usize,
    /// The same of `plain_room`.
    plain_seats: usize,
    listening: Vec<JoinHandle<()>>,
    /// Handed back to the next agent.
    listeners: Vec<std::net::TcpListener>,
}

impl Server {
    /// Each connection may need two of the process's `descriptors`: its own, and one to sq.
    pub(crate) fn new(shared: Arc<Shared>, descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX);
        let plain = (descriptors / 16).clamp(1, MAX_PLAIN);
        let seats = (descriptors.saturating_sub(plain) / 2).clamp(1, MAX_CONNECTIONS);
        Self {
            shared,
            phase: watch::Sender::new(Phase::Serving),
            room: Arc::new(Semaphore::new(seats)),
            plain_room: Arc::new(Semaphore::new(plain)),
            handshakes: Handshakes::new((seats / 4).min(MAX_HANDSHAKES)),
            neighbours: Neighbours::new(seats / SHARE),
            seats,
            plain_seats: plain,
            listening: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// Accepts on these from now on, and no longer on the former ones. Call it inside the runtime.
    pub(crate) fn listen(&mut self, Listeners { tls, plain }: Listeners) -> io::Result<()> {
        let (mut listeners, tls) = accepting(tls)?;
        let (plain_listeners, plain) = accepting(plain)?;
        let https = listeners.first().and_then(|listener| listener.local_addr().ok()).map_or(443, |address| address.port());
        listeners.extend(plain_listeners);
        self.stop_listening();
        for listener in tls {
            let (shared, places) = (Arc::clone(&self.shared), self.places());
            self.listening.push(tokio::spawn(accept(listener, shared, self.phase.subscribe(), places)));
        }
        for listener in plain {
            let (shared, room) = (Arc::clone(&self.shared), Arc::clone(&self.plain_room));
            self.listening.push(tokio::spawn(plain::accept(listener, https, shared, self.phase.subscribe(), room)));
        }
        self.listeners = listeners;
        Ok(())
    }

    /// What it listens on.
    pub(crate) fn listeners(&self) -> &[std::net::TcpListener] {
        &self.listeners
    }

    /// What all requests share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn places(&self) -> Places {
        let (room, neighbours, handshakes) = (Arc::clone(&self.room), Arc::clone(&self.neighbours), Arc::clone(&self.handshakes));
        Places { room, neighbours, handshakes }
    }

    fn stop_listening(&mut self) {
        self.listening.drain(..).for_each(|task| task.abort());
    }

    /// Begins to end: accepts nothing more. What waits in the listeners' queues is whoever else's has them. `phase` is how: retiring or draining.
    pub(crate) fn end(&mut self, phase: Phase) {
        self.stop_listening();
        self.listeners.clear();
        self.phase.send_replace(phase);
    }

    /// Waits until `deadline` for what is under way and cuts the rest. Returns how many requests that were. May be dropped and called again.
    pub(crate) async fn finish(&self, deadline: Instant) -> u64 {
        if timeout_at(deadline, self.quiet()).await.is_err() {
            let (connections, in_flight) = self.under_way();
            tracing::warn!(connections, in_flight, "cutting what did not finish in time");
            self.phase.send_replace(Phase::Cutting);
            // Long enough for each connection to say whom it cuts.
            let _ = timeout(Duration::from_secs(1), self.quiet()).await;
        }
        self.shared.cut.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn under_way(&self) -> (usize, u64) {
        let in_flight = self.shared.in_flight.load(std::sync::atomic::Ordering::Relaxed);
        // One on the plain port lasts 10 s at most; a host that stops does not wait for it.
        let retires = *self.phase.borrow() == Phase::Retiring;
        let plain = if retires { self.plain_seats - self.plain_room.available_permits() } else { 0 };
        (self.seats - self.room.available_permits() + plain, in_flight)
    }

    async fn quiet(&self) {
        while self.under_way() != (0, 0) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Listeners as they came, and as the runtime accepts on them.
fn accepting(listeners: Vec<OwnedFd>) -> io::Result<(Vec<std::net::TcpListener>, Vec<TcpListener>)> {
    let mut both = (Vec::with_capacity(listeners.len()), Vec::with_capacity(listeners.len()));
    for listener in listeners.into_iter().map(std::net::TcpListener::from) {
        listener.set_nonblocking(true)?;
        both.1.push(TcpListener::from_std(listener.try_clone()?)?);
        both.0.push(listener);
    }
    Ok(both)
}

/// What bounds connections.
#[derive(Clone)]
struct Places {
    room: Arc<Semaphore>,
    neighbours: Arc<Neighbours>,
    handshakes: Arc<Handshakes>,
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, phase: watch::Receiver<Phase>, places: Places) {
    loop {
        // Without room the kernel's queue holds them. The semaphore is never closed.
        let Ok(place) = Arc::clone(&places.room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Behind a load balancer all come from one address.
                let live = shared.live.get();
                let is_balancer = live.front.trusted.has(peer.ip().to_canonical());
                let seat = if is_balancer { None } else { places.neighbours.enter(peer.ip()) };
                live.meters.note_connection(seat.is_some() || is_balancer);
                if seat.is_none() && !is_balancer {
                    tracing::debug!(%peer, "an address has as many connections as it may");
                    continue;
                }
                let (shared, phase, handshakes) = (Arc::clone(&shared), phase.clone(), Arc::clone(&places.handshakes));
                tokio::spawn(async move {
                    let here = Arc::clone(&shared);
                    let _places = (place, seat, Counted::new(&here.connections));
                    connection(stream, peer, shared, phase, handshakes).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    handshakes: Arc<Handshakes>,
) {
    // Only a latency matter.
    let _ = stream.set_nodelay(true);
    let live = shared.live.get();
    let Some(Arrived { stream, peer }) = Box::pin(arrive(stream, address, &live, &handshakes)).await else { return };
    let trusted = live.front.trusted.has(peer).then(|| live.front.trusted.clone());
    let hsts = live.hsts.clone();
    drop(live);
    let multiplexed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let state = State::new(multiplexed, Arc::clone(&shared.cut));
    let io = Watched::new(stream, Arc::clone(&state));
    let for_service = Arc::clone(&state);
    let service = service_fn(move |request: Request<Incoming>| {
        for_service.ask();
        let client = trusted.as_ref().map_or(peer, |trusted| client_address::of(peer, trusted, request.headers()));
        let answered = handle(Arc::clone(&shared), client, Arc::clone(&for_service), request);
        let hsts = hsts.clone();
        async move {
            let mut response = answered.await;
            if let Some(hsts) = hsts {
                response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
            }
            Ok::<_, Infallible>(response)
        }
    });
    if multiplexed {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .max_pending_accept_reset_streams(MAX_EARLY_RESETS)
            .max_local_error_reset_streams(MAX_ERRORS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let io = TokioIo::new(Metered::new(io, Arc::clone(&state)));
        let connection = builder.serve_connection(io, service);
        // In a box, as is what comes before: most connections are of HTTP/1.1 and idle, and a task is as large as the largest of what it may be.
        Box::pin(drive(connection, http2::Connection::graceful_shutdown, |_| {}, address, &state, phase)).await;
    } else {
        let mut builder = http1::Builder::new();
        // Times are ours (see `connection`), since hyper counts idleness as a slow head.
        builder.header_read_timeout(None).max_header_size(MAX_HEAD).half_close(false);
        let connection = Dozing::new(builder, Arc::clone(&state), Gate::new(io, Arc::clone(&state)), service);
        drive(connection, Dozing::goodbye, Dozing::doze, address, &state, phase).await;
    }
}

/// Drives a connection to its end, or ends it where it is overdue or the process ends.
async fn drive<C>(
    connection: C,
    goodbye: fn(Pin<&mut C>),
    doze: fn(Pin<&mut C>),
    peer: SocketAddr,
    state: &Arc<State>,
    mut phase: watch::Receiver<Phase>,
) where
    C: Future<Output = hyper::Result<()>>,
{
    tokio::pin!(connection);
    let mut clock = Clock::new(Arc::clone(state));
    let mut last = None;
    // What the process does is looked at first of all: it may have changed before there was a connection.
    phase.mark_changed();
    let mut owes_goodbye = false;
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "a connection broke");
                }
                return;
            }
            // Only a poll of the connection, which came first, can bring a request.
            () = poll_fn(|_| if state.was_asked() { Poll::Ready(()) } else { Poll::Pending }), if owes_goodbye => {
                goodbye(connection.as_mut());
                owes_goodbye = false;
            }
            // A head that is coming is let come: hyper, which does not see it yet, would close at once.
            () = poll_fn(|_| if state.is_in_head() { Poll::Pending } else { Poll::Ready(()) }), if draining => {
                goodbye(connection.as_mut());
                draining = false;
            }
            overdue = &mut clock, if last.is_none() => match overdue {
                Overdue::Drowsy => doze(connection.as_mut()),
                Overdue::Slow => {
                    tracing::debug!(%peer, "a client was too slow");
                    return;
                }
                Overdue::Idle => {
                    goodbye(connection.as_mut());
                    last = Some(Instant::now() + GOODBYE);
                }
            },
            () = sleep_until(last.unwrap_or_else(Instant::now)), if last.is_some() => return,
            Ok(()) = phase.changed() => match *phase.borrow_and_update() {
                Phase::Serving => {}
                Phase::Retiring => {
                    state.retire();
                    // GOAWAY takes in what is on its way here. A client that has just connected is let ask first: not every one would ask again.
                    owes_goodbye = state.is_multiplexed();
                }
                Phase::Draining => draining = true,
                Phase::Cutting => {
                    if state.cut() {
                        tracing::warn!(%peer, "cut: the head of a request was not whole in time");
                    }
                    return;
                }
            },
        }
    }
}
