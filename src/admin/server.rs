//! Serves the agent's socket: each request becomes one question to the loop, whose answer goes back as JSON.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use super::status::{Failure, RestoreRequest, UpgradeRequest};
use crate::desired::TenantId;

/// What a command asks of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// `GET /status`.
    Status,
    /// `GET /observed`: what a plan starts from.
    Observed,
    /// `POST /confirm/HASH`.
    Confirm(String),
    /// `POST /restart/ID`.
    Restart(TenantId),
    /// `POST /backup`, or `POST /backup/init`, which may make a repository where one was before.
    Backup {
        /// It may.
        may_make: bool,
    },
    /// `POST /gitops/sync`, `…/sync/accept-rewrite`, `…/suspend` or `…/resume`.
    GitOps(GitOpsAsked),
    /// `POST /snapshot/ID`.
    Snapshot(TenantId),
    /// `POST /restore`.
    Restore(RestoreRequest),
}

/// What is asked of the repository that tenants.toml comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitOpsAsked {
    /// A look now.
    Sync {
        /// Also where the branch was rewritten.
        accept_rewrite: bool,
    },
    /// No more looks, or looks again.
    Suspend(bool),
}

/// What the loop says to a question.
#[derive(Debug)]
pub enum Reply {
    /// This.
    Now(Answer),
    /// What it says once the work of this number has ended.
    Later(u64),
}

/// `POST /upgrade`: hand the host over to the program at this path. It is not the loop that answers, since the loop ends by it.
pub type UpgradeAsked = (PathBuf, oneshot::Sender<Answer>);

/// Where questions go.
#[derive(Debug, Clone)]
pub struct Desk {
    /// To the loop.
    pub questions: mpsc::Sender<Asked>,
    /// To whoever runs the loop.
    pub upgrades: mpsc::Sender<UpgradeAsked>,
}

/// The answer: a JSON body, or why not.
pub type Answer = Result<Vec<u8>, (StatusCode, String)>;

/// A question on its way to the loop.
pub type Asked = (Question, oneshot::Sender<Answer>);

/// A command that sends half a request is cut off after this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an agent that ends sees its last answers out.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Longest body of a question: a path has at most 4,096 bytes.
const MAX_BODY: usize = 16 << 10;

/// Binds the socket: the run directory is 0700 and the agent holds the state directory's lock, so what lies there is left over.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// The agent's socket while it is served.
#[derive(Debug)]
pub struct Socket {
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Socket {
    /// Answers in the background from now on.
    pub fn serve(listener: UnixListener, desk: Desk) -> Self {
        let (close, closed) = oneshot::channel();
        Self { close: Some(close), task: tokio::spawn(serve(listener, desk, closed)) }
    }

    /// Takes no more questions; those that came are still answered.
    pub fn close(mut self) -> Self {
        if let Some(close) = self.close.take() {
            // It has ended by itself.
            let _ = close.send(());
        }
        self
    }

    /// Waits until the answers are out, for a moment.
    pub async fn finish(self) {
        // A command that does not read its answer is left.
        let _ = tokio::time::timeout(LAST_ANSWERS, self.close().task).await;
    }
}

async fn serve(listener: UnixListener, desk: Desk, mut closed: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = &mut closed => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, say: wait for some to be closed instead of spinning.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let desk = desk.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| respond(request, desk.clone()));
            // A command that went away is no error of ours.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn respond(request: Request<Incoming>, desk: Desk) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let answer = if request.method() == Method::POST && request.uri().path() == "/upgrade" {
        match upgrade_request(request).await {
            Ok(exe) => ask(&desk.upgrades, exe).await,
            Err(failure) => Err(failure),
        }
    } else if request.method() == Method::POST && request.uri().path() == "/restore" {
        match body_of::<RestoreRequest>(request, "a tenant and the name of a snapshot").await {
            Ok(wish) => ask(&desk.questions, Question::Restore(wish)).await,
            Err(failure) => Err(failure),
        }
    } else {
        match question(request.method(), request.uri().path()) {
            Ok(question) => ask(&desk.questions, question).await,
            Err(failure) => Err(failure),
        }
    };
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err((status, detail)) => (status, serde_json::to_vec(&Failure { detail }).unwrap_or_default()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn ask<Q>(to: &mpsc::Sender<(Q, oneshot::Sender<Answer>)>, question: Q) -> Answer {
    let (sender, receiver) = oneshot::channel();
    match to.send((question, sender)).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| Err(stopping())),
        Err(_) => Err(stopping()),
    }
}

