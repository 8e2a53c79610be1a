//! The agent's doors: HTTP on `<state_dir>/run/agent.sock`, for the commands of this program and for the admin API, and on the TCP address of
//! `[admin]` for the admin API alone.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
mod commands;
pub mod door;
pub mod page;
pub mod question;
pub mod server;
pub mod settings;
pub mod status;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};

use self::{api::Api, door::Door, question::Desk, server::Socket, settings::Settings, status::AdminStatus};

/// `<state_dir>/run/agent.sock`.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("agent.sock")
}

/// Both doors while they are open.
pub struct Doors {
    socket: Socket,
    tcp: Door,
}

impl Doors {
    /// Opens them: the agent's socket on `listener`, TCP as `settings` say, on `kept` where that listens there already. `news` is told how the
    /// latter goes.
    pub fn open(
        listener: UnixListener,
        desk: Desk,
        settings: watch::Receiver<Option<Arc<Settings>>>,
        kept: Option<TcpListener>,
        news: mpsc::Sender<AdminStatus>,
    ) -> Self {
        let api = Api::new(desk.clone(), settings.clone());
        let socket = Socket::serve(listener, commands::router(desk).merge(api.router()));
        Self { socket, tcp: Door::open(settings, api.router(), kept, news) }
    }

    /// Takes nothing more on either, and sees the last answers on TCP out. Returns the socket, on which somebody may still wait, and the TCP listener,
    /// in which those wait whom the next agent answers.
    pub async fn leave(self) -> (Socket, Option<TcpListener>) {
        let socket = self.socket.close();
        (socket, self.tcp.leave().await)
    }
}
