//! People at work: each writes and reads a text of its own, and knows what it must be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::Method;

use crate::{
    kills::Kills,
    support::{
        client::{Answer, Http, Session, Upload},
        dice::Dice,
        host::User,
        work::not_taken,
    },
    tally::{Outcome, Tally},
};

const PAGE: &str = "p=diary&c=1.1.1/1.1.1/1.1.1";

/// The tenant of this number.
pub(crate) fn name(n: usize) -> String {
    format!("user{n:03}@example.com")
}

/// One tenant, and what its phext has to hold.
pub(crate) struct Person {
    /// Its id.
    pub(crate) id: String,
    user: User,
    session: Session,
    /// When its connection was last seen to be good.
    good_at: Instant,
    kept: bool,
    /// The last text of which it was told that it was stored.
    stored: String,
    /// A write since then came to no answer: what is stored is not known, and may be cut (see sq-facts: only a kill between request and
    /// answer of a write is dangerous).
    in_doubt: bool,
    round: u64,
}

impl Person {
    pub(crate) fn new(n: usize, user: User) -> Self {
        let http = if n % 3 == 2 { Http::Two } else { Http::One };
        let session = user.client.session(http);
        Self { id: name(n), session, user, good_at: Instant::now(), kept: n % 3 != 1, stored: String::new(), in_doubt: false, round: 0 }
    }

    async fn ask(&mut self, method: Method, target: &str, body: &str, kills: &Kills, tally: &Tally) -> Option<Answer> {
        let since = if self.kept { self.good_at } else { Instant::now() };
        let started = Instant::now();
        let mut outcome = self.session.send(self.user.request(method.clone(), target, Upload::whole(body.to_owned().into_bytes()))).await;
        // The server went away in due form before it took the request: any client sends it anew (RFC 9113, 6.8).
        while outcome.as_ref().is_err_and(not_taken) {
            outcome = self.session.send(self.user.request(method.clone(), target, Upload::whole(body.to_owned().into_bytes()))).await;
        }
        let ended = Instant::now();
        if !self.kept {
            self.session = self.user.client.session(Http::One);
        }
        let kind = match &outcome {
            Ok(answer) if answer.status == 200 => Outcome::Answered(ended - started),
            Ok(answer) if matches!(answer.status, 403 | 503) => Outcome::Refused(answer.status),
            Ok(answer) if answer.status == 502 && kills.explain(&self.id, started, ended) => Outcome::InDeadHands,
            Err(_) if kills.explain(&self.id, since, ended) => Outcome::InDeadHands,
            Ok(answer) => Outcome::Failed(format!("{} {method} {target}: {} {}", self.id, answer.status, answer.text())),
            Err(error) => {
                Outcome::Failed(format!("{} {method} {target} after {:.1?}: {error:?}; {}", self.id, ended - started, kills.latest(ended)))
            }
        };
        tally.count(kind);
        let answer = outcome.ok()?;
        self.good_at = ended;
        Some(answer)
    }

    async fn write(&mut self, dice: &mut Dice, kills: &Kills, tally: &Tally) {
        self.round += 1;
        // Its own name first, so that a foreign text is known as one.
        let text = format!("{} {} {}", self.id, self.round, "x".repeat(1 << (8 + dice.below(9))));
        let doubted = std::mem::replace(&mut self.in_doubt, true);
        match self.ask(Method::POST, &format!("/api/v2/update?{PAGE}"), &text, kills, tally).await {
            Some(answer) if answer.status == 200 => (self.stored, self.in_doubt) = (text, false),
            // Refused before sq saw it.
            Some(answer) if matches!(answer.status, 403 | 503) => self.in_doubt = doubted,
            _ => {}
        }
    }

    async fn read(&mut self, kills: &Kills, tally: &Tally) {
        let answer = self.ask(Method::GET, &format!("/api/v2/select?{PAGE}"), "", kills, tally).await;
        if let Some(answer) = answer.filter(|answer| answer.status == 200) {
            self.check(answer.text(), tally);
        }
    }

    fn check(&self, text: &str, tally: &Tally) {
        if !text.is_empty() && !text.starts_with(&self.id) && !self.id.starts_with(text) {
            tally.foreign(format!("{} read {:.60}", self.id, text));
        } else if !self.in_doubt && text != self.stored {
            tally.lost(format!(
                "{} read {:.60} ({} bytes), told that {:.60} ({} bytes) was stored",
                self.id,
                text,
                text.len(),
                self.stored,
                self.stored.len()
            ));
        }
    }

    /// After the storm.
    pub(crate) async fn read_back(&mut self, tally: &Tally) {
        let answer = self.user.get(&format!("/api/v2/select?{PAGE}")).await;
        assert_eq!(answer.status, 200, "{}", self.id);
        self.check(answer.text(), tally);
    }
}

/// Works for all of `mine` in turn until `done`.
pub(crate) async fn work(
    mut mine: Vec<Person>,
    mut dice: Dice,
    kills: Arc<Kills>,
    tally: Arc<Tally>,
    done: Arc<AtomicBool>,
) -> Vec<Person> {
    const PAUSE_MS: usize = 20;
    while !done.load(Ordering::Relaxed) {
        let n = dice.below(mine.len());
        match dice.below(10) {
            0..=3 => mine[n].write(&mut dice, &kills, &tally).await,
            _ => mine[n].read(&kills, &tally).await,
        }
        let pause = dice.below(PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause.try_into().unwrap())).await; // people are not in step
    }
    mine
}
