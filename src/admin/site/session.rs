//! Who is logged in. Pure: clock and chance come in as values.
//!
//! A session is 256 random bits in a cookie, of which only the SHA-256 is kept: who reads this process's memory after the fact has nothing to show.
//! It lives in the agent alone, so an agent that starts anew knows nobody.

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    digest::{hex, sha256},
    secret::Secret,
};

/// So long a session lasts at most.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);
/// So long it lasts where nobody does anything.
const IDLE: Duration = Duration::from_secs(3_600);
/// Sessions at once; where one more comes, the one goes that was idle for longest.
const MOST: usize = 64;
/// Length of a cookie's value.
const COOKIE: usize = 43;

/// What a browser shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ticket(Secret);

impl Ticket {
    /// Of fresh random bytes.
    pub(super) fn of(random: [u8; 32]) -> Self {
        Self(Secret::new(URL_SAFE_NO_PAD.encode(random)))
    }

    /// What a cookie holds, if it can be one.
    pub(super) fn parse(cookie: &str) -> Option<Self> {
        let is_one = cookie.len() == COOKIE && cookie.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        is_one.then(|| Self(Secret::new(cookie)))
    }

    /// For the one header that carries it.
    pub(super) fn cookie(&self) -> &str {
        std::str::from_utf8(self.0.expose()).unwrap_or_default()
    }

    /// What every form of this session holds. Made of the cookie, which no other site can read; says nothing of it.
    pub(super) fn form_token(&self) -> String {
        hex(&sha256(&[b"form\0", self.0.expose()].concat()))
    }

    /// Whether that is the token of this session, in constant time.
    pub(super) fn is_form_token(&self, token: &str) -> bool {
        Secret::new(token) == Secret::new(self.form_token())
    }

    fn mark(&self) -> Mark {
        Mark(sha256(self.0.expose()))
    }
}

/// By what a session is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mark([u8; 32]);

/// Somebody.
#[derive(Debug, Clone)]
struct Session {
    /// As it named itself.
    name: Option<String>,
    /// SHA-256 of the key by which it came.
    key: [u8; 32],
    began: Duration,
    seen: Duration,
    /// What is to be told on the next page.
    said: Option<Said>,
}

/// What came of something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) is_good: bool,
    pub(super) text: String,
}

/// Everybody who is logged in.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: HashMap<Mark, Session>,
}

/// Somebody who is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visitor {
    pub(super) ticket: Ticket,
    pub(super) name: Option<String>,
}

impl Sessions {
    /// Somebody came by the key of this SHA-256.
    pub(super) fn begin(&mut self, ticket: &Ticket, name: Option<String>, key: [u8; 32], now: Duration) {
        self.sessions.retain(|_, session| session.lives(now));
        if self.sessions.len() >= MOST
            && let Some(oldest) = self.sessions.iter().min_by_key(|(_, session)| session.seen).map(|(mark, _)| *mark)
        {
            self.sessions.remove(&oldest);
        }
        self.sessions.insert(ticket.mark(), Session { name, key, began: now, seen: now, said: None });
    }

    /// Whose ticket that is, where the key of this SHA-256 is in force. `acts`: somebody did something, and not a page that looks again by itself.
    pub(super) fn find(&mut self, ticket: &Ticket, key: [u8; 32], acts: bool, now: Duration) -> Option<Visitor> {
        let mark = ticket.mark();
        let session = self.sessions.get_mut(&mark)?;
        if !session.lives(now) || session.key != key {
            self.sessions.remove(&mark);
            return None;
        }
        if acts {
            session.seen = now;
        }
        Some(Visitor { ticket: ticket.clone(), name: session.name.clone() })
    }

    /// It is logged out.
    pub(super) fn end(&mut self, ticket: &Ticket) {
        self.sessions.remove(&ticket.mark());
    }

    /// To be told on the next page that it opens.
    pub(super) fn say(&mut self, ticket: &Ticket, said: Said) {
        if let Some(session) = self.sessions.get_mut(&ticket.mark()) {
            session.said = Some(said);
        }
    }

    /// What is to be told now; once.
    pub(super) fn said(&mut self, ticket: &Ticket) -> Option<Said> {
        self.sessions.get_mut(&ticket.mark())?.said.take()
    }
}

impl Session {
    fn lives(&self, now: Duration) -> bool {
        now.saturating_sub(self.began) < LONGEST && now.saturating_sub(self.seen) < IDLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const START: Duration = Duration::from_secs(1_000);

    fn ticket(n: u8) -> Ticket {
        Ticket::of([n; 32])
    }

    fn one() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.begin(&ticket(1), Some("ada".to_owned()), KEY, START);
        sessions
    }

    #[test]
    fn a_session_ends_after_an_hour_of_idleness_and_after_twelve_in_any_case() {
        let mut sessions = one();
        let minutes = |minutes: u64| START + Duration::from_secs(minutes * 60);
        assert_eq!(sessions.find(&ticket(1), KEY, true, minutes(59)).unwrap().name.as_deref(), Some("ada"));
        assert!(sessions.find(&ticket(1), KEY, false, minutes(118)).is_some());
        assert!(sessions.find(&ticket(1), KEY, true, minutes(119)).is_none(), "a page that looks by itself is nobody");
        let mut sessions = one();
        assert!((1..720).step_by(30).all(|minute| sessions.find(&ticket(1), KEY, true, minutes(minute)).is_some()));
        assert!(sessions.find(&ticket(1), KEY, true, minutes(720)).is_none());
    }

    #[test]
    fn log_out_and_another_key_end_it() {
        let mut sessions = one();
        assert!(sessions.find(&ticket(2), KEY, true, START).is_none());
        sessions.end(&ticket(1));
        assert!(sessions.find(&ticket(1), KEY, true, START).is_none());
        let mut sessions = one();
        assert!(sessions.find(&ticket(1), [8; 32], true, START).is_none());
        assert!(sessions.find(&ticket(1), KEY, true, START).is_none(), "also where the key of before comes back");
    }

    #[test]
    fn of_too_many_the_one_that_was_idle_for_longest_goes() {
        let mut sessions = Sessions::default();
        (0..=64).for_each(|n| sessions.begin(&ticket(n), None, KEY, START + Duration::from_secs(n.into())));
        let lives = |n| sessions.sessions.contains_key(&ticket(n).mark());
        assert_eq!((sessions.sessions.len(), lives(0), lives(1), lives(64)), (MOST, false, true, true));
    }

    #[test]
    fn a_form_belongs_to_its_session_and_a_cookie_has_one_shape() {
        let (one, other) = (ticket(1), ticket(2));
        assert!(one.is_form_token(&one.form_token()) && !other.is_form_token(&one.form_token()) && !one.is_form_token(""));
        assert_eq!(Ticket::parse(one.cookie()), Some(one.clone()));
        assert!(!format!("{one:?}").contains(one.cookie()), "it prints itself nowhere");
        for bad in ["", "x", &one.cookie()[1..], &format!("{}=", &one.cookie()[1..]), &format!("{}x", one.cookie())] {
            assert_eq!(Ticket::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_came_of_something_is_told_once() {
        let mut sessions = one();
        sessions.say(&ticket(1), Said { is_good: true, text: "done".to_owned() });
        assert_eq!((sessions.said(&ticket(1)).unwrap().text, sessions.said(&ticket(1))), ("done".to_owned(), None));
    }
}
