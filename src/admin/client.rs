//! Asks a running agent, blocking: commands have nothing else to do.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{socket, status::Failure};
use crate::store::AgentLock;

/// Why there is no answer; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent runs on {state_dir}: start one with `sq-agent run`", state_dir = .0.display())]
    NotRunning(PathBuf),
    /// The socket is somebody else's.
    #[error("{path}: {error}: run this as the agent's user", path = .path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the agent at {path} did not answer: {error}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// It ended before it looked at the question.
    #[error("the agent is stopping")]
    Ended,
    /// It answered no.
    #[error("{0}")]
    Refused(String),
}

/// A busy agent answers in milliseconds; one that is silent this long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends `method path` to the agent that runs on `state_dir`; returns its JSON.
pub fn ask(state_dir: &Path, method: &str, path: &str) -> Result<Vec<u8>, AskError> {
    ask_with(state_dir, method, path, &[], PATIENCE)
}

/// An agent that starts, or takes over from another one, holds the lock before it answers.
const STARTING: Duration = Duration::from_secs(10);

/// Between two tries.
const POLL: Duration = Duration::from_millis(20);

fn connect(state_dir: &Path, socket: &Path) -> Result<UnixStream, AskError> {
    let deadline = Instant::now() + STARTING;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(AskError::Forbidden { path: socket.into(), error });
            }
            Err(_) if Instant::now() < deadline && AgentLock::is_held(state_dir) => pause(POLL),
            Err(_) => return Err(AskError::NotRunning(state_dir.to_owned())),
        }
    }
}

/// A command has no runtime in which it could do something else meanwhile.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// As [`ask`], with a body, and with `patience` for the answer.
pub fn ask_with(state_dir: &Path, method: &str, path: &str, body: &[u8], patience: Duration) -> Result<Vec<u8>, AskError> {
    let deadline = Instant::now() + STARTING;
    loop {
        match ask_once(state_dir, method, path, body, patience) {
            // It ended before it looked at the question.
            Err(AskError::Ended) if Instant::now() < deadline => pause(POLL),
            outcome => return outcome,
        }
    }
}

fn ask_once(state_dir: &Path, method: &str, path: &str, body: &[u8], patience: Duration) -> Result<Vec<u8>, AskError> {
    let socket = socket(state_dir);
    let mut stream = connect(state_dir, &socket)?;
    let exchange = |stream: &mut UnixStream| -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange(&mut stream).map_err(|error| AskError::Broken { path: socket.clone(), error })?;
    let invalid = || AskError::Broken { path: socket.clone(), error: io::Error::other("the answer is not HTTP") };
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(&answer) else { return Err(invalid()) };
    let body = answer.get(head..).unwrap_or_default().to_vec();
    match response.code {
        Some(200) => Ok(body),
        Some(503) => Err(AskError::Ended),
        _ => Err(AskError::Refused(
            serde_json::from_slice::<Failure>(&body).map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |failure| failure.detail),
        )),
    }
}
