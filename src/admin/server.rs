//! Serves HTTP on a listener: one request a connection, so that whoever closes it, the other one never waits for an answer that does not come.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tower::ServiceExt as _;

use super::api::Way;

/// A client that sends half a request is cut off after this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head, bytes.
const HEAD: usize = 32 << 10;
/// The longest work that a client may wait for (a restore of gigabytes), and some.
const LONGEST: Duration = Duration::from_secs(600);
/// Connections at once on one listener; more wait.
const AT_ONCE: usize = 256;
/// How long somebody who ends sees the last answers out.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Pause before the next try where no connection can be taken: out of descriptors, say.
const OUT_OF_BREATH: Duration = Duration::from_millis(100);

/// Binds the socket: the run directory is 0700 and the agent holds the state directory's lock, so what lies there is left over.
///
/// # Errors
/// From the system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Where connections come from.
pub(super) trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one, and how it came.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Way)>> + Send;
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<(Self::Stream, Way)> {
        let (stream, _) = self.accept().await?;
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok((stream, Way::Socket { uid }))
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<(Self::Stream, Way)> {
        let (stream, peer) = self.accept().await?;
        let local = stream.local_addr()?;
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Ok((stream, Way::Tcp { peer: canonical(peer), local: canonical(local) }))
    }
}

/// A listener while it is served.
#[derive(Debug)]
pub struct Socket {
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Socket {
    /// Answers in the background from now on.
    pub(super) fn serve(listener: impl Listener, router: Router) -> Self {
        let (close, closed) = oneshot::channel();
        Self { close: Some(close), task: tokio::spawn(serve(listener, router, closed)) }
    }

    /// Takes no more requests; those that came are still answered.
    pub fn close(mut self) -> Self {
        if let Some(close) = self.close.take() {
            // It has ended by itself.
            let _ = close.send(());
        }
        self
    }

    /// Waits until the answers are out, for a moment.
    pub async fn finish(self) {
        // A client that does not read its answer is left.
        let _ = tokio::time::timeout(LAST_ANSWERS, self.close().task).await;
    }
}

async fn serve(listener: impl Listener, router: Router, mut closed: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.next(), if connections.len() < AT_ONCE => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = &mut closed => break,
        };
        match accepted {
            Ok((stream, way)) => drop(connections.spawn(tokio::time::timeout(LONGEST, attend(stream, way, router.clone())))),
            Err(_) => tokio::time::sleep(OUT_OF_BREATH).await,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn attend(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, way: Way, router: Router) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(way);
        router.clone().oneshot(request.map(Body::new))
    });
    // A client that went away is no error of ours.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
