//! A client of the admin API, by TCP or by the agent's socket. Every request has a connection of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{client::Lost, host::Host};

/// The agent answers after 30 s at the latest.
const PATIENCE: Duration = Duration::from_secs(45);
/// A key as `openssl rand -base64 48` makes it.
pub const KEY: &str = "Zm9yLXRlc3RzLWFsb25lLW5vYm9keS1lbHNlLWhhcy10aGlzLWtleQ/+==";

/// How it comes.
#[derive(Debug, Clone)]
enum By {
    Tcp(SocketAddr),
    Socket(PathBuf),
}

/// See the file's description.
#[derive(Debug, Clone)]
pub struct Admin {
    by: By,
    /// What it shows as its key.
    pub key: Option<String>,
    /// Further header fields.
    pub headers: Vec<(&'static str, String)>,
}

/// What came back.
#[derive(Debug)]
pub struct Said {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Said {
    /// The body, which is JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Whether it is this status, and a problem of this name.
    pub fn is_problem(&self, status: u16, name: &str) -> bool {
        let json = self.json();
        let whole = ["title", "detail", "request_id"].iter().all(|field| json[field].is_string()) && json["status"] == status;
        let kind = self.headers["content-type"] == "application/problem+json";
        self.status == status && whole && kind && json["type"] == format!("urn:sq-agent:problem:{name}")
    }
}

impl Admin {
    /// By TCP, with the key of [`write_key`].
    pub fn tcp(port: u16) -> Self {
        Self { by: By::Tcp((Ipv4Addr::LOCALHOST, port).into()), key: Some(KEY.to_owned()), headers: Vec::new() }
    }

    /// By the agent's socket, without a key.
    pub fn socket(host: &Host) -> Self {
        Self { by: By::Socket(host.state_dir().join("run/agent.sock")), key: None, headers: Vec::new() }
    }

    /// The same with another header field.
    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.push((name, value.to_owned()));
        other
    }

    /// The same with another key, or none.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    /// GET, whose answer must come.
    pub async fn get(&self, target: &str) -> Said {
        self.send(Method::GET, target, None).await.unwrap_or_else(|error| panic!("GET {target}: {error}"))
    }

    /// POST of JSON, whose answer must come.
    pub async fn post(&self, target: &str, body: Value) -> Said {
        self.send(Method::POST, target, Some(body)).await.unwrap_or_else(|error| panic!("POST {target}: {error}"))
    }

    /// Any method, whose answer must come.
    pub async fn ask(&self, method: Method, target: &str, body: Option<Value>) -> Said {
        self.send(method.clone(), target, body).await.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: Method, target: &str, body: Option<Value>) -> Result<Said, Lost> {
        let mut request = Request::builder().method(method).uri(target);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send_raw(request.body(Full::from(body))?).await
    }

    /// Sends a request of the caller's making; a Host, the key and the further fields are added where it has none.
    pub async fn send_raw(&self, request: Request<Full<Bytes>>) -> Result<Said, Lost> {
        timeout(PATIENCE, async {
            match &self.by {
                By::Tcp(address) => self.exchange(TcpStream::connect(address).await?, &address.to_string(), request).await,
                By::Socket(path) => self.exchange(UnixStream::connect(path).await?, "agent", request).await,
            }
        })
        .await?
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Said, Lost> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let fields = request.headers_mut();
        for (name, value) in
            self.headers.iter().map(|(name, value)| (*name, value)).chain(self.key.as_ref().map(|key| ("x-admin-api-key", key)))
        {
            fields.insert(name, value.parse()?);
        }
        if !fields.contains_key("host") {
            fields.insert("host", host.parse()?);
        }
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Said { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

/// Writes a key file, and returns what tenants.toml is to say of it.
pub fn table(dir: &Path, port: u16) -> String {
    put_key(dir, KEY);
    format!("\n[admin]\nlisten = \"127.0.0.1:{port}\"\nkey_file = {:?}\nrate = \"none\"\n", dir.join("admin.key"))
}

/// Replaces the key file.
pub fn put_key(dir: &Path, key: &str) {
    let new = dir.join("admin.key.new");
    fs::write(&new, format!("{key}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, dir.join("admin.key")).unwrap();
}

/// A host with an admin API on a port of its own, up and settled.
pub async fn start(ids: &[&str]) -> (Host, Admin) {
    start_with(ids, |_| ()).await
}

/// The same, with more in tenants.toml.
pub async fn start_with(ids: &[&str], edit: impl FnOnce(&mut super::wanted::Wanted)) -> (Host, Admin) {
    let mut host = Host::prepare(|wanted| ids.iter().for_each(|id| _ = wanted.add(id)));
    let port = super::free_port();
    let table = table(host.root(), port);
    host.edit(|wanted| {
        wanted.more = table;
        edit(wanted);
    });
    host.launch().await;
    (host, Admin::tcp(port))
}
