//! The agent's doors: HTTP on `<state_dir>/run/agent.sock`, for the commands of this program and for the admin API, and on the TCP address of
//! `[admin]` for the admin API and the page.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
mod commands;
pub mod door;
pub mod page;
pub mod question;
mod records;
pub mod server;
pub mod settings;
pub mod sight;
mod site;
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

use self::{
    api::{Api, ApiParts, Stage},
    door::Door,
    question::Desk,
    server::Socket,
    settings::Settings,
    site::Site,
    status::AdminStatus,
};
use crate::{desired::Desired, edit::Editor, metrics::Metrics, secret::Secret};

/// `<state_dir>/run/agent.sock`.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("agent.sock")
}

/// Both doors while they are open.
pub struct Doors {
    socket: Socket,
    tcp: Door,
    api: Api,
    stage: watch::Sender<Stage>,
}

/// What [`Doors`] need.
pub struct DoorsParts {
    /// The agent's socket.
    pub socket: UnixListener,
    /// To the loop.
    pub desk: Desk,
    /// What `[admin]` says; none where there is no TCP.
    pub settings: watch::Receiver<Option<Arc<Settings>>>,
    /// A TCP listener that an agent before left, in which somebody may wait.
    pub kept: Option<TcpListener>,
    /// Told how it is listened on TCP, at each change.
    pub news: mpsc::Sender<AdminStatus>,
    /// Changes tenants.toml.
    pub editor: Editor,
    /// What of it is in force.
    pub in_force: watch::Receiver<Arc<Desired>>,
    /// Answers scrapes.
    pub metrics: Metrics,
    /// Of this host.
    pub secret: Secret,
}

impl Doors {
    /// Opens them.
    pub fn open(parts: DoorsParts) -> Self {
        let DoorsParts { socket, desk, settings, kept, news, editor, in_force, metrics, secret } = parts;
        let stage = watch::Sender::new(Stage::Here);
        let api = ApiParts { desk: desk.clone(), settings: settings.clone(), editor, in_force, metrics, secret, stage: stage.subscribe() };
        let api = Api::new(api);
        let socket = Socket::serve(socket, commands::router(desk).merge(api.router()));
        Self { socket, tcp: Door::open(settings, Site::new(api.clone()).beside(api.router()), kept, news), api, stage }
    }

    /// Takes nothing more on either, sees the last answers on TCP out, and changes nothing any more. Returns the socket, on which somebody may still wait, and the TCP listener,
    /// in which those wait whom the next agent answers.
    pub async fn leave(self) -> (Socket, Option<TcpListener>) {
        let socket = self.socket.close();
        self.stage.send_replace(Stage::Leaving);
        let listener = self.tcp.leave().await;
        self.stage.send_replace(Stage::Gone);
        self.api.let_go().await;
        (socket, listener)
    }
}
