//! What is raised, resolved and reminded of. Pure: the facts of the moment and both clocks come in as values.
//!
//! Level-triggered: at each look what holds is compared with what was told, so that a lost moment, a restarted agent or a storm changes when
//! something is told, never whether. What only happens (a crash, a kill) holds from then on until it has not happened again for [`QUIET`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    Alert, Condition, Item, Key, Kind, News, Severity, Share,
    level::{level, may_hold},
    storm::{How, Storm},
};
use crate::{
    desired::{Alerts, TenantId},
    observed::Moment,
};

/// What happened is over when it has not happened again for so long, seconds.
pub(super) const QUIET: u64 = 600;
/// So many crashes of one instance within [`QUIET`] are a loop.
const CRASH_LOOP: usize = 5;
/// So many of the largest tenants are named.
const LARGEST: usize = 5;

/// How everything stands.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// Memory of the host; none where it cannot be told.
    pub memory: Option<Share>,
    /// The disk where the tenants' files lie.
    pub disk: Option<Share>,
    /// Everybody who is to be served, with the memory of the instance against its limit. None where it is not known; of nothing where there is no limit.
    pub tenants: BTreeMap<&'a TenantId, Option<Share>>,
    /// Whatever else holds and needs somebody.
    pub conditions: Vec<Condition>,
    /// Of these it is not known yet whether they hold.
    pub unsure: BTreeSet<Kind>,
    /// The tenants whose instances take most memory, bytes, the largest first.
    pub largest: Vec<(TenantId, u64)>,
    /// The state directory, as a shell takes it.
    pub state_dir: String,
}

/// An agent that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its process.
    pub pid: u32,
    /// In which boot of the host.
    pub boot_id: String,
}

/// What of it survives the agent. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// What holds.
    #[serde(with = "pairs")]
    open: BTreeMap<Key, Open>,
    /// What holds no more, and nobody was told so yet.
    #[serde(with = "pairs")]
    closed: BTreeMap<Key, Open>,
    /// What happened, and may happen again.
    #[serde(with = "pairs")]
    recent: BTreeMap<Key, Recent>,
    /// When instances crashed, the latest last.
    #[serde(with = "pairs")]
    crashes: BTreeMap<TenantId, VecDeque<u64>>,
    /// The agent that lives; none once it has ended as it was told to.
    agent: Option<Life>,
    /// Of the last message.
    number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    severity: Severity,
    text: String,
    command: String,
    about: String,
    since: u64,
    /// As it was last told.
    told: Option<Told>,
    /// When.
    told_at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    severity: Severity,
    about: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recent {
    at: u64,
    severity: Severity,
    text: String,
    command: String,
}

impl Open {
    fn new(condition: Condition, unix_now: u64) -> Self {
        let Condition { key: _, severity, text, command, about, since, patience: _ } = condition;
        Self { severity, text, command, about, since: since.unwrap_or(unix_now), told: None, told_at: 0 }
    }

    fn follow(&mut self, condition: Condition) {
        let Condition { key: _, severity, text, command, about, since, patience: _ } = condition;
        (self.severity, self.text, self.command, self.about) = (severity, text, command, about);
        self.since = since.unwrap_or(self.since);
    }

    /// What is to be told of it, where it holds.
    fn news(&self, reminder: Option<u64>, unix_now: u64) -> Option<News> {
        match &self.told {
            Some(told) if told.severity == self.severity && told.about == self.about => {
                let due = reminder.is_some_and(|every| unix_now.saturating_sub(self.told_at) >= every);
                due.then_some(News::Reminder)
            }
            _ => Some(News::Raised),
        }
    }

    fn item(&self, key: &Key, news: News) -> Item {
        let (text, command) = (self.text.clone(), self.command.clone());
        Item { news, key: key.clone(), severity: self.severity, since: self.since, text, command }
    }
}

/// Everything that is open, and what was told of it.
#[derive(Debug, Default)]
pub struct Book {
    kept: Kept,
    /// What has to hold for a while first, and since when it does.
    waiting: BTreeMap<Key, Moment>,
    storm: Storm,
}

impl Book {
    /// For the next agent.
    pub fn kept(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(&self.kept)
    }

