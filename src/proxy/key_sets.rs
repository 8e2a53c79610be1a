//! Key sets that identity providers publish at an address: fetched by the agent (the proxy has no network but its own), the last good one kept in
//! the state directory, from where the ring reads it like any other file. So a restarted agent has it too.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{credentials, jwks};
use crate::{desired, fetch};

/// A set that came is fetched anew after this.
const RENEW: Duration = Duration::from_secs(300);
/// Between two tries, whatever asks for one; the first pause after one that failed.
const PAUSE: Duration = Duration::from_secs(30);

/// Where the set of `url` lies.
pub(crate) fn path(state_dir: &Path, url: &str) -> PathBuf {
    // 64 bits tell the few addresses of a file apart.
    state_dir.join("jwks").join(format!("{}.json", &desired::hash(url)[..16]))
}

/// When a set is fetched next. Pure.
#[derive(Debug)]
struct Timing {
    tried: Option<Instant>,
    failures: u32,
    due: Instant,
}

impl Timing {
    fn new(now: Instant) -> Self {
        Self { tried: None, failures: 0, due: now }
    }

    fn has_tried(&mut self, now: Instant, good: bool) {
        self.tried = Some(now);
        self.failures = if good { 0 } else { self.failures.saturating_add(1) };
        self.due = now + if good { RENEW } else { PAUSE.saturating_mul(1 << (self.failures - 1).min(8)).min(RENEW) };
    }

    /// A token names a kid that no key has. One that comes too early is answered as soon as it may be.
    fn asked(&mut self, now: Instant) {
        let earliest = self.tried.map_or(now, |tried| (tried + PAUSE).max(now));
        self.due = self.due.min(earliest);
    }
}

/// Told when something changed.
type News = Arc<dyn Fn() + Send + Sync>;

/// Everything that is fetched for this host.
pub(crate) struct KeySets {
    state_dir: PathBuf,
    news: News,
    renewers: BTreeMap<String, Renewer>,
}

/// What fetches one set; it ends when dropped.
struct Renewer {
    ask: mpsc::Sender<()>,
    trouble: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeySets {
    pub(crate) fn new(state_dir: &Path, news: impl Fn() + Send + Sync + 'static) -> Self {
        Self { state_dir: state_dir.to_owned(), news: Arc::new(news), renewers: BTreeMap::new() }
    }

    /// Fetches these from now on, and no others. Inside a runtime.
    pub(crate) fn follow<'a>(&mut self, urls: impl Iterator<Item = &'a str>) {
        let urls: BTreeSet<&str> = urls.collect();
        self.renewers.retain(|url, _| urls.contains(url.as_str()));
        for url in urls {
            if !self.renewers.contains_key(url) {
                let renewer = Renewer::start(url.to_owned(), path(&self.state_dir, url), Arc::clone(&self.news));
                self.renewers.insert(url.to_owned(), renewer);
            }
        }
    }

    /// A token names a kid that no key has.
    pub(crate) fn ask(&self) {
        for renewer in self.renewers.values() {
            // Full means that it was asked already.
            let _ = renewer.ask.try_send(());
        }
    }

    /// What keeps a set from being renewed, a sentence each.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.renewers.values().filter_map(|renewer| renewer.trouble.borrow().clone()).collect()
    }

    /// Fetches nothing any more.
    pub(crate) fn halt(&mut self) {
        self.renewers.clear();
    }
}

impl Renewer {
    fn start(url: String, path: PathBuf, news: News) -> Self {
        let (ask, asked) = mpsc::channel(1);
        let (state, trouble) = watch::channel(None);
        Self { ask, trouble, task: tokio::spawn(renew(url, path, asked, state, news)) }
    }
}

async fn renew(url: String, path: PathBuf, mut asked: mpsc::Receiver<()>, state: watch::Sender<Option<String>>, news: News) {
    let mut timing = Timing::new(Instant::now());
    loop {
        tokio::select! {
            () = sleep_until(timing.due) => {}
            Some(()) = asked.recv() => {
                timing.asked(Instant::now());
                continue;
            }
        }
        let tried = take(&url, &path).await;
        timing.has_tried(Instant::now(), tried.is_ok());
        let trouble = tried.err().map(|why| {
            let stays = if path.exists() { "its keys of before stay in force" } else { "none of its keys is in force" };
            format!("[[proxy.jwt]] {url}: {why}; {stays}; `curl {url}` on this host must show {{\"keys\": […]}}")
        });
        let same = *state.borrow() == trouble;
        state.send_replace(trouble.clone());
        // At every good one too: the set may be another.
        if !same || trouble.is_none() {
            news();
        }
    }
}

/// Fetches a set and keeps it where it is good.
async fn take(url: &str, path: &Path) -> Result<(), String> {
    let bytes = fetch::get(url, jwks::MAX_BYTES).await.map_err(|error| error.to_string())?;
    jwks::parse(&bytes).map_err(|error| error.to_string())?;
    if credentials::read(path).is_ok_and(|before| before == bytes) {
        return Ok(());
    }
    credentials::make(path, &bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_renewed_every_five_minutes_and_sooner_for_an_unknown_kid_but_not_within_thirty_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timing = Timing::new(start);
        assert_eq!(timing.due, start);
        timing.has_tried(start, true);
        assert_eq!(timing.due, at(300));
        timing.asked(at(10));
        assert_eq!(timing.due, at(30), "as soon as it may be");
        timing.has_tried(at(30), true);
        timing.asked(at(100));
        assert_eq!(timing.due, at(100));
        timing.has_tried(at(100), true);
        timing.asked(at(399));
        assert_eq!(timing.due, at(399));
        timing.asked(at(405));
        assert_eq!(timing.due, at(399), "never put off");
    }

    #[test]
    fn a_provider_that_is_down_is_tried_ever_less_often_and_never_given_up() {
        let start = Instant::now();
        let mut timing = Timing::new(start);
        let pauses: Vec<u64> = (0..40)
            .map(|_| {
                timing.has_tried(start, false);
                (timing.due - start).as_secs()
            })
            .collect();
        assert_eq!(pauses[..6], [30, 60, 120, 240, 300, 300]);
        assert!(pauses[6..].iter().all(|&pause| pause == 300));
        timing.has_tried(start, true);
        timing.has_tried(start, false);
        assert_eq!(timing.due, start + PAUSE);
    }
}
