//! Keeps one proxy serving: adopts the one that lives, starts one, starts another when it dies, and replaces it by a new one without a pause.
//!
//! At most two live at once, one on each side: the one that serves and one that retires (or a new one that is not up yet). A side belongs to
//! a proxy from its start to its death, and is cleared only then.

use std::{
    net::TcpListener,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    attached::{Proxy, SupervisorError},
    birth::{self, Outfit},
    control::{ToAgent, ToProxy},
    listen,
    log_shelf::Shelf,
    retirement::{Escort, Farewell, RETIRE},
    settings::Settings,
    standing::{Reason, Standing, Wanted, control_path, serving, until_silence_ends},
    supervisor::{NotUp, ProxyEvent, Serving, SupervisorConfig, local_addresses, nudge},
};
use crate::framed::send;
use crate::route::Side;

/// First and longest pause before a new start. The very first new start comes at once.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A proxy that lived so long starts with a clean slate.
const STABLE: Duration = Duration::from_secs(60);

/// Between two tries to replace a proxy that cannot stay.
const REPLACE_AGAIN: Duration = Duration::from_secs(60);

/// For a proxy with which no conversation is possible.
const LAST_GRACE: Duration = Duration::from_secs(10);

/// The agent's word to end, with the grace it gives. One that is dropped without a word leaves the proxy to the next agent.
type Stop = oneshot::Receiver<Duration>;

/// See the file's description.
pub(super) struct Keeper {
    config: SupervisorConfig,
    listeners: Vec<TcpListener>,
    wanted: Wanted,
    serial: u64,
    /// The settings name an address that could not be had.
    listens_in_vain: bool,
    /// So many new proxies in a row came up too late.
    late: u32,
    /// What the settings of this serial are.
    sent: Option<Arc<Settings>>,
    /// By side: somebody lives there.
    taken: [bool; 2],
    /// Those who leave; each gives its side back.
    leaving: JoinSet<Side>,
    hurry: watch::Sender<Option<Duration>>,
    outcome: watch::Sender<Option<Result<Serving, NotUp>>>,
    shelf: Shelf,
}

/// How attending to a proxy ended.
enum End {
    /// The agent wanted it so.
    Stopped,
    /// The proxy is dead: what is known of its end.
    Dead(String),
}

impl Keeper {
    pub(super) fn new(
        config: SupervisorConfig,
        listeners: Vec<TcpListener>,
        wanted: Wanted,
        outcome: watch::Sender<Option<Result<Serving, NotUp>>>,
    ) -> Self {
        let (leaving, hurry) = (JoinSet::new(), watch::Sender::new(None));
        let shelf = Shelf::new(config.state_dir.clone(), config.access_log.clone());
        Self {
            config,
            listeners,
            wanted,
            serial: 0,
            listens_in_vain: false,
            late: 0,
            sent: None,
            taken: [false; 2],
            leaving,
            hurry,
            outcome,
            shelf,
        }
    }

