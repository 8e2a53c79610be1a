//! What is to be sent, channel by channel, until it is there. Pure: the loop keeps it in instances.db before anything is sent, so that a message is
//! sent at least once, whatever dies; and twice only where the answer to the first was lost.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Alert, Outcome};
use crate::{admin::status::ChannelStatus, observed::Moment, store::rfc3339};

/// So many messages wait for a channel; with more, they become one summary.
const WAITING: usize = 20;
/// The first pause after a try that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// A program that fails so often over one message is not run for it again.
const RUNS: u32 = 5;

/// A way to tell people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// A webhook of Discord's.
    Discord,
    /// Any server that takes JSON.
    Webhook,
    /// A program on this host.
    Exec,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discord => "discord",
            Self::Webhook => "webhook",
            Self::Exec => "exec",
        })
    }
}

/// A try to send a message.
#[derive(Debug)]
pub struct Tried {
    /// Where.
    pub channel: Channel,
    /// Its number.
    pub number: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Names the address at which it was tried.
    pub mark: Option<[u8; 32]>,
}

/// Everything that is to be sent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outbox {
    channels: BTreeMap<Channel, Queue>,
}

/// What waits for one channel.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Queue {
    waiting: VecDeque<Alert>,
    /// Since when it does not go well, seconds since 1970, and why.
    trouble: Option<(u64, String)>,
    /// When a message was last taken, seconds since 1970.
    last_sent: Option<u64>,
    /// Messages that the other side does not take.
    given_up: u64,
    /// Tries of the first one that failed, in the life of this agent.
    #[serde(skip)]
    tries: u32,
    /// Nothing is sent before.
    #[serde(skip)]
    next: Moment,
    /// Number of the message that is being sent.
    #[serde(skip)]
    under_way: Option<u64>,
    /// Nothing is sent there any more, as long as the address is this.
    #[serde(skip)]
    stopped: Option<Option<[u8; 32]>>,
}

impl Outbox {
    /// Sends on these from now on. What waits for another one is forgotten.
    pub fn follow(&mut self, channels: &[Channel]) {
        self.channels.retain(|channel, _| channels.contains(channel));
        for &channel in channels {
            self.channels.entry(channel).or_default();
        }
    }

    /// This is to be said on every channel.
    pub fn push(&mut self, alert: &Alert) {
        for queue in self.channels.values_mut() {
            queue.waiting.push_back(alert.clone());
            if queue.waiting.len() > WAITING {
                // What is being sent may be there already, as it is.
                let sending = queue.waiting.front().filter(|first| queue.under_way == Some(first.number)).cloned();
                queue.waiting =
                    sending.clone().into_iter().chain(Alert::merged(queue.waiting.drain(usize::from(sending.is_some())..))).collect();
            }
        }
    }

    /// What is to be sent now: one message a channel. Each counts as under way until [`Self::done`].
    pub fn due(&mut self, now: Moment) -> Vec<(Channel, Alert)> {
        let due = |queue: &&mut Queue| queue.under_way.is_none() && queue.stopped.is_none() && now >= queue.next;
        let queues = self.channels.iter_mut();
        queues
            .filter_map(|(&channel, queue)| {
                let alert = due(&queue).then(|| queue.waiting.front().cloned())??;
                queue.under_way = Some(alert.number);
                Some((channel, alert))
            })
            .collect()
    }

    /// When something is due without news.
    pub fn next(&self) -> Option<Moment> {
        let waits = |queue: &&Queue| queue.under_way.is_none() && queue.stopped.is_none() && !queue.waiting.is_empty();
        self.channels.values().filter(waits).map(|queue| queue.next).min()
    }

