//! Whoever is told of alerts: a server on loopback that plays Discord as its documents have it ("Execute Webhook", "Rate Limits"), or any other
//! that takes JSON.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::host::Host;

/// The token in the address: whoever knows it may write.
pub const TOKEN: &str = "t0ken-that-nobody-may-see";
/// Discord lets so many messages through a webhook in [`WINDOW`], as far as is seen from outside.
const LIMIT: usize = 5;
const WINDOW: Duration = Duration::from_secs(2);

/// A message that came.
#[derive(Debug, Clone)]
pub struct Got {
    /// When.
    pub at: Instant,
    /// Path and query.
    pub target: String,
    /// What it says.
    pub body: Value,
    /// What it was answered; 0 for nothing.
    pub status: u16,
}

/// An answer that is no good.
#[derive(Debug, Clone)]
pub enum Bad {
    /// This status, with these headers (a line each) and this body.
    Status(u16, &'static str, &'static str),
    /// The connection is closed without an answer.
    Closed,
    /// None, for as long as the other side waits.
    Silence,
}

#[derive(Debug, Default)]
struct Book {
    got: Vec<Got>,
    /// What the next ones are answered.
    bad: VecDeque<Bad>,
    /// From here on all are.
    always: Option<Bad>,
    /// When the last ones were let through.
    through: VecDeque<Instant>,
}

/// The server; it ends when dropped.
pub struct Receiver {
    /// Its port on loopback.
    pub port: u16,
    secure: bool,
    book: Arc<Mutex<Book>>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// On any port.
    pub async fn start() -> Self {
        Self::start_on(0).await
    }

    /// On this one.
    pub async fn start_on(port: u16) -> Self {
        Self::serve(port, None).await
    }

