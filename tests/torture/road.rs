//! How a request gets to sq: through the proxy over HTTPS, or straight.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    client::{Http, Session, Upload},
    host::User,
};

/// Longer than the proxy waits for sq.
const PATIENCE: Duration = Duration::from_secs(40);

/// What came back.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) text: String,
}

/// Where an sq is that is started again and again: port and key.
pub(crate) type Place = Arc<Mutex<(u16, String)>>;

/// See the file's description.
pub(crate) enum Road {
    Proxy { user: User, session: Session },
    Straight(Place),
}

impl Road {
    pub(crate) fn through_the_proxy(user: User) -> Self {
        Self::Proxy { session: user.client.session(Http::One), user }
    }

    /// Sends a request once; `None` where no answer came.
    pub(crate) async fn send(&mut self, method: Method, target: &str, body: &str) -> Option<Said> {
        match self {
            Self::Proxy { user, session } => {
                let request = user.request(method, target, Upload::whole(body.to_owned().into_bytes()));
                match session.send(request).await {
                    Ok(answer) => Some(Said { status: answer.status, text: String::from_utf8_lossy(&answer.body).into_owned() }),
                    Err(_) => {
                        *session = user.client.session(Http::One);
                        None
                    }
                }
            }
            Self::Straight(place) => {
                let (port, key) = place.lock().unwrap().clone();
                timeout(PATIENCE, straight(port, &key, &method, target, body)).await.ok()?.ok()
            }
        }
    }
}

async fn straight(port: u16, key: &str, method: &Method, target: &str, body: &str) -> io::Result<Said> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, text) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let length: usize = head.split("Content-Length: ").nth(1).and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    if text.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Said { status, text: text.to_owned() }) }
}
