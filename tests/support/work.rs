//! People at work: each writes and reads a text of their own in turn, and nothing but the right answer will do.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use http::{Method, Request};
use tokio::task::JoinHandle;

use super::{
    client::{Answer, Http, Lost, Session, Upload},
    eventually,
    host::{Host, User},
};

/// Work that goes on until [`Work::end`].
pub struct Work {
    workers: Vec<JoinHandle<()>>,
    answered: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
}

impl Work {
    /// Three workers for each of `names`: over a connection that is kept, over one a round, and over HTTP/2.
    pub fn of(host: &Host, names: &[&'static str]) -> Self {
        let (answered, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut workers = Vec::new();
        for name in names {
            for (http, keep) in [(Http::One, true), (Http::One, false), (Http::Two, true)] {
                workers.push(tokio::spawn(work(host.user(name), name, http, keep, answered.clone(), done.clone())));
            }
        }
        Self { workers, answered, done }
    }

    /// Fails unless everybody is at work still, and gets further by 20 answers.
    pub async fn goes_on(&self) {
        let so_far = self.answered.load(Ordering::Relaxed);
        eventually("the work goes on", async || self.answered.load(Ordering::Relaxed) > so_far + 20).await;
        self.assert_unhurt();
    }

    /// Fails if anybody met anything but the right answer.
    pub fn assert_unhurt(&self) {
        assert!(self.workers.iter().all(|worker| !worker.is_finished()), "a worker gave up");
    }

    /// Ends the work and returns how many answers there were.
    pub async fn end(self) -> usize {
        self.done.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}

async fn work(user: User, name: &'static str, http: Http, keep: bool, answered: Arc<AtomicUsize>, done: Arc<AtomicBool>) {
    let mut session = user.client.session(http);
    let mut round = 0_u64;
    let write = format!("/api/v2/update?p={name}-{http:?}-{keep}&c=1.1.1/1.1.1/1.1.1");
    let read = write.replace("update", "select");
    while !done.load(Ordering::Relaxed) {
        let text = format!("{name} {round}");
        let request = || user.request(Method::POST, &write, Upload::whole(text.clone().into_bytes()));
        let written = ask(&mut session, request).await.unwrap_or_else(|error| panic!("{name} {http:?} {keep}, write {round}: {error:?}"));
        assert_eq!(written.status, 200, "{name}: {written:?}");
        let got = ask(&mut session, || user.request(Method::GET, &read, Upload::default())).await;
        let got = got.unwrap_or_else(|error| panic!("{name} {http:?} {keep}, read {round}: {error:?}"));
        assert_eq!((got.status, got.text()), (200, text.as_str()), "{name}: not what was written just before");
        answered.fetch_add(2, Ordering::Relaxed);
        round += 1;
        if !keep {
            session = user.client.session(http);
        }
    }
}

/// Sends a request, once more over another connection where the server went away in due form before it took it: that GOAWAY names the
/// last stream that it takes, and a client sends what came after anew (RFC 9113, 6.8).
async fn ask(session: &mut Session, request: impl Fn() -> Request<Upload>) -> Result<Answer, Lost> {
    loop {
        match session.send(request()).await {
            Err(error) if not_taken(&error) => {}
            outcome => return outcome,
        }
    }
}

/// Whether the server said that it does not take the request.
pub fn not_taken(error: &Lost) -> bool {
    format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)")
}