    /// Runs until the agent says stop.
    pub(super) async fn run(mut self, found: [Standing; 2], mut stop: Stop) {
        let mut serving = self.settle(found);
        let mut back_off = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let end = match serving.take() {
                Some(proxy) => self.attend(proxy, &mut stop).await,
                None => match self.start(&mut stop).await {
                    Ok(Some(proxy)) => self.attend(proxy, &mut stop).await,
                    Ok(None) => End::Stopped,
                    Err(error) => {
                        self.conclude(Err(NotUp { why: error.to_string(), still_serving: None }));
                        End::Dead(error.to_string())
                    }
                },
            };
            let End::Dead(exit) = end else { return };
            if begun.elapsed() > STABLE {
                back_off = Duration::ZERO;
            }
            self.tell(ProxyEvent::Down { exit, next_try: back_off }).await;
            tokio::select! {
                () = sleep(back_off) => {}
                // Perhaps it was the settings.
                Ok(()) = self.config.settings.changed() => {}
                grace = &mut stop => return self.stop(None, grace.ok()).await,
            }
            back_off = (back_off * 2).clamp(BACK_OFF.0, BACK_OFF.1);
        }
    }

    /// Gives everybody who lives a part. Returns who serves.
    fn settle(&mut self, found: [Standing; 2]) -> Option<Proxy> {
        let hello = |standing: &Standing| match standing {
            Standing::Living(proxy) => Some(proxy.hello.clone()),
            Standing::Nobody | Standing::Silent => None,
        };
        let hellos = [hello(&found[0]), hello(&found[1])];
        let serves = serving([hellos[0].as_ref(), hellos[1].as_ref()]);
        let mut chosen = None;
        for (side, standing) in Side::BOTH.into_iter().zip(found) {
            self.taken[side as usize] = true;
            match standing {
                Standing::Nobody => self.free(side),
                Standing::Silent => {
                    let path = control_path(&self.config.state_dir, side);
                    let (activity, meters) = (self.config.activity.clone(), self.config.meters.clone());
                    self.leaving.spawn(async move {
                        until_silence_ends(&path, RETIRE).await;
                        activity.clear_side(side);
                        meters.clear_side(side);
                        side
                    });
                }
                Standing::Living(proxy) if serves == Some(side) => chosen = Some(*proxy),
                Standing::Living(proxy) => {
                    let how = match (proxy.hello.retiring, proxy.hello.side) {
                        (true, _) => Farewell::Told,
                        (false, Some(_)) => Farewell::Retire,
                        (false, None) => Farewell::Unborn,
                    };
                    self.see_off(*proxy, how);
                }
            }
        }
        if self.taken == [false; 2] {
            self.config.activity.forget_older();
        }
        chosen
    }

    /// A dead proxy's side: what it counted is nobody's any more.
    fn free(&mut self, side: Side) {
        self.config.activity.clear_side(side);
        self.config.meters.clear_side(side);
        self.taken[side as usize] = false;
    }

    fn free_side(&self) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| !self.taken[*side as usize])
    }

    fn see_off(&mut self, proxy: Proxy, how: Farewell) {
        tracing::info!(pid = proxy.hello.pid, version = proxy.hello.version, ?how, "a proxy leaves");
        let SupervisorConfig { activity, meters, events, .. } = &self.config;
        let (activity, meters, events) = (activity.clone(), meters.clone(), events.clone());
        self.leaving.spawn(Escort { activity, meters, events, hurry: self.hurry.subscribe() }.see_off(proxy, how));
    }

    /// A new proxy that serves, once a side is free; `None` if the agent says stop meanwhile.
    async fn start(&mut self, stop: &mut Stop) -> Result<Option<Proxy>, SupervisorError> {
        loop {
            if let Some(side) = self.free_side() {
                return self.bear(side).await.map(Some);
            }
            tokio::select! {
                Some(Ok(side)) = self.leaving.join_next() => self.taken[side as usize] = false,
                grace = &mut *stop => {
                    self.stop(None, grace.ok()).await;
                    return Ok(None);
                }
            }
        }
    }

    /// Listens where the settings say from now on. Where that cannot be, all stays as it was, and that is told.
    async fn listen_anew(&mut self) {
        let wanted = self.config.settings.borrow().front.addresses.clone();
        let Some(wanted) = wanted.filter(|wanted| *wanted != self.config.listen || self.listens_in_vain) else { return };
        match listen::change(&self.listeners, &self.config.listen.all(), &wanted.all()) {
            Ok(listeners) => {
                self.listeners = listeners;
                self.listens_in_vain = false;
                self.config.listen = wanted;
                (self.config.keep)(&self.listeners);
                self.tell(ProxyEvent::Listens { addresses: local_addresses(&self.listeners) }).await;
            }
            Err(error) => {
                self.listens_in_vain = true;
                self.tell(ProxyEvent::ListensInVain { why: format!("{error}; it is listened where it was") }).await;
            }
        }
    }

    /// A new proxy on `side`, up and said so.
    async fn bear(&mut self, side: Side) -> Result<Proxy, SupervisorError> {
        self.listen_anew().await;
        let settings = self.settings(side);
        let (activity, meters) = (self.config.activity.share()?, self.config.meters.share()?);
        let mut descriptors: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        descriptors.extend([self.config.routes.as_fd(), activity.as_fd(), meters.as_fd()]);
        let SupervisorConfig { state_dir, exe, network, .. } = &self.config;
        self.taken[side as usize] = true;
        match birth::bear(
            side,
            Outfit { state_dir, exe, network: network.as_ref(), settings: (settings, descriptors), patience: birth::patience(self.late) },
        )
        .await
        {
            Ok(proxy) => {
                self.late = 0;
                self.is_in_force();
                self.is_up(&proxy, true).await;
                Ok(proxy)
            }
            Err(error) => {
                self.free(side);
                if let SupervisorError::Stillborn { why, .. } = &error {
                    match &**why {
                        SupervisorError::Refused(why) => self.tell(ProxyEvent::Refused { why: why.clone() }).await,
                        SupervisorError::Late(_) => self.late += 1,
                        _ => {}
                    }
                }
                Err(error)
            }
        }
    }

    /// Serves by `proxy`, or by the one that replaces it, until that is dead or the agent says stop.
    async fn attend(&mut self, mut proxy: Proxy, stop: &mut Stop) -> End {
        let mut reason = if proxy.up { None } else { self.wanted.reason_against(&proxy.hello) };
        let mut replace_at = Instant::now();
        let mut told = proxy.up;
        self.shelf.another_proxy();
        loop {
            if let Some(why) = reason
                && Instant::now() >= replace_at
                && let Some(side) = self.free_side()
            {
                if self.replace(&mut proxy, side, why).await {
                    (reason, told) = (None, true);
                } else {
                    replace_at = Instant::now() + REPLACE_AGAIN;
                    // An upgrade is given up whole, by whoever asked for it.
                    reason = reason.filter(|why| *why != Reason::Asked);
                }
                continue;
            }
            if proxy.speaks()
                && !std::mem::replace(&mut told, true)
                && let Err(error) = self.send_settings(&proxy).await
            {
                return self.broken(proxy, &error).await;
            }
            tokio::select! {
                word = proxy.word_or_end() => match word {
                    Ok(Some(word)) => self.hear(&mut proxy, word, reason.is_none()).await,
                    Ok(None) => return self.dead(proxy).await,
                    Err(error) => return self.broken(proxy, &error.into()).await,
                },
                Ok(()) = self.config.settings.changed() => told = false,
                Some(Ok(side)) = self.leaving.join_next(), if !self.leaving.is_empty() => {
                    self.taken[side as usize] = false;
                    self.tidy(&proxy);
                }
                () = sleep_until(self.shelf.look_at()), if proxy.speaks() => {
                    if let Err(error) = self.look_after_log(&proxy).await {
                        return self.broken(proxy, &error).await;
                    }
                }
                () = sleep_until(replace_at), if reason.is_some() && replace_at > Instant::now() => {}
                grace = &mut *stop => {
                    self.stop(Some(proxy), grace.ok()).await;
                    return End::Stopped;
                }
            }
        }
    }

    /// Puts a new proxy in the place of `proxy`, which retires; or leaves all as it was.
    async fn replace(&mut self, proxy: &mut Proxy, side: Side, why: Reason) -> bool {
        let (pid, version) = (proxy.hello.pid, proxy.hello.version.clone());
        tracing::info!(pid, version, %why, "the proxy is replaced");
        match self.bear(side).await {
            Ok(new) => {
                let old = std::mem::replace(proxy, new);
                self.shelf.another_proxy();
                self.see_off(old, Farewell::Retire);
                true
            }
            Err(error) => {
                tracing::error!(pid, %error, "the new proxy did not come up; the old one goes on");
                self.conclude(Err(NotUp { why: error.to_string(), still_serving: Some(pid) }));
                false
            }
        }
    }

    async fn dead(&mut self, mut proxy: Proxy) -> End {
        let exit = proxy.wait_for_end().await;
        self.free(proxy.side);
        End::Dead(exit)
    }

    /// A conversation that broke: most often the proxy is dead. One that is not still serves somebody.
    async fn broken(&mut self, mut proxy: Proxy, error: &SupervisorError) -> End {
        let exit = format!("{error}; {}", proxy.end(LAST_GRACE).await);
        self.free(proxy.side);
        End::Dead(exit)
    }

    /// Ends everything within the grace; without one, leaves it to the next agent.
    async fn stop(&mut self, proxy: Option<Proxy>, grace: Option<Duration>) {
        let Some(grace) = grace else { return };
        self.hurry.send_replace(Some(grace));
        if let Some(mut proxy) = proxy {
            proxy.end(grace).await;
            self.free(proxy.side);
        }
        while self.leaving.join_next().await.is_some() {}
        self.config.activity.forget_older();
    }

    fn settings(&mut self, side: Side) -> ToProxy {
        self.serial += 1;
        let sent = Arc::clone(&self.config.settings.borrow_and_update());
        let mut settings = Settings::clone(&sent);
        self.sent = Some(sent);
        settings.side = side as u8;
        ToProxy::Settings {
            settings: Box::new(settings),
            listeners: self.listeners.len(),
            plain: self.config.listen.plain.len(),
            serial: self.serial,
        }
    }

    async fn send_settings(&mut self, proxy: &Proxy) -> Result<(), SupervisorError> {
        self.listen_anew().await;
        let settings = self.settings(proxy.side);
        let (activity, meters) = (self.config.activity.share()?, self.config.meters.share()?);
        let mut descriptors: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        descriptors.extend([self.config.routes.as_fd(), activity.as_fd(), meters.as_fd()]);
        Ok(send(&proxy.stream, &settings, &descriptors).await?)
    }

    async fn look_after_log(&mut self, proxy: &Proxy) -> Result<(), SupervisorError> {
        let alone = !self.taken[proxy.side.other() as usize];
        match self.shelf.look(SystemTime::now(), alone) {
            Some(file) => Ok(send(&proxy.stream, &ToProxy::AccessLog, &[file.as_fd()]).await?),
            None => Ok(()),
        }
    }

    /// `stays`: the proxy is not to be replaced as soon as that can be.
    async fn hear(&mut self, proxy: &mut Proxy, word: ToAgent, stays: bool) {
        match word {
            ToAgent::Applied { serial } => {
                if serial == self.serial {
                    self.is_in_force();
                }
                if !std::mem::replace(&mut proxy.up, true) {
                    self.is_up(proxy, stays).await;
                }
            }
            ToAgent::Refused { why, .. } => {
                if stays {
                    self.conclude(Err(NotUp { why: why.clone(), still_serving: Some(proxy.hello.pid) }));
                }
                self.tell(ProxyEvent::Refused { why }).await;
            }
            ToAgent::Nudge { id, reason } => nudge(&self.config.events, id, reason),
            ToAgent::AccessLog => self.shelf.answered(),
            // Lost where news comes in thick: the keys are fetched every few minutes anyway.
            ToAgent::UnknownKid => _ = self.config.events.try_send(ProxyEvent::UnknownKid),
            // No other word comes after it that would do as well.
            ToAgent::Pushed => self.tell(ProxyEvent::Pushed).await,
            ToAgent::GuardLost => {
                tracing::error!(pid = proxy.hello.pid, "the proxy has lost its guard, and gets another");
                match proxy.give_guard(&self.config.exe, &self.config.state_dir).await {
                    Ok(()) => self.tell_of_guard(proxy).await,
                    Err(error) => tracing::error!(%error, "no guard: writes are refused"),
                }
            }
            ToAgent::Hello(_) | ToAgent::Ended { .. } => {}
        }
    }

    /// What was sent last is served by.
    fn is_in_force(&self) {
        self.config.in_force.send_replace(self.sent.clone());
    }

    async fn is_up(&self, proxy: &Proxy, stays: bool) {
        let up = Serving { pid: proxy.hello.pid, side: proxy.side, adopted: proxy.child.is_none() };
        let event = ProxyEvent::Up { pid: up.pid, side: up.side, adopted: up.adopted };
        self.tidy(proxy);
        if stays {
            self.conclude(Ok(up));
        }
        self.tell(event).await;
        self.tell_of_guard(proxy).await;
    }

    async fn tell_of_guard(&self, proxy: &Proxy) {
        if let Some(guard) = proxy.guard {
            self.tell(ProxyEvent::Guarded { pid: guard.pid }).await;
        }
    }

    /// Where all who live have the activity page of this version, an older one has nothing more to say.
    fn tidy(&self, proxy: &Proxy) {
        if proxy.up && !self.taken[proxy.side.other() as usize] {
            self.config.activity.forget_older();
        }
    }

    /// The first outcome is the one that counts.
    fn conclude(&self, outcome: Result<Serving, NotUp>) {
        self.outcome.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(outcome);
            }
            first
        });
    }

    async fn tell(&self, event: ProxyEvent) {
        // Nobody listens: the agent is ending.
        let _ = self.config.events.send(event).await;
    }
}
