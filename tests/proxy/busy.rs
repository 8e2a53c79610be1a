//! A stand-in for sq that answers by itself, at once or slowly, and notices writes that overlap.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// Length of the answer to `/api/v2/get`, which comes in pieces.
pub const LONG: usize = 256 * 1024;
const PIECES: usize = 8;
const BETWEEN_PIECES: Duration = Duration::from_millis(30);

pub struct Busy {
    pub port: u16,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    writing: AtomicU32,
    most: AtomicU32,
    writes: AtomicU32,
}

impl Busy {
    /// Answers for ever; a write takes it so long.
    pub async fn start(write: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let for_all = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // One that breaks off is nobody's failure here.
                tokio::spawn(answer(stream, for_all.clone(), write));
            }
        });
        Self { port, seen }
    }

    /// Writes that have ended, and the most that were under way at once.
    pub fn writes(&self) -> (u32, u32) {
        (self.seen.writes.load(Ordering::SeqCst), self.seen.most.load(Ordering::SeqCst))
    }

    pub fn is_writing(&self) -> bool {
        self.seen.writing.load(Ordering::SeqCst) > 0
    }
}

async fn answer(mut stream: TcpStream, seen: Arc<Seen>, write: Duration) -> Option<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let target = head.split(' ').nth(1).unwrap().to_owned();
    match target.split('?').next().unwrap() {
        "/api/v2/update" => {
            let now = seen.writing.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(now, Ordering::SeqCst);
            // The write is over when it is answered, or when who asked for it is gone.
            let gone = tokio::select! {
                () = sleep(write) => false,
                _ = stream.read_u8() => true,
            };
            seen.writing.fetch_sub(1, Ordering::SeqCst);
            seen.writes.fetch_add(1, Ordering::SeqCst);
            if gone {
                return None;
            }
            say(&mut stream, &length.to_string()).await
        }
        "/api/v2/get" => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n").as_bytes()).await.ok()?;
            for _ in 0..PIECES {
                stream.write_all(&[b'x'; LONG / PIECES]).await.ok()?;
                sleep(BETWEEN_PIECES).await;
            }
            Some(())
        }
        _ => say(&mut stream, &target).await,
    }
}

async fn say(stream: &mut TcpStream, body: &str) -> Option<()> {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}
