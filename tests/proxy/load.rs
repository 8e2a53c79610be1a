//! Users of every kind, at work without a pause, and what went wrong for them. They behave as HTTP says: a connection that was said to end is
//! not used again, and a request that was never sent goes out on another one. Anything else is a failure.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time::sleep};

use super::{
    busy::LONG,
    client::{AnyBody, Client, Connection, Http, full, pieces, request},
};

/// What a user does, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// One connection of HTTP/1.1 for as long as it lasts.
    KeepAlive,
    /// A connection a request.
    OneShot,
    /// Four requests at once on a connection of HTTP/2.
    Multiplexed,
    /// An upload in pieces.
    Upload(Http),
    /// A long answer, slowly.
    Download(Http),
}

pub struct Load {
    users: JoinSet<()>,
    stop: Arc<AtomicBool>,
    pub tally: Arc<Tally>,
}

#[derive(Default)]
pub struct Tally {
    pub answered: AtomicU64,
    pub failures: Mutex<Vec<String>>,
}

impl Load {
    pub fn new() -> Self {
        Self { users: JoinSet::new(), stop: Arc::default(), tally: Arc::default() }
    }

    /// One more user, with the token of a tenant.
    pub fn user(&mut self, habit: Habit, client: Client, token: String) {
        let user = User { habit, client, token, tally: self.tally.clone(), number: self.users.len() };
        let stop = self.stop.clone();
        self.users.spawn(async move { user.work(&stop).await });
    }

    pub fn answered(&self) -> u64 {
        self.tally.answered.load(Ordering::Relaxed)
    }

    /// Lets everybody finish. How many were answered, and what failed.
    pub async fn end(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(user) = self.users.join_next().await {
            user.unwrap();
        }
        (self.answered(), self.tally.failures.lock().unwrap().clone())
    }
}

struct User {
    habit: Habit,
    client: Client,
    token: String,
    tally: Arc<Tally>,
    number: usize,
}

impl User {
    async fn work(&self, stop: &AtomicBool) {
        let http = match self.habit {
            Habit::KeepAlive | Habit::OneShot => Http::One,
            Habit::Multiplexed => Http::Two,
            Habit::Upload(http) | Habit::Download(http) => http,
        };
        let mut kept = None;
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let connection = match kept.take() {
                Some(connection) => connection,
                None => match self.client.connect(http).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        self.failed(&format!("connect: {error}"));
                        continue;
                    }
                },
            };
            let at_once = if self.habit == Habit::Multiplexed { 4 } else { 1 };
            kept = self.ask(connection, round, at_once).await.filter(|_| self.habit != Habit::OneShot);
            // Some pause between two, so that the proxy also finds them idle.
            sleep(Duration::from_millis(u64::try_from(self.number).unwrap() * round % 17)).await;
        }
    }

    /// Asks on a connection. Returns it if it may be used again.
    async fn ask(&self, connection: Connection, round: u64, at_once: u64) -> Option<Connection> {
        match connection {
            Connection::One(mut sender) => {
                if let Err(error) = sender.ready().await {
                    self.failed(&format!("a kept connection was closed without a word: {error}"));
                    return None;
                }
                let (asked, expected) = self.request(round);
                let mut asked = asked;
                *asked.uri_mut() = asked.uri().path_and_query().unwrap().as_str().parse().unwrap();
                asked.headers_mut().insert("host", http::HeaderValue::from_static("localhost"));
                match sender.send_request(asked).await {
                    Ok(answer) => {
                        let ends = answer.headers().get("connection").is_some_and(|value| value == "close");
                        self.check(answer, &expected).await;
                        (!ends).then_some(Connection::One(sender))
                    }
                    Err(error) => {
                        self.failed(&format!("no answer: {error:?}"));
                        None
                    }
                }
            }
            Connection::Two(mut sender) => {
                if sender.ready().await.is_err() {
                    return None;
                }
                let streams: Vec<_> = (0..at_once)
                    .map(|n| {
                        let (asked, expected) = self.request(round * at_once + n);
                        (sender.try_send_request(asked), expected)
                    })
                    .collect();
                let mut whole = true;
                for (answer, expected) in streams {
                    match answer.await {
                        Ok(answer) => self.check(answer, &expected).await,
                        Err(error) => {
                            whole = false;
                            let why = format!("{:?}", error.error());
                            // GOAWAY came before it was sent, so it was not (RFC 9113 section 6.8): every client sends it again elsewhere.
                            let unsent = error.message().is_some() || why.contains("GoAway(b\"\", NO_ERROR, Remote)");
                            if !unsent {
                                self.failed(&format!("no answer: {why}"));
                            }
                        }
                    }
                }
                whole.then_some(Connection::Two(sender))
            }
        }
    }

    /// A request, and what the answer must be.
    fn request(&self, round: u64) -> (Request<AnyBody>, Vec<u8>) {
        match self.habit {
            Habit::KeepAlive | Habit::OneShot | Habit::Multiplexed => {
                let target = format!("/api/v2/select?user={}&round={round}", self.number);
                (request(Method::GET, &self.token, &target, full("")), target.into_bytes())
            }
            Habit::Upload(_) => {
                let (sender, body) = pieces();
                tokio::spawn(async move {
                    for _ in 0..20 {
                        if sender.send(Bytes::from_static(&[b'u'; 4096])).await.is_err() {
                            return;
                        }
                        sleep(Duration::from_millis(5)).await;
                    }
                });
                (request(Method::POST, &self.token, "/api/v2/update", body), (20 * 4096).to_string().into_bytes())
            }
            Habit::Download(_) => (request(Method::GET, &self.token, "/api/v2/get", full("")), vec![b'x'; LONG]),
        }
    }

    async fn check(&self, answer: http::Response<hyper::body::Incoming>, expected: &[u8]) {
        let status = answer.status();
        match answer.into_body().collect().await {
            Ok(body) => {
                let body = body.to_bytes();
                if status == StatusCode::OK && body == expected {
                    self.tally.answered.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.failed(&format!("{status}: {:?}", &body[..body.len().min(300)]));
                }
            }
            Err(error) => self.failed(&format!("the answer was cut: {error:?}")),
        }
    }

    fn failed(&self, why: &str) {
        self.tally.failures.lock().unwrap().push(format!("{:?}: {why}", self.habit));
    }
}