    /// What the agent before knew.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn new(kept: serde_json::Value) -> serde_json::Result<Self> {
        Ok(Self { kept: serde_json::from_value(kept)?, ..Self::default() })
    }

    /// An agent begins; one before it that did not end as told is an alert.
    pub fn begun(&mut self, life: Life, unix_now: u64) {
        let same_boot = |before: &Life| before.boot_id == life.boot_id;
        let text = self.kept.agent.as_ref().map(|before| match same_boot(before) {
            true => format!("the agent before (process {}) ended without being told to: it was killed, or crashed", before.pid),
            false => format!("the host went down while the agent (process {}) ran", before.pid),
        });
        if let Some(text) = text {
            let how = "journalctl -u sq-agent -n 100";
            self.happened(Condition::warning(Key::host(Kind::AgentRestarted), text, how), unix_now);
        }
        self.kept.agent = Some(life);
    }

    /// The agent ends as it was told to.
    pub fn ended(&mut self) {
        self.kept.agent = None;
    }

    /// Something happened.
    pub fn happened(&mut self, what: Condition, unix_now: u64) {
        let Condition { key, severity, text, command, .. } = what;
        self.kept.recent.insert(key, Recent { at: unix_now, severity, text, command });
    }

    /// An instance of `id` ended unasked, or did not come up.
    pub fn crashed(&mut self, id: &TenantId, how: &str, command: &str, unix_now: u64) {
        let times = self.kept.crashes.entry(id.clone()).or_default();
        times.retain(|&at| is_recent(at, unix_now));
        times.push_back(unix_now);
        if times.len() > CRASH_LOOP {
            times.pop_front();
        }
        let key = Key::tenant(Kind::CrashLoop, id);
        if times.len() >= CRASH_LOOP || self.kept.recent.contains_key(&key) {
            let text = format!("{CRASH_LOOP} crashes or more in {} min, the last one: {how}", QUIET / 60);
            self.happened(Condition::critical(key, text, command), unix_now);
        }
    }

    /// Compares what holds with what was told. Returns what is to be said now.
    pub fn look(&mut self, facts: &Facts<'_>, rules: &Alerts, unix_now: u64, now: Moment) -> Vec<Alert> {
        self.forget(facts, unix_now);
        let holding = self.holding(facts, rules);
        self.waiting.retain(|key, _| holding.contains_key(key));
        let over = |key: &Key| !holding.contains_key(key) && !facts.unsure.contains(&key.kind);
        let gone: Vec<Key> = self.kept.open.keys().filter(|key| over(key)).cloned().collect();
        for key in gone {
            // Of what nobody was told, nobody has to be told that it is over.
            if let Some(open) = self.kept.open.remove(&key).filter(|open| open.told.is_some()) {
                self.kept.closed.insert(key, open);
            }
        }
        for (key, condition) in holding {
            self.follow(key, condition, unix_now, now);
        }
        self.tell(facts, rules.reminder, unix_now, now)
    }

    fn follow(&mut self, key: Key, condition: Condition, unix_now: u64, now: Moment) {
        if let Some(open) = self.kept.open.get_mut(&key) {
            return open.follow(condition);
        }
        let first = *self.waiting.entry(key.clone()).or_insert(now);
        if now.since(first) < condition.patience {
            return;
        }
        self.waiting.remove(&key);
        let open = match self.kept.closed.remove(&key) {
            Some(mut open) => {
                open.follow(condition);
                open
            }
            None => Open::new(condition, unix_now),
        };
        self.kept.open.insert(key, open);
    }

    /// What happened long ago, or to somebody who is not served any more.
    fn forget(&mut self, facts: &Facts<'_>, unix_now: u64) {
        let serves = |id: &TenantId| facts.tenants.contains_key(id);
        self.kept.crashes.retain(|id, times| serves(id) && times.back().is_some_and(|&at| is_recent(at, unix_now)));
        self.kept.recent.retain(|key, recent| {
            // A clock that was set back must not keep it for ever.
            recent.at = recent.at.min(unix_now);
            is_recent(recent.at, unix_now) && key.tenant.as_ref().is_none_or(serves)
        });
        for open in self.kept.open.values_mut() {
            open.told_at = open.told_at.min(unix_now);
        }
    }

    /// Everything that holds now.
    fn holding(&self, facts: &Facts<'_>, rules: &Alerts) -> BTreeMap<Key, Condition> {
        let mut holding: BTreeMap<Key, Condition> =
            facts.conditions.iter().map(|condition| (condition.key.clone(), condition.clone())).collect();
        let before = |key: &Key| self.kept.open.get(key).map(|open| open.severity);
        let mut levels = |key: Key, share: Share, levels, text: String, command: String| {
            if let Some(severity) = level(share, levels, before(&key)) {
                holding.insert(key.clone(), Condition { severity, ..Condition::warning(key, text, command) });
            }
        };
        if let Some(share) = facts.memory {
            let text = format!("{} of the memory of this host is taken", share.text());
            levels(Key::host(Kind::HostMemory), share, rules.memory, text, "sq-agent status".into());
        }
        if let Some(share) = facts.disk {
            let text = format!("{} of the disk is taken", share.text());
            levels(Key::host(Kind::Disk), share, rules.disk, text, format!("df -h {}", facts.state_dir));
        }
        for (&id, share) in &facts.tenants {
            if let Some(share) = share.filter(|&share| may_hold(share, rules.tenant_memory)) {
                let text = format!("{} of its memory_max is taken: raise memory_max, or lower body_max", share.text());
                levels(Key::tenant(Kind::TenantMemory, id), share, rules.tenant_memory, text, format!("sq-agent restart {id}"));
            }
        }
        // What cannot be measured now is as it was.
        for (key, open) in &self.kept.open {
            let unknown = match (key.kind, &key.tenant) {
                (Kind::HostMemory, _) => facts.memory.is_none(),
                (Kind::Disk, _) => facts.disk.is_none(),
                (Kind::TenantMemory, Some(id)) => facts.tenants.get(id).is_some_and(Option::is_none),
                _ => false,
            };
            if unknown {
                let (text, command) = (open.text.clone(), open.command.clone());
                holding.insert(key.clone(), Condition { severity: open.severity, ..Condition::warning(key.clone(), text, command) });
            }
        }
        for (key, recent) in &self.kept.recent {
            let (text, command) = (recent.text.clone(), recent.command.clone());
            holding.insert(key.clone(), Condition { severity: recent.severity, ..Condition::warning(key.clone(), text, command) });
        }
        holding
    }

    /// What is to be said: of the host one by one, of tenants together where it is much.
    fn tell(&mut self, facts: &Facts<'_>, reminder: Option<u64>, unix_now: u64, now: Moment) -> Vec<Alert> {
        let open = self.kept.open.iter().filter_map(|(key, open)| Some((key.clone(), open.news(reminder, unix_now)?)));
        let closed = self.kept.closed.keys().map(|key| (key.clone(), News::Resolved));
        let (tenants, host): (Vec<_>, Vec<_>) = open.chain(closed).partition(|(key, _)| key.tenant.is_some());
        let mut said: Vec<Vec<Item>> = host.into_iter().map(|(key, news)| self.told(&key, news, unix_now).into_iter().collect()).collect();
        match self.storm.how(tenants.len(), now) {
            How::Later => {}
            How::OneByOne => said.extend(tenants.into_iter().map(|(key, news)| self.told(&key, news, unix_now).into_iter().collect())),
            How::Together => said.push(tenants.into_iter().filter_map(|(key, news)| self.told(&key, news, unix_now)).collect()),
        }
        let alert = |items: Vec<Item>| {
            self.kept.number += 1;
            let only_good = items.iter().all(|item| item.news == News::Resolved);
            let largest = if only_good { Vec::new() } else { facts.largest.iter().take(LARGEST).cloned().collect() };
            let mut alert = Alert { number: self.kept.number, at: unix_now, items, more: 0, largest };
            alert.limit();
            alert
        };
        said.into_iter().filter(|items| !items.is_empty()).map(alert).collect()
    }

    /// From here on it counts as told.
    fn told(&mut self, key: &Key, news: News, unix_now: u64) -> Option<Item> {
        let closed = self.kept.closed.remove(key).map(|open| open.item(key, news));
        closed.or_else(|| {
            let open = self.kept.open.get_mut(key)?;
            open.told = Some(Told { severity: open.severity, about: open.about.clone() });
            open.told_at = unix_now;
            Some(open.item(key, news))
        })
    }

    /// What holds and was told, or is about to be: by key.
    pub fn open(&self) -> impl Iterator<Item = Item> {
        self.kept.open.iter().map(|(key, open)| open.item(key, News::Raised))
    }

    /// Whether everything was told as it is.
    pub fn is_told(&self) -> bool {
        self.kept.closed.is_empty() && self.kept.open.values().all(|open| open.news(None, 0).is_none())
    }
}

fn is_recent(at: u64, unix_now: u64) -> bool {
    unix_now.saturating_sub(at) < QUIET
}

/// A map as a list: its keys are no texts.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