    /// What came of a try. `chance` in 0..=1 spreads the tries of many hosts.
    pub fn done(&mut self, tried: Tried, unix_now: u64, now: Moment, chance: f64) {
        let Tried { channel, number, outcome, mark } = tried;
        let Some(queue) = self.channels.get_mut(&channel) else { return };
        if queue.under_way != Some(number) {
            return;
        }
        queue.under_way = None;
        let trouble = |queue: &mut Queue, why: String| {
            let since = queue.trouble.as_ref().map_or(unix_now, |(since, _)| *since);
            queue.trouble = Some((since, why));
        };
        match outcome {
            Outcome::Delivered(pause) => {
                queue.waiting.pop_front();
                (queue.trouble, queue.last_sent, queue.tries, queue.next) = (None, Some(unix_now), 0, now + pause);
            }
            Outcome::Wait(pause, why) => {
                trouble(queue, why);
                queue.next = now + pause;
            }
            Outcome::Failed(why) => {
                queue.tries = queue.tries.saturating_add(1);
                queue.next = now + pause(queue.tries, chance);
                trouble(queue, why);
                if channel == Channel::Exec && queue.tries >= RUNS {
                    queue.give_up();
                }
            }
            Outcome::Refused(why) => {
                trouble(queue, why);
                queue.give_up();
            }
            Outcome::Stopped(why) => {
                trouble(queue, why);
                queue.stopped = Some(mark);
            }
        }
    }

    /// Channels on which nothing is sent any more.
    pub fn stopped(&self) -> Vec<Channel> {
        self.channels.iter().filter(|(_, queue)| queue.stopped.is_some()).map(|(&channel, _)| channel).collect()
    }

    /// The address of a channel that was stopped is this now: at another one it is tried again.
    pub fn look_again(&mut self, channel: Channel, mark: Option<[u8; 32]>, now: Moment) {
        if let Some(queue) = self.channels.get_mut(&channel).filter(|queue| queue.stopped.is_some_and(|stopped| stopped != mark)) {
            (queue.stopped, queue.next, queue.tries) = (None, now, 0);
        }
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.channels.values().all(|queue| queue.waiting.is_empty())
    }

    /// For people.
    pub fn status(&self) -> Vec<ChannelStatus> {
        let one = |(channel, queue): (&Channel, &Queue)| ChannelStatus {
            name: channel.to_string(),
            waiting: queue.waiting.len(),
            last_sent: queue.last_sent.map(rfc3339),
            trouble: queue.trouble.as_ref().map(|(_, why)| why.clone()),
            trouble_since: queue.trouble.as_ref().map(|(since, _)| rfc3339(*since)),
            stopped: queue.stopped.is_some(),
            given_up: queue.given_up,
        };
        self.channels.iter().map(one).collect()
    }
}

impl Queue {
    fn give_up(&mut self) {
        self.waiting.pop_front();
        self.given_up += 1;
        self.tries = 0;
    }
}

