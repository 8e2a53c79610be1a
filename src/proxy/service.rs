//! The way of one request (but for a webhook, which is for the agent): classify -> auth -> route -> rate and quota -> room -> body -> park -> lane -> forward -> answer.
//!
//! The order matters: nothing is read of a body before its sender is known and within its rate; nothing is held of a tenant's lane while a
//! body is still coming; and the row is looked at again when the request counts as in flight.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, request::Parts};
use hyper::body::{Body, Incoming};
use tokio::sync::mpsc;

use super::{
    access_log::{AccessLog, Entry},
    answer::{AnswerBody, Held, Streamed},
    auth::{AuthError, Proof},
    classify::{Kind, Verdict, classify},
    clock,
    connection::State,
    control::NudgeReason,
    forward::{Answer, Exchange, Failure, exchange},
    guarded::{Guarded, NoAnswer},
    guardian::Guardian,
    head::{self, BadHead},
    headers::{self, UpstreamHead},
    in_flight::InFlight,
    lane::{Turn, Width},
    live::{Current, Live},
    measure::{self, Known},
    park::{self, Avoid, Parking},
    problem::Problem,
    quota::{self, Allowance},
    request_id::{RequestId, RequestIds},
    room::{self, Growth},
    tenant::{Tenant, Tenants},
    trace::Trace,
    track::Track,
    unknown_kid::UnknownKids,
    upload::{self, Share},
    webhook::{self, Webhooks},
};
use crate::{
    desired::TenantId,
    guard::{Call, Durability, Target, wire::Write},
    route::{Busy, Route, RouteState, SlotMeters},
};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) live: Current,
    pub(crate) tenants: Tenants,
    pub(crate) parking: Arc<Parking>,
    pub(crate) ids: RequestIds,
    pub(crate) log: AccessLog,
    /// To the agent; full or unread means dropped.
    pub(crate) nudges: mpsc::Sender<(TenantId, NudgeReason)>,
    /// Has keys renewed.
    pub(crate) unknown_kids: UnknownKids,
    /// What is said to the agent of its repository.
    pub(crate) webhooks: Webhooks,
    /// Guards writes.
    pub(crate) guardian: Guardian,
    /// Bytes of request bodies in memory.
    pub(crate) body_memory: Arc<AtomicU64>,
    /// Clients of this process that are connected.
    pub(crate) connections: AtomicU64,
    /// Requests of this process that wait for their turn.
    pub(crate) queued: AtomicU64,
    /// Requests of this process in flight to sq.
    pub(crate) in_flight: Arc<AtomicU64>,
    /// Requests that did not finish before this process had to end.
    pub(crate) cut: Arc<AtomicU64>,
}

