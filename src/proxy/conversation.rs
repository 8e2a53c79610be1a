//! The proxy's end of the control socket while it serves: one agent at a time, and when that is gone, the next.

use std::{
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt::socket_peercred;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use super::control::{Hello, NudgeReason, ToAgent, ToProxy};
use crate::desired::TenantId;
use crate::framed::{ControlError, Decoder, WireError, receive, send};

/// Tenants whose instances are missed, on their way to the agent.
pub(crate) type Nudges = mpsc::Receiver<(TenantId, NudgeReason)>;

/// Between two words about pushes. What comes meanwhile is said once, behind it.
const PUSHED_AGAIN: Duration = Duration::from_millis(100);

/// What happens in this process that the agent is to be told.
pub(crate) struct News {
    pub(crate) nudges: Nudges,
    /// A token names a kid that no key has.
    pub(crate) unknown_kids: mpsc::Receiver<()>,
    /// The guard is gone.
    pub(crate) lost: mpsc::Receiver<()>,
    /// A webhook came.
    pub(crate) pushes: Arc<Notify>,
}

/// See the file's description.
pub(crate) struct Conversation {
    control: UnixListener,
    agent: Option<UnixStream>,
    decoder: Decoder,
    /// The user whose agent may command this process.
    owner: u32,
    news: News,
    /// The guard is gone, and the agent is to be told.
    untold: bool,
    /// No word about a push before.
    next_push: Instant,
}

impl Conversation {
    /// Goes on with an agent that has been greeted. Call it inside the runtime.
    pub(crate) fn go_on(control: StdUnixListener, agent: StdUnixStream, decoder: Decoder, owner: u32, news: News) -> std::io::Result<Self> {
        control.set_nonblocking(true)?;
        agent.set_nonblocking(true)?;
        let (control, agent) = (UnixListener::from_std(control)?, Some(UnixStream::from_std(agent)?));
        Ok(Self { control, agent, decoder, owner, news, untold: false, next_push: Instant::now() })
    }

    /// The next word of the agent, or of the one after it, which is greeted by `hello` and given `listeners`.
    pub(crate) async fn next(&mut self, hello: &Hello, listeners: &[TcpListener]) -> ToProxy {
        loop {
            let Some(agent) = &self.agent else {
                let agent = self.next_agent().await;
                let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
                let hello = ToAgent::Hello(Hello { listeners: listeners.len(), ..hello.clone() });
                match send(&agent, &hello, &listeners).await {
                    Ok(()) => (self.agent, self.decoder) = (Some(agent), Decoder::default()),
                    Err(error) => tracing::warn!(%error, "cannot greet the agent"),
                }
                continue;
            };
            if std::mem::take(&mut self.untold) {
                self.say(&ToAgent::GuardLost).await;
                continue;
            }
            tokio::select! {
                word = receive::<ToProxy>(agent, &mut self.decoder) => match word {
                    Ok(Some(word)) => return word,
                    Ok(None) => {
                        tracing::info!("the agent is gone; serving goes on");
                        self.agent = None;
                    }
                    Err(error) => self.lose(&error),
                },
                Some((id, reason)) = self.news.nudges.recv() => self.say(&ToAgent::Nudge { id, reason }).await,
                Some(()) = self.news.unknown_kids.recv() => self.say(&ToAgent::UnknownKid).await,
                () = pushed(&self.news.pushes, self.next_push) => {
                    self.next_push = Instant::now() + PUSHED_AGAIN;
                    self.say(&ToAgent::Pushed).await;
                }
                Some(()) = self.news.lost.recv() => self.untold = true,
            }
        }
    }

    /// The descriptors of the latest word.
    pub(crate) fn descriptors(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Tells the agent, if there is one.
    pub(crate) async fn say(&mut self, word: &ToAgent) {
        if let Some(agent) = &self.agent
            && let Err(error) = send(agent, word, &[]).await
        {
            self.lose(&error);
        }
    }

    /// A word that cannot be understood ends the conversation: what follows it could not be either.
    pub(crate) fn misunderstood(&mut self, error: WireError) {
        self.lose(&error.into());
    }

    fn lose(&mut self, error: &ControlError) {
        tracing::warn!(%error, "the agent is lost; serving goes on");
        self.agent = None;
    }

    /// Waits for an agent. Nudges in the meantime are dropped: a new agent looks at everything first.
    async fn next_agent(&mut self) -> UnixStream {
        loop {
            tokio::select! {
                accepted = self.control.accept() => match accepted {
                    Ok((stream, _)) if is_owner(&stream, self.owner) => return stream,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept the agent");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                _ = self.news.nudges.recv() => {}
                // A new agent fetches the keys anyway.
                _ = self.news.unknown_kids.recv() => {}
                Some(()) = self.news.lost.recv() => self.untold = true,
            }
        }
    }
}

/// Waits until `at`, and then for a push. One that came before is not lost, whoever was waiting.
async fn pushed(pushes: &Notify, at: Instant) {
    sleep_until(at).await;
    pushes.notified().await;
}

/// Only the user who started this process may command it.
pub(crate) fn is_owner(stream: &impl AsFd, owner: u32) -> bool {
    let peer = socket_peercred(stream).map(|peer| peer.uid.as_raw());
    if peer != Ok(owner) {
        tracing::warn!(?peer, owner, "somebody else spoke to the control socket");
    }
    peer == Ok(owner)
}

/// The descriptors of settings: listeners; the route table, the activity page, the page of metrics.
pub(crate) fn settings_descriptors(decoder: &mut Decoder, listeners: usize) -> Result<(Vec<OwnedFd>, [OwnedFd; 3]), WireError> {
    let mut descriptors = decoder.descriptors(listeners.saturating_add(3))?;
    let pages = descriptors.split_off(listeners);
    let missing = |pages: Vec<_>| WireError::MissingDescriptors(3 - pages.len());
    Ok((descriptors, pages.try_into().map_err(missing)?))
}