fn pause(tries: u32, chance: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(10));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 + 0.25 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Item, Key, Kind, News, Severity},
        *,
    };

    fn alert(number: u64) -> Alert {
        let key = Key::host(Kind::Disk);
        let item =
            Item { news: News::Raised, key, severity: Severity::Warning, since: 0, text: number.to_string(), command: String::new() };
        Alert { number, at: number, items: vec![item], more: 0, largest: vec![] }
    }

    struct Post {
        outbox: Outbox,
        now: Moment,
    }

    impl Post {
        fn new(channels: &[Channel]) -> Self {
            let mut outbox = Outbox::default();
            outbox.follow(channels);
            Self { outbox, now: Moment::from_millis(1_000_000) }
        }

        fn after(&mut self, ms: u64) -> Vec<u64> {
            self.now = self.now + Duration::from_millis(ms);
            self.outbox.due(self.now).into_iter().map(|(_, alert)| alert.number).collect()
        }

        fn done(&mut self, channel: Channel, number: u64, outcome: Outcome) {
            self.outbox.done(Tried { channel, number, outcome, mark: Some([1; 32]) }, 1_000, self.now, 0.0);
        }

        fn restart(&mut self) {
            self.outbox = serde_json::from_str(&serde_json::to_string(&self.outbox).unwrap()).unwrap();
        }
    }

    fn failed() -> Outcome {
        Outcome::Failed("no answer".into())
    }

    const D: Channel = Channel::Discord;

    #[test]
    fn messages_go_one_after_the_other_and_each_channel_by_itself() {
        let mut post = Post::new(&[D, Channel::Webhook]);
        [1, 2].iter().for_each(|&n| post.outbox.push(&alert(n)));
        assert_eq!(post.after(0), [1, 1]);
        assert!(post.after(60_000).is_empty(), "both are under way");
        post.done(D, 1, failed());
        post.done(Channel::Webhook, 1, Outcome::Delivered(Duration::ZERO));
        assert_eq!(post.after(0), [2]);
        post.done(Channel::Webhook, 9, Outcome::Delivered(Duration::ZERO));
        assert_eq!(post.after(1_000), [1], "what is not under way counts for nothing");
    }

    #[test]
    fn a_failed_try_is_made_again_ever_later_and_never_given_up() {
        let mut post = Post::new(&[D]);
        post.outbox.push(&alert(1));
        let mut pauses = Vec::new();
        post.after(0);
        for _ in 0..12 {
            post.done(D, 1, failed());
            let next = post.outbox.next().unwrap();
            let wait = u64::try_from(post.now.until(next).as_millis()).unwrap();
            assert!(wait == 0 || post.after(wait - 1).is_empty());
            assert_eq!(post.after(1), [1]);
            pauses.push(wait / 1_000);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]);
        assert_eq!(post.outbox.status()[0].trouble.as_deref(), Some("no answer"));
        assert!(!post.outbox.is_empty());
        post.done(D, 1, Outcome::Delivered(Duration::ZERO));
        assert!(post.outbox.status()[0].trouble.is_none() && post.outbox.is_empty());
    }

    #[test]
    fn a_limit_is_waited_out_to_the_millisecond() {
        let mut post = Post::new(&[D]);
        [1, 2].iter().for_each(|&n| post.outbox.push(&alert(n)));
        post.after(0);
        post.done(D, 1, Outcome::Wait(Duration::from_millis(64_570), "429".into()));
        assert!(post.after(64_569).is_empty());
        assert_eq!(post.after(1), [1]);
        post.done(D, 1, Outcome::Delivered(Duration::from_millis(1_250)));
        assert!(post.after(1_249).is_empty());
        assert_eq!(post.after(1), [2]);
    }

    #[test]
    fn a_webhook_that_is_gone_is_tried_again_only_at_another_address() {
        let mut post = Post::new(&[D]);
        post.outbox.push(&alert(1));
        post.after(0);
        post.done(D, 1, Outcome::Stopped("404".into()));
        assert!(post.after(86_400_000).is_empty() && post.outbox.next().is_none() && post.outbox.status()[0].stopped);
        post.outbox.look_again(D, Some([1; 32]), post.now);
        assert!(post.after(0).is_empty());
        post.outbox.look_again(D, Some([2; 32]), post.now);
        assert_eq!(post.after(0), [1]);
    }

    #[test]
    fn a_message_that_nobody_takes_holds_up_no_other() {
        let mut post = Post::new(&[D, Channel::Exec]);
        [1, 2].iter().for_each(|&n| post.outbox.push(&alert(n)));
        post.after(0);
        post.done(D, 1, Outcome::Refused("400".into()));
        for _ in 0..RUNS {
            post.done(Channel::Exec, 1, failed());
            post.after(120_000);
        }
        assert_eq!(post.outbox.status().iter().map(|channel| channel.given_up).collect::<Vec<_>>(), [1, 1]);
        post.done(D, 2, Outcome::Delivered(Duration::ZERO));
        post.done(Channel::Exec, 2, Outcome::Delivered(Duration::ZERO));
        assert!(post.outbox.is_empty());
    }

    #[test]
    fn what_was_not_answered_is_sent_again_by_the_next_agent() {
        let mut post = Post::new(&[D]);
        [1, 2].iter().for_each(|&n| post.outbox.push(&alert(n)));
        post.after(0);
        post.restart();
        assert_eq!(post.after(0), [1]);
        post.done(D, 1, Outcome::Delivered(Duration::ZERO));
        post.restart();
        assert_eq!(post.after(0), [2]);
        post.outbox.follow(&[]);
        assert!(post.outbox.is_empty());
    }

    proptest! {
        #[test]
        fn what_waits_is_bounded_and_nothing_is_lost_without_being_counted(count in 1_u64..300, sending in any::<bool>()) {
            let mut post = Post::new(&[D]);
            post.outbox.push(&alert(1));
            if sending {
                post.after(0);
            }
            (2..=count).for_each(|n| post.outbox.push(&alert(n)));
            let waiting = &post.outbox.channels[&D].waiting;
            prop_assert!(waiting.len() <= WAITING);
            let told: u64 = waiting.iter().map(|alert| alert.items.len() as u64 + alert.more).sum();
            prop_assert_eq!(told, count);
            prop_assert_eq!(waiting.back().unwrap().number, count);
            prop_assert!(!sending || waiting[0].number == 1 && waiting[0].items.len() == 1);
        }
    }
}
