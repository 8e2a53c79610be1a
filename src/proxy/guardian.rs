//! The proxy's end of the conversation with its guard.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    io::{Errno, ioctl_fionbio},
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    guard::wire::{LONGEST, Sent, ToGuard, ToProxy, Verdict, Write},
    sys,
};

/// The guard is gone: what was asked of it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Asks the guard.
pub(crate) struct Guardian {
    line: RwLock<Arc<Line>>,
    tickets: AtomicU64,
    /// Told when a guard is gone.
    lost: mpsc::Sender<()>,
    /// Counts the guards.
    replaced: watch::Sender<u64>,
}

/// How long a write waits for a guard that follows one that died; the agent has one there within half a second.
const NEXT_GUARD: Duration = Duration::from_secs(5);

/// The conversation with one guard.
struct Line {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    gone: bool,
    answers: HashMap<u64, oneshot::Sender<ToProxy>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guardian {
    /// Talks to the guard behind `socket`; says on `lost` when it is gone. Call it inside the runtime.
    pub(crate) fn new(socket: OwnedFd, lost: mpsc::Sender<()>) -> io::Result<Self> {
        let line = RwLock::new(Line::open(socket, lost.clone())?);
        Ok(Self { line, tickets: AtomicU64::new(1), lost, replaced: watch::Sender::new(0) })
    }

    /// Another guard from here on. Whoever waits for the former one hears that it is gone, or is answered by it.
    pub(crate) fn replace(&self, socket: OwnedFd) -> io::Result<()> {
        let line = Line::open(socket, self.lost.clone())?;
        *self.line.write().unwrap_or_else(PoisonError::into_inner) = line;
        self.replaced.send_modify(|guards| *guards += 1);
        Ok(())
    }

    fn line(&self) -> Arc<Line> {
        Arc::clone(&self.line.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a write: what the guard says of it, and how to go on with it. Where the guard is gone, the next one is asked: nothing was sent yet.
    pub(crate) async fn begin(&self, write: &Write) -> Result<(ToProxy, Ticket), Gone> {
        let mut replaced = self.replaced.subscribe();
        let deadline = Instant::now() + NEXT_GUARD;
        loop {
            match self.try_begin(write).await {
                Err(Gone) => match timeout_at(deadline, replaced.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Err(Gone),
                },
                begun => return begun,
            }
        }
    }

    async fn try_begin(&self, write: &Write) -> Result<(ToProxy, Ticket), Gone> {
        let ticket = Ticket { line: self.line(), number: self.tickets.fetch_add(1, Ordering::Relaxed) };
        let answer = ticket.ask(&ToGuard::Begin { ticket: ticket.number, write: write.clone() }).await?;
        Ok((answer, ticket))
    }
}

/// A write that was begun. Nothing but an [`Self::end`] or the proxy's own end lets the tenant's lane go.
pub(crate) struct Ticket {
    line: Arc<Line>,
    number: u64,
}

impl Ticket {
    /// Says what became of the request, and hears what holds of the write.
    pub(crate) async fn end(&self, sent: Sent) -> Result<Verdict, Gone> {
        match self.ask(&ToGuard::End { ticket: self.number, sent }).await? {
            ToProxy::Verdict { verdict, .. } => Ok(verdict),
            _ => Err(Gone),
        }
    }

    /// After [`Verdict::PutBack`]: whether sq has read the file again. Says whether all is as before the write.
    pub(crate) async fn reloaded(&self, done: bool) -> Result<bool, Gone> {
        match self.ask(&ToGuard::Reloaded { ticket: self.number, done }).await? {
            ToProxy::Settled { undone, .. } => Ok(undone),
            _ => Err(Gone),
        }
    }

    async fn ask(&self, message: &ToGuard) -> Result<ToProxy, Gone> {
        let bytes = serde_json::to_vec(message).map_err(|_| Gone)?;
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = lock(&self.line.waiting);
            if waiting.gone {
                return Err(Gone);
            }
            waiting.answers.insert(self.number, sender);
        }
        if self.line.say(&bytes).await.is_err() {
            lock(&self.line.waiting).answers.remove(&self.number);
            return Err(Gone);
        }
        answer.await.map_err(|_| Gone)
    }
}

impl Line {
    fn open(socket: OwnedFd, lost: mpsc::Sender<()>) -> io::Result<Arc<Self>> {
        ioctl_fionbio(&socket, true)?;
        let socket = sys::watch_readable(socket)?;
        let line = Arc::new(Self { socket, waiting: Mutex::default() });
        tokio::spawn(listen(Arc::clone(&line), lost));
        Ok(line)
    }

    async fn say(&self, message: &[u8]) -> io::Result<()> {
        loop {
            match send(self.socket.get_ref(), message, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => self.room().await?,
                Err(Errno::INTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Waits for room in the socket, by a descriptor of its own: were the one that is listened to watched for this, too, each message that the guard
    /// takes would wake a thread here.
    async fn room(&self) -> io::Result<()> {
        let socket = sys::watch(self.socket.get_ref().try_clone()?, Interest::WRITABLE)?;
        socket.writable().await.map(drop)
    }
}

/// Hands each answer to who waits for it, until the guard is gone.
async fn listen(line: Arc<Line>, lost: mpsc::Sender<()>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        let heard = line.socket.async_io(Interest::READABLE, |socket| Ok(recv(socket, &mut buffer[..], RecvFlags::empty())?.0)).await;
        let answer = match heard {
            Ok(length) if length > 0 => serde_json::from_slice::<ToProxy>(&buffer[..length]).ok(),
            _ => None,
        };
        let mut waiting = lock(&line.waiting);
        let Some(answer) = answer else {
            tracing::error!("the guard of the tenants' files is gone: no write is taken until there is another");
            waiting.gone = true;
            waiting.answers.clear();
            drop(waiting);
            // Full: it is known already.
            let _ = lost.try_send(());
            return;
        };
        if let Some(waiter) = waiting.answers.remove(&answer.ticket()) {
            // One that went away: its write is a task of its own and never does.
            let _ = waiter.send(answer);
        }
    }
}
