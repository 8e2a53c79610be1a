//! The admin API on TCP: listens where `[admin]` says, elsewhere as soon as that changes, and hands its listener to the agent that comes next, so
//! that who connects meanwhile waits instead of being refused.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{server::Socket, settings::Settings, status::AdminStatus};

/// Between two tries to have an address.
const AGAIN: Duration = Duration::from_secs(5);

/// See the file's description.
pub struct Door {
    leave: oneshot::Sender<()>,
    task: JoinHandle<Option<TcpListener>>,
}

/// A listener, as it was asked for, while it is served.
struct Open {
    asked: SocketAddr,
    listener: TcpListener,
    socket: Socket,
}

impl Door {
    /// Listens as `settings` say, from now on. `kept` listens already. `news` is told how that goes, at each change.
    pub(super) fn open(
        settings: watch::Receiver<Option<Arc<Settings>>>,
        router: Router,
        kept: Option<TcpListener>,
        news: mpsc::Sender<AdminStatus>,
    ) -> Self {
        let (leave, left) = oneshot::channel();
        Self { leave, task: tokio::spawn(attend(settings, router, kept, news, left)) }
    }

    /// Takes no more connections, sees the last answers out for a moment, and returns the listener, in which others wait.
    pub async fn leave(self) -> Option<TcpListener> {
        // It ends by itself only where nobody has settings for it any more.
        let _ = self.leave.send(());
        self.task.await.ok().flatten()
    }
}

async fn attend(
    mut settings: watch::Receiver<Option<Arc<Settings>>>,
    router: Router,
    mut kept: Option<TcpListener>,
    news: mpsc::Sender<AdminStatus>,
    mut left: oneshot::Receiver<()>,
) -> Option<TcpListener> {
    let mut open: Option<Open> = None;
    let mut told = AdminStatus::default();
    loop {
        let wanted = settings.borrow_and_update().as_ref().map(|settings| settings.listen);
        let mut trouble = None;
        if wanted != open.as_ref().map(|open| open.asked) {
            match wanted.map(|wanted| begin(wanted, kept.take(), &router)) {
                // What waits in the old one is not ours to answer: its address is not in tenants.toml any more.
                None => open = None,
                Some(Ok(begun)) => open = Some(begun),
                Some(Err((address, error))) => trouble = Some(complaint(address, &error, open.as_ref())),
            }
        }
        kept = None;
        let stands = AdminStatus {
            listen: open.as_ref().and_then(|open| Some(open.listener.local_addr().ok()?.to_string())),
            trouble: trouble.clone(),
        };
        if stands != told {
            told = stands.clone();
            // The loop is gone only when the agent ends.
            let _ = news.send(stands).await;
        }
        tokio::select! {
            changed = settings.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(AGAIN), if trouble.is_some() => {}
            _ = &mut left => break,
        }
    }
    let Open { listener, socket, .. } = open?;
    socket.finish().await;
    Some(listener)
}

fn begin(wanted: SocketAddr, kept: Option<TcpListener>, router: &Router) -> Result<Open, (SocketAddr, io::Error)> {
    let is_it = |listener: &TcpListener| {
        listener.local_addr().is_ok_and(|is| is.ip() == wanted.ip() && (wanted.port() == 0 || is.port() == wanted.port()))
    };
    let begin = || {
        let listener = match kept.filter(is_it) {
            Some(kept) => kept,
            None => TcpListener::bind(wanted)?,
        };
        listener.set_nonblocking(true)?;
        let served = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        Ok(Open { asked: wanted, listener, socket: Socket::serve(served, router.clone()) })
    };
    begin().map_err(|error| (wanted, error))
}

/// What is wrong, and what to do.
fn complaint(address: SocketAddr, error: &io::Error, open: Option<&Open>) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has it: see `ss -ltnp`, or choose another port in [admin] listen",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    };
    let instead = match open.and_then(|open| open.listener.local_addr().ok()) {
        Some(address) => format!("; it is still listened on {address}"),
        None => "; the agent's socket alone is open".to_owned(),
    };
    format!("cannot listen on {address}: {error}{hint}{instead}")
}