async fn upgrade_request(request: Request<Incoming>) -> Result<PathBuf, (StatusCode, String)> {
    const WANTS: &str = "{\"exe\": \"/path/to/sq-agent\"}";
    let UpgradeRequest { exe } = body_of(request, WANTS).await?;
    if exe.is_absolute() {
        Ok(exe)
    } else {
        Err((StatusCode::BAD_REQUEST, format!("POST /upgrade wants {WANTS}: the path must be absolute")))
    }
}

/// The JSON of a question; `wants` says what it should be.
async fn body_of<T: serde::de::DeserializeOwned>(request: Request<Incoming>, wants: &str) -> Result<T, (StatusCode, String)> {
    let path = request.uri().path().to_owned();
    let bad = |error: String| (StatusCode::BAD_REQUEST, format!("POST {path} wants {wants}: {error}"));
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(error.to_string()))
}

fn stopping() -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".into())
}

fn question(method: &Method, path: &str) -> Result<Question, (StatusCode, String)> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    match (method, parts.next(), parts.next()) {
        (&Method::GET, Some("status"), None) => Ok(Question::Status),
        (&Method::GET, Some("observed"), None) => Ok(Question::Observed),
        (&Method::POST, Some("confirm"), Some(hash)) => Ok(Question::Confirm(hash.to_owned())),
        (&Method::POST, Some("restart"), Some(id)) => tenant(id).map(Question::Restart),
        (&Method::POST, Some("snapshot"), Some(id)) => tenant(id).map(Question::Snapshot),
        (&Method::POST, Some("backup"), None) => Ok(Question::Backup { may_make: false }),
        (&Method::POST, Some("backup"), Some("init")) => Ok(Question::Backup { may_make: true }),
        (&Method::POST, Some("gitops"), Some("sync")) => Ok(Question::GitOps(GitOpsAsked::Sync { accept_rewrite: false })),
        (&Method::POST, Some("gitops"), Some("sync/accept-rewrite")) => Ok(Question::GitOps(GitOpsAsked::Sync { accept_rewrite: true })),
        (&Method::POST, Some("gitops"), Some("suspend")) => Ok(Question::GitOps(GitOpsAsked::Suspend(true))),
        (&Method::POST, Some("gitops"), Some("resume")) => Ok(Question::GitOps(GitOpsAsked::Suspend(false))),
        _ => Err((StatusCode::NOT_FOUND, format!("{method} {path}: this agent knows no such question; is it of another version?"))),
    }
}

fn tenant(id: &str) -> Result<TenantId, (StatusCode, String)> {
    TenantId::parse(id).map_err(|error| (StatusCode::BAD_REQUEST, format!("{id:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_question_and_nothing_else_is_one() {
        assert_eq!(question(&Method::GET, "/status"), Ok(Question::Status));
        assert_eq!(question(&Method::POST, "/confirm/abc"), Ok(Question::Confirm("abc".into())));
        assert_eq!(question(&Method::POST, "/restart/a@b.c"), Ok(Question::Restart(TenantId::parse("a@b.c").unwrap())));
        assert_eq!(question(&Method::POST, "/snapshot/a"), Ok(Question::Snapshot(TenantId::parse("a").unwrap())));
        assert_eq!(question(&Method::POST, "/restart/../x").unwrap_err().0, StatusCode::BAD_REQUEST);
        assert_eq!(question(&Method::POST, "/backup"), Ok(Question::Backup { may_make: false }));
        assert_eq!(question(&Method::POST, "/backup/init"), Ok(Question::Backup { may_make: true }));
        assert_eq!(question(&Method::GET, "/confirm/abc").unwrap_err().0, StatusCode::NOT_FOUND);
    }
}
