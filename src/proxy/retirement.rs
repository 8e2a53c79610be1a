//! The end of a proxy whose place another has taken: watched to its last word, so that its side is cleared when it is dead, and not before.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    attached::{LAST_WORDS, Proxy},
    control::ToAgent,
    supervisor::{ProxyEvent, nudge},
};
use crate::framed::ControlError;
use crate::route::{Activity, Meters, Side};

/// A proxy that retires may finish what is in flight for so long: the longest answer of sq takes 32 s, nearly all take milliseconds.
pub(super) const RETIRE: Duration = Duration::from_secs(30);

/// How a proxy leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It is told to retire.
    Retire,
    /// An earlier agent told it.
    Told,
    /// It never served anybody.
    Unborn,
}

/// What a watch over the end of a proxy needs of the agent.
#[derive(Clone)]
pub(super) struct Escort {
    pub(super) activity: Arc<Activity>,
    pub(super) meters: Arc<Meters>,
    pub(super) events: mpsc::Sender<ProxyEvent>,
    /// Less time for all who leave: the agent ends too.
    pub(super) hurry: watch::Receiver<Option<Duration>>,
}

impl Escort {
    /// Sees a proxy off. Returns its side when that is free.
    pub(super) async fn see_off(mut self, mut proxy: Proxy, how: Farewell) -> Side {
        match how {
            Farewell::Retire => proxy.say_end(RETIRE, true).await,
            Farewell::Unborn => proxy.say_end(Duration::ZERO, false).await,
            Farewell::Told => {}
        }
        let cut = self.last_words(&mut proxy).await;
        let exit = proxy.gone_within(Duration::ZERO).await;
        self.activity.clear_side(proxy.side);
        self.meters.clear_side(proxy.side);
        let pid = proxy.hello.pid;
        tracing::info!(pid, exit, cut, "the old proxy is gone");
        if how != Farewell::Unborn {
            // Nobody listens: the agent is ending.
            let _ = self.events.send(ProxyEvent::Retired { pid, cut }).await;
        }
        proxy.side
    }

    /// Hears the proxy out: how many requests it had to cut, or `None` if it died before it could say.
    async fn last_words(&mut self, proxy: &mut Proxy) -> Option<u64> {
        let mut deadline = Instant::now() + RETIRE + LAST_WORDS;
        let (mut hurried, mut speaks) = (false, true);
        loop {
            let word = tokio::select! {
                word = word_or_end(proxy, speaks) => Ok(word),
                Some(grace) = hurry(&mut self.hurry), if !hurried => Err(grace),
                () = sleep_until(deadline) => return None,
            };
            match word {
                Ok(Ok(Some(ToAgent::Ended { cut }))) => return Some(cut),
                Ok(Ok(Some(ToAgent::Nudge { id, reason }))) => nudge(&self.events, id, reason),
                // A forge may keep its connection. Nobody listens: the agent is ending.
                Ok(Ok(Some(ToAgent::Pushed))) => _ = self.events.send(ProxyEvent::Pushed).await,
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) if !speaks => return None,
                // Dead, most often. Otherwise of another version, perhaps: it keeps its time, and is followed without words.
                Ok(Ok(None) | Err(_)) => speaks = false,
                Err(grace) => {
                    hurried = true;
                    deadline = deadline.min(Instant::now() + grace + LAST_WORDS);
                    proxy.say_end(grace, true).await;
                }
            }
        }
    }
}

/// The next word of a proxy that still speaks; of one that does not, its end.
async fn word_or_end(proxy: &mut Proxy, speaks: bool) -> Result<Option<ToAgent>, ControlError> {
    if speaks {
        return proxy.word().await;
    }
    proxy.gone().await;
    Ok(None)
}

/// When there is less time than was said: how much.
async fn hurry(hurry: &mut watch::Receiver<Option<Duration>>) -> Option<Duration> {
    hurry.wait_for(Option::is_some).await.ok().and_then(|grace| *grace)
}
