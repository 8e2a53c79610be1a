//! The agent on a real host: drives the loop's logic by tokio's clock and channels.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::{core::Core, event::Event, host::Host};
use crate::{
    admin::{
        question::{Answer, Asked, Reply},
        sight::Look,
        status::AdminStatus,
    },
    desired::Desired,
    instance::{Process, binary::SqBinary},
    metrics::{Ask, Turns},
    observed::Moment,
    proxy::supervisor::ProxyEvent,
};

/// How many events are taken in before the next look at the rest; bounds the delay of a publish.
const BATCH: usize = 256;

/// The loop and the host it acts on.
pub struct Agent {
    pub(super) core: Core<Host>,
    /// Whether the rows in the table are this agent's.
    pub(super) settled: watch::Sender<bool>,
    /// What tenants.toml says that is in force.
    pub(super) in_force: watch::Sender<Arc<Desired>>,
}

/// News from the tasks that carry out actions.
pub type HostEvent = Event<Arc<Process>>;

/// Where news comes from.
pub struct Inputs {
    /// From the tasks that carry out actions.
    pub events: mpsc::UnboundedReceiver<HostEvent>,
    /// From the watch on tenants.toml.
    pub changed: mpsc::Receiver<()>,
    /// From the proxy.
    pub proxy: mpsc::Receiver<ProxyEvent>,
    /// From who serves the admin API on TCP.
    pub admin: mpsc::Receiver<AdminStatus>,
    /// From the agent's socket.
    pub questions: mpsc::Receiver<Asked>,
    /// From the page.
    pub looks: mpsc::Receiver<Look>,
    /// From who asks for metrics.
    pub metrics: mpsc::Receiver<Ask>,
    /// SIGHUP, and the end.
    pub signals: mpsc::Receiver<Signal>,
}

/// What a turn of the loop is about.
enum News {
    Event(Box<HostEvent>),
    Changed,
    Proxy(ProxyEvent),
    Admin(AdminStatus),
    Question(Asked),
    Look(Look),
    Metrics(Ask),
    Signal(Signal),
    Wake,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read tenants.toml and everything it names again.
    Reload,
    /// SIGINT or SIGTERM: drain and stop everything.
    Stop,
    /// Another agent takes over: leave everything as it is, at once.
    HandOver,
}

impl Agent {
    /// Converges until it is told to stop; then everything it started has ended, except where a second signal cut that short.
    /// After [`Signal::HandOver`] everything goes on, its rows stay in force, and nothing of this agent acts any more.
    pub async fn run(mut self, mut inputs: Inputs) -> Self {
        let mut waiting = HashMap::new();
        let mut turns = Turns::default();
        let mut began = Instant::now();
        loop {
            let now = Moment::now();
            self.core.round(now);
            // Before anybody is told that it is.
            self.in_force.send_if_modified(|told| {
                let is_new = !Arc::ptr_eq(told, &self.core.desired);
                told.clone_from(&self.core.desired);
                is_new
            });
            for (number, answer) in self.core.take_answers() {
                // A command that did not wait for its answer is no error.
                let _ = waiting.remove(&number).map(|sender: oneshot::Sender<Answer>| sender.send(answer));
            }
            self.settled.send_if_modified(|settled| std::mem::replace(settled, self.core.is_settled()) != self.core.is_settled());
            if self.core.is_over() {
                self.core.say_goodbye();
                self.core.close_history();
                return self;
            }
            let wake = tokio::time::sleep(now.until(self.core.wake_at()));
            turns.note(began.elapsed());
            let news = tokio::select! {
                Some(event) = inputs.events.recv() => News::Event(Box::new(event)),
                Some(()) = inputs.changed.recv() => News::Changed,
                Some(event) = inputs.proxy.recv() => News::Proxy(event),
                Some(stands) = inputs.admin.recv() => News::Admin(stands),
                Some(asked) = inputs.questions.recv() => News::Question(asked),
                Some(look) = inputs.looks.recv() => News::Look(look),
                Some(ask) = inputs.metrics.recv() => News::Metrics(ask),
                Some(signal) = inputs.signals.recv() => News::Signal(signal),
                () = wake => News::Wake,
            };
            began = Instant::now();
            match news {
                News::Event(event) => {
                    let now = Moment::now();
                    self.core.take_in(*event, now);
                    for _ in 1..BATCH {
                        let Ok(event) = inputs.events.try_recv() else { break };
                        self.core.take_in(event, now);
                    }
                }
                News::Changed | News::Signal(Signal::Reload) => self.core.reload(Moment::now()),
                News::Proxy(event) => self.core.hear_proxy(event, Moment::now()),
                News::Admin(stands) => self.core.hear_door(stands),
                News::Look(look) => self.core.show(look, Moment::now()),
                News::Question((question, answer)) => match self.core.answer(question, Moment::now()) {
                    Reply::Now(said) => _ = answer.send(said),
                    Reply::Later(number) => _ = waiting.insert(number, answer),
                },
                // Who asked may be gone by now.
                News::Metrics(ask) => _ = ask.send(Arc::new(self.core.snapshot(Moment::now(), turns))),
                News::Signal(Signal::Stop) => self.core.stop(Moment::now()),
                News::Signal(Signal::HandOver) => {
                    self.halt().await;
                    self.core.say_goodbye();
                    return self;
                }
                News::Wake => self.core.wake(Moment::now()),
            }
        }
    }

    /// Ends every task of this agent: afterwards none of them starts, signals or stops anything. A start that is being made is
    /// waited for. What a cut-off task leaves half done is what a killed agent leaves: the next one takes it from there.
    pub async fn halt(&mut self) {
        self.core.world.halt().await;
    }

    /// Turns true once it is clear which of the instances that ran before live, and the routes say so.
    pub fn settled(&self) -> watch::Receiver<bool> {
        self.settled.subscribe()
    }

    /// What is in force, from now on.
    pub fn in_force(&self) -> watch::Receiver<Arc<Desired>> {
        self.in_force.subscribe()
    }

    /// The program is there.
    pub fn set_program(&mut self, program: SqBinary) {
        self.core.set_program(program);
    }

    /// Looks for the desired program, or installs it; what runs goes on meanwhile.
    pub fn find_program(&mut self) {
        self.core.find_program();
    }

    /// Keeps `text`, the tenants.toml in force, for a restart that finds a bad one.
    pub fn save_last_good(&mut self, text: &str) {
        self.core.save_last_good(text);
    }

    /// The proxy's addresses as they came to be, for status: port 0 is some port by now.
    pub fn listens_on(&mut self, addresses: &[SocketAddr]) {
        self.core.listens_on(addresses);
    }

    /// Whether something that an earlier agent started may still run.
    pub fn found_instances(&self) -> bool {
        self.core.found_instances()
    }
}
