//! Asking an instance whether it is there and is itself, at its start and at its adoption. Whether it goes on answering is
//! for [`super::pulse`].
//!
//! Plain sockets and a fixed request, since 2,300 starts ask a few times each. One request a connection, as sq closes after
//! each answer.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::{
    network::Network,
    process::{Exit, Process},
};

/// Who answered on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyedAnswer {
    /// An sq that takes exactly our key.
    Mine,
    /// Something that asks for another key.
    OtherKey,
    /// Something else: the status it gave to our key. With 404, it takes any key at all.
    Other(u16),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens (yet).
    #[error("connection refused")]
    Refused,
    /// It listens and does not answer.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// What came back is not HTTP.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// Anything else the network said.
    #[error(transparent)]
    Io(io::Error),
}

/// Why an instance did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It ended first; its log says why.
    #[error("it ended before it answered: {0}")]
    Exited(Exit),
    /// Another server has the port.
    #[error("another server answers on port {port}")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Neither answer nor end until the deadline.
    #[error("no answer in time ({last})")]
    Timeout {
        /// What the last try met.
        last: ProbeError,
    },
}

/// A key that no instance has: all keys are 64 hex digits.
const WRONG_KEY: &str = "not-the-key";

/// Proves who answers on `port`: `GET /healthz` must be 404 with our key and 401 with a wrong one.
///
/// Both are needed: a server without a key, or one that is not sq at all, says 404 to everybody. `/healthz` is a path
/// that sq does not know, so no phext is loaded (`version` would evict the tenant's); the accepted one logs a line, so
/// ask at start and adoption, not every 10 s. `limit` holds for both requests together.
pub async fn keyed(network: &Network, port: u16, key: &str, limit: Duration) -> Result<KeyedAnswer, ProbeError> {
    within(limit, async {
        match status(network, port, &get_healthz(port, key)).await? {
            401 => Ok(KeyedAnswer::OtherKey),
            404 => match status(network, port, &get_healthz(port, WRONG_KEY)).await? {
                401 => Ok(KeyedAnswer::Mine),
                _ => Ok(KeyedAnswer::Other(404)),
            },
            other => Ok(KeyedAnswer::Other(other)),
        }
    })
    .await
}

/// Waits until *this* process answers on `port` with its key; ends at once when it exits.
///
/// Between tries 1, 2, 4 … 20 ms: sq listens 5–7 ms after its start, and a refused connect costs some 30 µs.
pub async fn until_ready(network: &Network, process: &Process, port: u16, key: &str, deadline: Instant) -> Result<(), NotReady> {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const LONGEST_PAUSE: Duration = Duration::from_millis(20);
    let polls = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match keyed(network, port, key, left).await {
                Ok(KeyedAnswer::Mine) => return Ok(()),
                Ok(KeyedAnswer::OtherKey | KeyedAnswer::Other(_)) | Err(ProbeError::NotHttp) => return Err(NotReady::PortTaken { port }),
                Err(last) if Instant::now() >= deadline => return Err(NotReady::Timeout { last }),
                Err(_) => {}
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    tokio::select! {
        biased; // an exit explains more than what a stranger on its port says
        exit = process.exited() => Err(NotReady::Exited(exit)),
        polled = polls => match process.try_exit() {
            Some(exit) => Err(NotReady::Exited(exit)),
            None => polled,
        },
    }
}

fn get_healthz(port: u16, key: &str) -> Vec<u8> {
    format!(
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, ProbeError>>) -> Result<T, ProbeError> {
    timeout(limit, work).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

/// Sends one request and reads as far as the status.
async fn status(network: &Network, port: u16, request: &[u8]) -> Result<u16, ProbeError> {
    let mut stream = network.connect(port).await.map_err(io_error)?;
    stream.write_all(request).await.map_err(io_error)?;
    let mut head = [0; 512];
    let mut filled = 0;
    while filled < STATUS_END {
        match stream.read(&mut head[filled..]).await.map_err(io_error)? {
            0 => break,
            count => filled += count,
        }
    }
    // A reset instead of a FIN, so that thousands of starts leave no sockets in TIME_WAIT. sq has written its answer in one
    // piece and ignores what becomes of it.
    let _ = stream.set_zero_linger();
    parse_status(&head[..filled]).ok_or(ProbeError::NotHttp)
}

/// Bytes of `HTTP/1.1 204`.
pub(super) const STATUS_END: usize = 12;

pub(super) fn parse_status(head: &[u8]) -> Option<u16> {
    let digits = head.get(..STATUS_END)?.strip_prefix(b"HTTP/1.")?.get(2..)?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|status| (100..600).contains(status))
}

fn io_error(error: io::Error) -> ProbeError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused,
        _ => ProbeError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_http_and_from_nothing_else() {
        assert_eq!(parse_status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(parse_status(b"HTTP/1.0 404"), Some(404));
        assert_eq!(parse_status(b"HTTP/1.1 20"), None);
        assert_eq!(parse_status(b"SSH-2.0-OpenSSH_9.6\r\n"), None);
        assert_eq!(parse_status(b"HTTP/1.1 +04 x"), None);
        assert_eq!(parse_status(b""), None);
    }
}
