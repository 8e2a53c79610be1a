//! A stand-in for sq where every byte must be seen.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::support::DEADLINE;

pub struct Fake {
    listener: TcpListener,
    pub port: u16,
}

/// One request as it came.
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    stream: TcpStream,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// The next request, whole.
    pub async fn next(&self) -> Seen {
        timeout(DEADLINE, self.read()).await.expect("no request came")
    }

    /// Whether a connection waits to be accepted.
    pub async fn is_untouched(&self) -> bool {
        timeout(std::time::Duration::from_millis(150), self.listener.accept()).await.is_err()
    }

    async fn read(&self) -> Seen {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..end + 4].to_vec()).unwrap();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |length| length.parse().unwrap());
                while bytes.len() < end + 4 + length {
                    assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "the request was cut");
                }
                return Seen { head, body: bytes.split_off(end + 4), stream };
            }
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "the head was cut");
        }
    }
}

impl Seen {
    /// Answers as sq does, and closes.
    pub async fn answer(self, status: &str, body: &str) {
        self.raw(&format!("HTTP/1.1 {status}\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    }

    /// Answers with these bytes, and closes.
    pub async fn raw(mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
        self.stream.shutdown().await.unwrap();
    }
}