/// Answers one request, whatever happens.
pub(crate) fn handle(
    shared: Arc<Shared>,
    peer: IpAddr,
    connection: Arc<State>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<AnswerBody>> {
    let (parts, body) = request.into_parts();
    // Now, not when the future is polled: the head of the next request may have been refused by then.
    let readable = readable(&parts, &connection);
    answer(shared, peer, connection, parts, body, readable)
}

async fn answer(
    shared: Arc<Shared>,
    peer: IpAddr,
    connection: Arc<State>,
    parts: Parts,
    mut body: Incoming,
    readable: Result<(), BadHead>,
) -> Response<AnswerBody> {
    let id = shared.ids.of(&parts.headers);
    let trace = Trace::of(&parts.headers);
    let mut track = Track::new(entry(&parts, &id, trace.as_ref(), peer), shared.log.clone(), connection.begin());
    let mut allowance = None;
    let mut ends = false;
    let served = match readable {
        Ok(()) => {
            let asks = Asks { parts: &parts, id: &id, trace: trace.as_ref(), peer };
            serve(&shared, asks, &mut body, &mut track, &mut allowance).await
        }
        Err(why) => Err(Problem::BadHead(why)),
    };
    let (mut response, rest) = match served {
        Ok(Reply::Local(response)) => (response.map(Bytes::from), None),
        Ok(Reply::Upstream { answer, held }) => from_sq(answer, held, &id),
        Err(problem) => {
            track.refused(&shared, problem.slug());
            // What comes after a body that is none is nobody's.
            ends = problem.breaks_body() && !connection.is_multiplexed();
            let_finish(problem, &parts, body, &connection);
            (problem.response(&id).map(Bytes::from), None)
        }
    };
    if let Some(allowance) = &allowance {
        allowance.describe(response.headers_mut());
    }
    if ends || connection.ends_with_answer() {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(entry) = track.entry() {
        entry.status = response.status().as_u16();
    }
    response.map(|first| AnswerBody::new(first, rest, track))
}

/// Whether everybody reads the head alike. That of HTTP/1.1 was judged before it was parsed (see `gate`).
fn readable(parts: &Parts, connection: &State) -> Result<(), BadHead> {
    match connection.refused() {
        Some(why) => Err(why),
        None if connection.is_multiplexed() => head::check_framed(parts),
        None => Ok(()),
    }
}

/// Lets a refused client send its body to the end, beside the answer. Not one that asked first (`Expect`): reading would invite it to send.
fn let_finish(problem: Problem, parts: &Parts, body: Incoming, connection: &Arc<State>) {
    if !problem.breaks_body() && !body.is_end_stream() && !parts.headers.contains_key(http::header::EXPECT) {
        let busy = connection.begin();
        tokio::spawn(async move {
            upload::discard(body).await;
            drop(busy);
        });
    }
}

/// An answer, before its body is put in place.
enum Reply {
    Local(Response<Vec<u8>>),
    Upstream { answer: Answer, held: Held },
}

fn from_sq(answer: Answer, held: Held, id: &RequestId) -> (Response<Bytes>, Option<Streamed>) {
    let mut response = Response::new(answer.first);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    headers::every_answer(response.headers_mut(), id);
    let streamed = answer.rest.map(|rest| Streamed { rest, _held: held });
    (response, streamed)
}

fn entry(parts: &Parts, id: &RequestId, trace: Option<&Trace>, peer: IpAddr) -> Entry {
    Entry {
        at: SystemTime::now(),
        request_id: id.clone(),
        trace: trace.map(Trace::id),
        peer,
        tenant: None,
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        version: parts.version,
        status: 0,
        bytes_in: 0,
        bytes_out: 0,
        total: std::time::Duration::ZERO,
        auth: std::time::Duration::ZERO,
        parked: std::time::Duration::ZERO,
        upstream: std::time::Duration::ZERO,
        refused: None,
        cut: false,
    }
}

/// A request, as all who work on it see it.
#[derive(Clone, Copy)]
struct Asks<'a> {
    parts: &'a Parts,
    id: &'a RequestId,
    trace: Option<&'a Trace>,
    peer: IpAddr,
}

async fn serve(
    shared: &Arc<Shared>,
    asks: Asks<'_>,
    body: &mut Incoming,
    track: &mut Track,
    allowance: &mut Option<Allowance>,
) -> Result<Reply, Problem> {
    let Asks { parts, id, peer, .. } = asks;
    if parts.uri.path() == webhook::PATH
        && let live = shared.live.get()
        && let Some(seal) = &live.webhook
    {
        let length = shared.webhooks.take(seal, peer, parts, body).await?;
        if let Some(entry) = track.entry() {
            entry.bytes_in = length;
        }
        return Ok(Reply::Local(webhook::taken(id)));
    }
    let kind = match classify(&parts.method, parts.uri.path()) {
        Verdict::Forward(kind) => kind,
        Verdict::Preflight => return Ok(Reply::Local(headers::preflight(id))),
        Verdict::MethodNotAllowed => return Err(Problem::MethodNotAllowed),
        Verdict::Favicon => return Err(Problem::NoFavicon),
    };
    let began = Instant::now();
    let mut live = shared.live.get();
    let mut authorized = authorize(&live, parts, track);
    if matches!(authorized, Err(Problem::Unauthorized(AuthError::UnknownKid)))
        && live.keys_renew
        && shared.unknown_kids.renewed(&shared.live, &live).await
    {
        live = shared.live.get();
        authorized = authorize(&live, parts, track);
    }
    track.authorized(began.elapsed());
    let how = authorized.as_ref().map(|(.., how)| *how).map_err(|problem| *problem);
    measure::auth(how).into_iter().for_each(|number| live.meters.note_auth(number));
    let (who, route, _) = authorized?;
    if let Some(refusal) = allowance.insert(admit(&live, &route)?).refusal() {
        return Err(refusal);
    }
    let guarded = guarded(kind, &route, parts)?;
    let tenant = shared.tenants.at(route.slot).ok_or(Problem::TableBusy)?;
    let mut share = Share::of(&shared.body_memory, tenant);
    let body = upload::read(body, route.limits.body_max, &mut share).await?;
    if let Some(entry) = track.entry() {
        entry.bytes_in = body.iter().map(|piece| piece.len() as u64).sum();
    }
    let visit = Visit { shared, tenant, asks, kind, who: &who, guarded };
    visit.dispatch(route, body, share, track).await
}

/// What a request writes, where the guard is to know of it, and whether that may become larger. Refused is what may not be written at all.
fn guarded(kind: Kind, route: &Route, parts: &Parts) -> Result<Option<(Target, Growth)>, Problem> {
    if kind == Kind::Read {
        return Ok(None);
    }
    let guarded = route.limits.durability != Durability::Off;
    let growth = room::judge(route, Call::of(parts.uri.path()), guarded)?;
    if !guarded {
        return Ok(None);
    }
    let target = Target::of(parts.uri.path(), parts.uri.query()).transpose().map_err(Problem::BadName)?;
    Ok(target.map(|target| (target, growth)))
}

/// Whose request it is, and that they may come in.
fn authorize(live: &Arc<Live>, parts: &Parts, track: &mut Track) -> Result<(TenantId, Route, Known), Problem> {
    let now = clock::unix_seconds(SystemTime::now());
    let mut belongs_to = |id: &TenantId| {
        if let Some(entry) = track.entry() {
            entry.tenant = Some(id.clone());
        }
    };
    let proof = live.auth.authenticate(&parts.headers, now).map_err(Problem::Unauthorized)?;
    let how = match &proof {
        Proof::Token(_) => Known::TokenVerified,
        Proof::Known(_) => Known::TokenCached,
        Proof::ApiKey(_) => Known::ApiKey,
    };
    let (id, route) = match proof {
        Proof::Token(identity) | Proof::Known(identity) => {
            belongs_to(&identity.id);
            let route = look(live, &identity.id)?;
            identity.not_revoked(route.tokens_valid_after).map_err(Problem::Unauthorized)?;
            (identity.id, route)
        }
        Proof::ApiKey(digest) => {
            let (id, route) = owner(live, &digest)?;
            belongs_to(&id);
            (id, route)
        }
    };
    track.belongs_to(live, route.slot);
    if route.state == RouteState::Suspended {
        return Err(Problem::Suspended);
    }
    Ok((id, route, how))
}

/// Whose API key has this SHA-256. A key that was taken out of tenants.toml is nobody's from the next publish on.
fn owner(live: &Live, digest: &[u8; 32]) -> Result<(TenantId, Route), Problem> {
    let (id, route) = found(live, live.routes.lookup_api_key(digest), Problem::Unauthorized(AuthError::UnknownApiKey))?;
    Ok((TenantId::parse(&id).map_err(|_| Problem::TableBusy)?, route))
}

/// Counts the request and asks rate and quota.
fn admit(live: &Live, route: &Route) -> Result<Allowance, Problem> {
    let slot = live.activity.slot(route.slot).ok_or(Problem::TableBusy)?;
    let now_ns = clock::monotonic_ns();
    slot.note_request(now_ns);
    Ok(quota::ask(slot, &route.limits, now_ns, clock::unix_seconds(SystemTime::now())))
}

fn look(live: &Live, id: &TenantId) -> Result<Route, Problem> {
    found(live, live.routes.lookup(id.as_str()), Problem::NoSuchTenant)
}

/// What a look into the route table found; `nobody` where it is in it under no such name.
fn found<T>(live: &Live, looked: Result<Option<T>, Busy>, nobody: Problem) -> Result<T, Problem> {
    match looked {
        Ok(Some(found)) => Ok(found),
        // A table that was never published says nothing about anybody.
        Ok(None) if live.routes.generation() == 0 => Err(Problem::TableBusy),
        Ok(None) => Err(nobody),
        Err(Busy) => Err(Problem::TableBusy),
    }
}

/// How an exchange ended, and all that went into it.
type Sent = (Result<Answer, NoAnswer>, Exchange, Held, Share);

/// A request that was let in, on its way to its tenant's instance.
struct Visit<'a> {
    shared: &'a Arc<Shared>,
    tenant: &'a Arc<Tenant>,
    asks: Asks<'a>,
    kind: Kind,
    who: &'a TenantId,
    /// What it writes, where that is to be guarded, and whether that may become larger.
    guarded: Option<(Target, Growth)>,
}

