//! Who writes, and knows what must be there.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use http::Method;

use crate::{
    killers::Victim,
    model::{Appended, Fate, Replaced, Size, numbered, token},
    power::Diary,
    road::{Road, Said},
    support::dice::Dice,
    tally::{Fault, Tally},
};

/// A tenant comes back within a back-off of 75 s at most, and a start.
const READ_WITHIN: Duration = Duration::from_secs(100);
/// After a request that got nowhere.
const PAUSE: Duration = Duration::from_millis(20);

/// What a writer does to which phext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Replaces a scroll of the first phext.
    Replaces,
    /// Appends to another scroll of it.
    Appends,
    /// Appends to the second phext: sq holds one at a time.
    AppendsElsewhere,
}

impl Kind {
    /// Who writes to a tenant's phexts of this size.
    pub(crate) fn of(size: Size) -> impl Iterator<Item = Self> {
        let elsewhere = (size.0 < 1 << 20).then_some(Self::AppendsElsewhere);
        [Self::Replaces, Self::Appends].into_iter().chain(elsewhere)
    }

    fn phext(self) -> &'static str {
        match self {
            Self::Replaces | Self::Appends => "torture",
            Self::AppendsElsewhere => "elsewhere",
        }
    }
}

const BALLAST: &str = "9.1.1/1.1.1/1.1.1";
const REPLACED: &str = "1.1.1/1.1.1/1.1.1";

/// Somebody who writes to a scroll of its own.
pub(crate) struct Writer {
    tenant: usize,
    kind: Kind,
    road: Road,
    victim: Arc<Victim>,
    tally: Arc<Tally>,
    dice: Dice,
    ballast: String,
    replaced: Replaced,
    /// One after the other: the last one is written to.
    appended: Vec<Appended>,
    diary: Option<Diary>,
}

impl Writer {
    pub(crate) fn new(tenant: usize, kind: Kind, road: Road, victim: Arc<Victim>, tally: Arc<Tally>, seed: u64) -> Self {
        let ballast = victim.size.ballast(tenant);
        let dice = Dice(seed ^ ((tenant as u64) << 8 | kind as u64));
        Self {
            tenant,
            kind,
            road,
            victim,
            tally,
            dice,
            ballast,
            replaced: Replaced::default(),
            appended: vec![Appended::default()],
            diary: None,
        }
    }

    fn target(&self, call: &str, coordinate: &str) -> String {
        format!("/api/v2/{call}?p={}&c={coordinate}", self.kind.phext())
    }

    /// Before any kill: the ballast.
    pub(crate) async fn prepare(&mut self) {
        let said = self.road.send(Method::POST, &self.target("update", BALLAST), &self.ballast).await;
        assert!(said.as_ref().is_some_and(|said| said.status == 200), "{said:?}");
    }

    /// Begins anew with another file.
    pub(crate) fn forget(&mut self) {
        self.replaced = Replaced::default();
        self.appended = vec![Appended::default()];
    }

    /// What earlier writers reported.
    pub(crate) fn remember(&mut self, replaced: Replaced, appended: Vec<Appended>) {
        self.replaced = replaced;
        self.appended = appended;
        self.appended.push(Appended::default());
    }

    /// Each answer is reported from here on.
    pub(crate) fn report_to(&mut self, diary: Diary) {
        self.diary = Some(diary);
    }

    fn report(&self, number: u64, fate: Fate) {
        if let Some(diary) = &self.diary {
            let what = if self.kind == Kind::Replaces { "replaced".to_owned() } else { format!("appended-{}", self.appended.len()) };
            diary.note(self.tenant, &what, number, fate);
        }
    }

    /// Until the tenant answers.
    pub(crate) async fn wait(&mut self, patience: Duration) {
        let began = Instant::now();
        while self.road.send(Method::GET, "/api/v2/version?p=torture", "").await.is_none_or(|said| said.status != 200) {
            assert!(began.elapsed() < patience, "tenant {} is not there", self.tenant);
            tokio::time::sleep(PAUSE).await; // a start takes a while
        }
    }

    /// Until the tally is done; looks at what is there after each kill.
    pub(crate) async fn write_on(mut self) -> Self {
        let mut looked = 0;
        while !self.tally.is_done() {
            self.write().await;
            let kills = self.victim.kills.load(Ordering::Relaxed);
            if kills != looked {
                looked = kills;
                let whole = self.victim.size.0 < 1 << 20 || self.dice.below(10) == 0;
                self.check(whole).await;
            }
        }
        self
    }

