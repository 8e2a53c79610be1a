//! The task that has a certificate at hand: waits until one is due, asks for it, and tells what came of that.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    book::{self, Book},
    files::Files,
    order::{AcmeError, TRIES, obtain},
};
use crate::{
    certificate::Facts,
    desired::Acme,
    proxy::{front::Challenge, settings::Settings},
    store::unix_now,
};

/// The wall clock is looked at so often: it may be set, and sleep does not count on every host.
const LOOK: Duration = Duration::from_secs(60);

/// New settings are in force within milliseconds; a proxy that is just being started, within seconds.
const SHOWN: Duration = Duration::from_secs(60);

/// For one order, with all its names.
const WHOLE: Duration = Duration::from_secs(15 * 60);

/// What the loop should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// What is to be shown to the server has changed.
    Offers,
    /// There is a certificate for these names, and the next one is due then (seconds since 1970).
    Waits(Vec<String>, u64),
    /// One is being asked for.
    Asks,
    /// There is another certificate, which says this of itself.
    Obtained(Option<Facts>),
    /// It went wrong; the next try comes after this pause.
    Failed(String, Duration),
}

/// The task; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    acme: Acme,
    offers: Offers,
    task: JoinHandle<()>,
}

/// What is shown to whoever asks, as the task and the settings share it.
type Offers = Arc<Mutex<Vec<Challenge>>>;

struct Asker<R> {
    acme: Acme,
    files: Files,
    offers: Offers,
    in_force: watch::Receiver<Option<Arc<Settings>>>,
    report: R,
}

impl Running {
    /// Begins, inside the current runtime. `in_force` is what the proxy serves by.
    pub fn start(
        acme: Acme,
        state_dir: PathBuf,
        in_force: watch::Receiver<Option<Arc<Settings>>>,
        report: impl Fn(News) + Send + Sync + 'static,
    ) -> Self {
        let offers = Offers::default();
        let files = Files::new(&state_dir, &acme);
        let asker = Asker { acme: acme.clone(), files, offers: offers.clone(), in_force, report };
        Self { acme, offers, task: tokio::spawn(asker.run()) }
    }

    /// What it works by.
    pub fn acme(&self) -> &Acme {
        &self.acme
    }

    /// What is to be shown now.
    pub fn offers(&self) -> Vec<Challenge> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<R: Fn(News) + Send + Sync> Asker<R> {
    async fn run(self) {
        let mut book = Book::default();
        // Drawn once: a renewal that failed is not put off by another draw.
        let spread = jitter();
        loop {
            self.until_due(spread).await;
            (self.report)(News::Asks);
            match self.obtain().await {
                Ok(()) => {
                    let facts = self.files.facts();
                    (self.report)(News::Obtained(facts.clone()));
                    if book::due(facts.as_ref(), &self.acme.domains, spread) > unix_now() {
                        book.succeeded();
                    } else {
                        // It is due by our clock as soon as it is there, or is not for the names that were asked for.
                        sleep(book.failed(jitter())).await;
                    }
                }
                Err(error) => {
                    let pause = book.failed(jitter());
                    (self.report)(News::Failed(error.to_string(), pause));
                    sleep(pause).await;
                }
            }
        }
    }

    /// Begins anew, a second later, where the server takes none of its own nonces.
    async fn obtain(&self) -> Result<(), AcmeError> {
        for _ in 1..TRIES {
            match self.order().await {
                Err(AcmeError::Nonces(why)) => tracing::info!(why, "the certificate is asked for anew"),
                outcome => return outcome,
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.order().await
    }

    async fn order(&self) -> Result<(), AcmeError> {
        let outcome = timeout(WHOLE, obtain(&self.acme, &self.files, |challenge| self.offer(challenge))).await;
        self.withdraw();
        outcome.unwrap_or_else(|_| Err(AcmeError::Server("the ACME server was too slow".to_owned())))
    }

    async fn until_due(&self, spread: f64) {
        let held = self.files.facts();
        let due = book::due(held.as_ref(), &self.acme.domains, spread);
        if let Some(held) = held.filter(|_| due > unix_now()) {
            (self.report)(News::Waits(held.names, due));
        }
        loop {
            let left = Duration::from_secs(due.saturating_sub(unix_now()));
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }

    /// Shows one more, and waits until the proxy does.
    async fn offer(&self, challenge: Challenge) -> Result<(), AcmeError> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).push(challenge.clone());
        (self.report)(News::Offers);
        let mut in_force = self.in_force.clone();
        let shown = in_force.wait_for(|now| now.as_ref().is_some_and(|now| now.front.challenges.contains(&challenge)));
        match timeout(SHOWN, shown).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(AcmeError::NotShown),
        }
    }

    fn withdraw(&self) {
        let before = std::mem::take(&mut *self.offers.lock().unwrap_or_else(PoisonError::into_inner));
        if !before.is_empty() {
            (self.report)(News::Offers);
        }
    }
}

/// Where there are no random numbers, the middle will do.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}