impl Visit<'_> {
    /// Finds a ready instance, waits for a turn and sends the request: again only where nothing of it was acted on.
    async fn dispatch(&self, mut route: Route, mut body: Vec<Bytes>, mut share: Share, track: &mut Track) -> Result<Reply, Problem> {
        let mut avoid: Option<Avoid> = None;
        let mut deadline = None;
        loop {
            let waiting = Instant::now();
            let place = self.place(&mut route, avoid.as_ref(), &mut deadline).await;
            track.parked(waiting.elapsed());
            let (live, held) = place?;
            // The row may have changed while the request waited for its turn.
            route = look(&live, self.who)?;
            if !park::may_go(&route, avoid.as_ref(), tokio::time::Instant::now())? {
                continue;
            }
            let sent = Instant::now();
            let request = Exchange { port: route.port, head: self.head(&live, &route, &body), body };
            let (result, request, held, kept) = self.send(&live, &route, request, held, share).await?;
            (body, share) = (request.body, kept);
            if let Some(entry) = track.entry() {
                entry.upstream += sent.elapsed();
            }
            match result {
                Ok(answer) => {
                    if let Some(slot) = live.activity.slot(route.slot) {
                        slot.note_answer(clock::monotonic_ns());
                        if self.kind == Kind::Mutation && answer.status.is_success() {
                            slot.note_write();
                        }
                    }
                    return Ok(Reply::Upstream { answer, held });
                }
                Err(NoAnswer::Failed(Failure::Broken)) => return Err(Problem::BadAnswer),
                Err(NoAnswer::Failed(Failure::TimedOut)) => return Err(Problem::UpstreamTimeout),
                Err(NoAnswer::Refused(problem)) => return Err(problem),
                Err(NoAnswer::Undone) => {
                    drop(held);
                    return Err(self.undone(route).await);
                }
                Err(NoAnswer::Failed(Failure::Refused)) => {
                    self.nudge(NudgeReason::Refused);
                    avoid = Some(Avoid::refused(&route));
                }
                Err(NoAnswer::Failed(Failure::WrongInstance)) => {
                    self.nudge(NudgeReason::WrongInstance);
                    avoid = Some(Avoid::wrong(&route));
                }
                Err(NoAnswer::NotBefore) => {
                    self.nudge(NudgeReason::InDoubt);
                    avoid = Some(Avoid::wrong(&route));
                }
            }
        }
    }

    /// Waits for an instance that is ready, for a turn in the lane, and for the end of what another proxy writes; then the request is in flight.
    async fn place(
        &self,
        route: &mut Route,
        avoid: Option<&Avoid>,
        deadline: &mut Option<tokio::time::Instant>,
    ) -> Result<(Arc<Live>, Held), Problem> {
        let turn = self.turn(route, avoid, deadline).await?;
        let live = self.shared.live.get();
        let in_flight = InFlight::enter(&live, route.slot, self.kind, &self.shared.in_flight).await?;
        Ok((live, Held::new(turn, in_flight)))
    }

    /// Waits for an instance that is ready, then for a turn in the lane. `deadline` is set by the first wait for an instance, and is for all of them.
    async fn turn(&self, route: &mut Route, avoid: Option<&Avoid>, deadline: &mut Option<tokio::time::Instant>) -> Result<Turn, Problem> {
        let now = tokio::time::Instant::now();
        if !park::may_go(route, avoid, now)? {
            let deadline = *deadline.get_or_insert(now + park::MAX_WAIT);
            self.nudge(NudgeReason::Parked);
            let look = || look(&self.shared.live.get(), self.who);
            *route = self.parked(route, self.shared.parking.wait(self.tenant, route.state, avoid.copied(), deadline, look)).await?;
        }
        let width = Width { reads: route.limits.concurrency, queue: route.limits.queue };
        self.tenant.lane.enter(self.kind, width, deadline.is_none(), &self.shared.queued).await
    }

    /// Counts a wait for an instance.
    async fn parked<T>(&self, route: &Route, wait: impl Future<Output = T>) -> T {
        let (live, began) = (self.shared.live.get(), Instant::now());
        let meters = live.meters.slot(route.slot);
        meters.into_iter().for_each(SlotMeters::note_parked);
        let waited = wait.await;
        meters.into_iter().for_each(|meters| meters.note_parked_for(began.elapsed()));
        waited
    }

    /// Sends a request. A write is a task of its own: when its client goes away, the exchange still ends, and the lane is held until it has. A
    /// read may as well end with its client, which spares the task.
    async fn send(&self, live: &Live, route: &Route, request: Exchange, held: Held, share: Share) -> Result<Sent, Problem> {
        let Some(guarded) = self.guarded.as_ref().map(|write| self.guarded(live, route, write, request.length())) else {
            let sending = async move { (exchange(&request).await.map_err(NoAnswer::from), request, held, share) };
            return match self.kind {
                Kind::Read => Ok(sending.await),
                Kind::Mutation => tokio::spawn(sending).await.map_err(|_| Problem::BadAnswer),
            };
        };
        let shared = Arc::clone(self.shared);
        let sending = async move { (guarded.send(&shared.guardian, &request).await, request, held, share) };
        tokio::spawn(sending).await.map_err(|_| Problem::BadAnswer)
    }

    fn guarded(&self, live: &Live, route: &Route, (target, growth): &(Target, Growth), body: u64) -> Guarded {
        let write = Write {
            id: self.who.clone(),
            phext: target.phext.clone(),
            call: target.call,
            epoch: route.epoch,
            request_id: self.asks.id.as_str().to_owned(),
            body,
            memory_max: Some(route.limits.memory_max).filter(|&limit| limit > 0),
            durability: route.limits.durability,
            may_grow: *growth == Growth::Free,
        };
        let head = self.head_of(live, route, &http::Method::GET, &target.reload(), None, 0);
        Guarded { write, growth: *growth, reload: Exchange { port: route.port, head, body: Vec::new() } }
    }

    /// A write broke off. Its client is answered once the text is as it was, which takes another start, or when that takes too long: it will be,
    /// before anything else is written.
    async fn undone(&self, route: Route) -> Problem {
        self.nudge(NudgeReason::InDoubt);
        let look = || look(&self.shared.live.get(), self.who);
        let deadline = tokio::time::Instant::now() + park::MAX_WAIT;
        let started = self.shared.parking.wait(self.tenant, route.state, Some(Avoid::wrong(&route)), deadline, look).await;
        tracing::warn!(tenant = %self.who, request_id = self.asks.id.as_str(), put_back = started.is_ok(), "a write broke off and is not applied");
        Problem::NotApplied
    }

    fn nudge(&self, reason: NudgeReason) {
        if self.tenant.may_nudge(clock::monotonic_ns()) {
            // No agent, or a busy one: it looks at everything by itself every few seconds.
            let _ = self.shared.nudges.try_send((self.who.clone(), reason));
        }
    }

    fn head(&self, live: &Live, route: &Route, body: &[Bytes]) -> Vec<u8> {
        let target = self.asks.parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let content_type = self.asks.parts.headers.get(http::header::CONTENT_TYPE);
        self.head_of(live, route, &self.asks.parts.method, target, content_type, body.iter().map(Bytes::len).sum())
    }

    fn head_of(
        &self,
        live: &Live,
        route: &Route,
        method: &http::Method,
        target: &str,
        content_type: Option<&HeaderValue>,
        content_length: usize,
    ) -> Vec<u8> {
        let key = self.tenant.instance_key(&live.instance_secret, self.who, route.epoch);
        let mut head = Vec::with_capacity(512 + target.len());
        UpstreamHead {
            method,
            target,
            port: route.port,
            content_type,
            content_length,
            instance_key: &key,
            tenant: self.who.as_str(),
            peer: self.asks.peer,
            request_id: self.asks.id,
            trace: self.asks.trace,
        }
        .write(&mut head);
        head
    }
}