    /// Writes once.
    pub(crate) async fn write(&mut self) {
        let began = Instant::now();
        let said = match self.kind {
            Kind::Replaces => {
                let number = self.replaced.next();
                let text = numbered(number, self.length());
                let said = self.road.send(Method::POST, &self.target("update", REPLACED), &text).await;
                self.replaced.note(number, fate(said.as_ref()));
                self.report(number, fate(said.as_ref()));
                said
            }
            Kind::Appends | Kind::AppendsElsewhere => {
                if self.appended.last().unwrap().is_long() {
                    self.appended.push(Appended::default());
                }
                let target = self.target("insert", &appended(self.appended.len()));
                let number = self.appended.last_mut().unwrap().next();
                let said = self.road.send(Method::POST, &target, &token(number)).await;
                self.appended.last_mut().unwrap().note(number, fate(said.as_ref()));
                self.report(number, fate(said.as_ref()));
                said
            }
        };
        self.tally.wrote(fate(said.as_ref()));
        match said {
            Some(Said { status: 200, .. }) => self.victim.took(began.elapsed()),
            said => {
                self.tally.refused(&said.map_or("nothing".into(), |said| format!("{} {}", said.status, slug(&said.text))));
                tokio::time::sleep(PAUSE).await; // what is down takes a while
            }
        }
    }

    fn length(&mut self) -> usize {
        match self.dice.below(20) {
            0 => self.dice.below(self.victim.size.0.min(200_000)),
            1 => 0,
            _ => self.dice.below(2_000),
        }
    }

    /// Looks at everything; at the ballast where `whole`.
    pub(crate) async fn check(&mut self, whole: bool) {
        if self.kind == Kind::Replaces {
            let text = self.read(REPLACED).await;
            let judged = self.replaced.judge(&text);
            self.note(judged, REPLACED, &text, format!("{:?}", self.replaced));
        } else {
            let first = if whole { 0 } else { self.appended.len() - 1 };
            for n in first..self.appended.len() {
                let scroll = appended(n + 1);
                let text = self.read(&scroll).await;
                let judged = self.appended[n].judge(&text);
                self.note(judged, &scroll, &text, format!("{:?}", self.appended[n]));
            }
        }
        if whole {
            let text = self.read(BALLAST).await;
            let judged = if text == self.ballast {
                Ok(())
            } else if text.is_empty() {
                Err(Fault::Lost)
            } else {
                Err(Fault::Half)
            };
            self.note(judged, BALLAST, &text[..text.len().min(100)], format!("{} bytes of {}", text.len(), self.ballast.len()));
        }
        self.tally.checked();
    }

    fn note(&self, judged: Result<(), Fault>, scroll: &str, text: &str, known: String) {
        if let Err(fault) = judged {
            let known = known.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect::<String>();
            let what = format!("tenant {} {:?} {scroll}: {} bytes, {text:.200}; known: {known}", self.tenant, self.kind, text.len());
            self.tally.fault(fault, what);
        }
    }

    async fn read(&mut self, coordinate: &str) -> String {
        let target = self.target("select", coordinate);
        let began = Instant::now();
        loop {
            match self.road.send(Method::GET, &target, "").await {
                Some(Said { status: 200, text }) => return text,
                said => assert!(began.elapsed() < READ_WITHIN, "tenant {} cannot be read: {said:?}", self.tenant),
            }
            tokio::time::sleep(PAUSE).await; // what is down takes a while
        }
    }
}

/// The coordinate of the scroll of this number.
fn appended(n: usize) -> String {
    format!("2.1.1/1.1.1/1.{}.{}", n / 90 + 1, n % 90 + 1)
}

/// What a write's answer says of it.
fn fate(said: Option<&Said>) -> Fate {
    match said.map(|said| said.status) {
        Some(200) => Fate::Acknowledged,
        // The proxy says of these two that it does not know.
        None | Some(502 | 504) => Fate::Unknown,
        Some(_) => Fate::NotApplied,
    }
}

fn slug(text: &str) -> &str {
    text.split("urn:sq-agent:problem:").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("")
}