    /// The same by TLS.
    pub async fn start_secure(tls: rustls::ServerConfig) -> Self {
        Self::serve(0, Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn serve(port: u16, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (port, secure) = (listener.local_addr().unwrap().port(), tls.is_some());
        let book: Arc<Mutex<Book>> = Arc::default();
        let kept = book.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (book, tls) = (kept.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => answer(tls.accept(stream).await?, &book).await,
                        None => answer(stream, &book).await,
                    }
                });
            }
        });
        Self { port, secure, book, task }
    }

    /// Its address as Discord gives one out.
    pub fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/api/webhooks/1/{TOKEN}", self.port)
    }

    /// Puts that address into `file`, readable for its owner alone.
    pub fn put_url(&self, file: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        let new = file.with_extension("new");
        std::fs::write(&new, self.url() + "\n").unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&new, file).unwrap();
    }

    /// The next messages are answered so.
    pub fn answer(&self, bad: impl IntoIterator<Item = Bad>) {
        self.book.lock().unwrap().bad.extend(bad);
    }

    /// All messages are from here on; or all well again.
    pub fn answer_always(&self, bad: Option<Bad>) {
        self.book.lock().unwrap().always = bad;
    }

    /// Everything that came.
    pub fn all(&self) -> Vec<Got> {
        self.book.lock().unwrap().got.clone()
    }

    /// What was taken: answered with 2xx.
    pub fn taken(&self) -> Vec<Got> {
        self.all().into_iter().filter(|got| (200..300).contains(&got.status)).collect()
    }

    /// Waits for a message that was taken and says this in its first line.
    pub async fn says(&self, host: &Host, patience: Duration, what: &[&str]) -> Got {
        let started = Instant::now();
        loop {
            let says = |got: &Got| what.iter().all(|what| got.line().contains(what));
            if let Some(got) = self.taken().into_iter().find(says) {
                return got;
            }
            assert!(started.elapsed() < patience, "not within {patience:?}: {what:?}, but {:#?}\n{}", self.all(), host.account());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Got {
    /// What a telephone shows of it.
    pub fn line(&self) -> &str {
        self.body["content"].as_str().or_else(|| self.body["summary"].as_str()).unwrap_or_default()
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, book: &Mutex<Book>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = {
        let mut book = book.lock().unwrap();
        let bad = book.bad.pop_front().or_else(|| book.always.clone());
        let answer = match bad {
            Some(bad) => bad.into(),
            None => good(&mut book, &target, &body),
        };
        book.got.push(Got { at: Instant::now(), target, body, status: answer.status });
        answer
    };
    if answer.waits {
        // Until the other side has enough.
        let _ = stream.read_u8().await;
    }
    if answer.status > 0 {
        let Answer { status, headers, body, .. } = answer;
        let text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

/// What is sent back.
struct Answer {
    status: u16,
    headers: String,
    body: String,
    waits: bool,
}

impl From<Bad> for Answer {
    fn from(bad: Bad) -> Self {
        let nothing = Self { status: 0, headers: String::new(), body: String::new(), waits: false };
        match bad {
            Bad::Status(status, headers, body) => Self { status, headers: headers.to_owned(), body: body.to_owned(), ..nothing },
            Bad::Closed => nothing,
            Bad::Silence => Self { waits: true, ..nothing },
        }
    }
}

/// As Discord answers.
fn good(book: &mut Book, target: &str, body: &Value) -> Answer {
    let answer = |status, headers: String, body: Value| Answer { status, headers, body: body.to_string(), waits: false };
    if body.get("allowed_mentions").is_none() {
        return answer(200, String::new(), json!({}));
    }
    if !target.contains(TOKEN) {
        return answer(404, String::new(), json!({ "message": "Unknown Webhook", "code": 10015 }));
    }
    if let Some(fault) = fault(body) {
        return answer(400, String::new(), json!({ "message": fault, "code": 50035 }));
    }
    let now = Instant::now();
    book.through.retain(|at| now - *at < WINDOW);
    let after = book.through.front().map_or(WINDOW, |first| WINDOW - (now - *first)).as_secs_f64();
    let mut headers = format!("x-ratelimit-limit: {LIMIT}\r\nx-ratelimit-reset-after: {after:.3}\r\nx-ratelimit-bucket: abcd1234\r\n");
    if book.through.len() >= LIMIT {
        let _ = write!(headers, "x-ratelimit-remaining: 0\r\nretry-after: {}\r\nx-ratelimit-scope: shared\r\n", after.ceil());
        return answer(429, headers, json!({ "message": "You are being rate limited.", "retry_after": after, "global": false }));
    }
    book.through.push_back(now);
    let _ = write!(headers, "x-ratelimit-remaining: {}\r\n", LIMIT - book.through.len());
    if target.contains("wait=true") { answer(200, headers, json!({ "id": "1" })) } else { answer(204, headers, Value::Null) }
}

/// Why Discord would not take it.
fn fault(body: &Value) -> Option<String> {
    let length = |value: &Value| value.as_str().map_or(0, |text| text.encode_utf16().count());
    let embeds = body["embeds"].as_array()?;
    let limits = [("content", length(&body["content"]), 2_000), ("embeds", embeds.len(), 10)];
    let embed = |embed: &Value| {
        let fields = embed["fields"].as_array().cloned().unwrap_or_default();
        let field = |name: &str| fields.iter().map(|field| length(&field[name])).collect::<Vec<_>>();
        let (names, values) = (field("name"), field("value"));
        let footer = length(&embed["footer"]["text"]);
        let all = length(&embed["title"]) + length(&embed["description"]) + footer + names.iter().chain(&values).sum::<usize>();
        let most = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let empty = names.iter().chain(&values).any(|&length| length == 0);
        vec![
            ("title", length(&embed["title"]), 256),
            ("description", length(&embed["description"]), 4_096),
            ("fields", fields.len(), 25),
            ("field name", most(&names), 256),
            ("field value", most(&values), 1_024),
            ("footer", footer, 2_048),
            ("embed", all, 6_000),
            ("an empty field", usize::from(empty), 0),
            ("colour", usize::from(embed["color"].as_u64().is_none()), 0),
        ]
    };
    let all = limits.into_iter().chain(embeds.iter().flat_map(embed));
    all.into_iter().find(|(_, length, max)| length > max).map(|(what, length, max)| format!("{what}: {length} of {max}"))
}
