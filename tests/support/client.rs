//! An HTTPS client that trusts the host's own certificate, for HTTP/1.1 and HTTP/2. Every request has a connection of its own.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The proxy itself gives up on sq after 35 s; a test that waits longer hangs.
const PATIENCE: Duration = Duration::from_secs(40);

/// Which HTTP is spoken, by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A header field, which must be there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }
}

/// A request's body.
#[derive(Debug, Default)]
pub struct Upload {
    pieces: VecDeque<Bytes>,
    length: Option<u64>,
    stuck: bool,
}

impl Upload {
    /// One that says its length.
    pub fn whole(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { length: Some(body.len() as u64), pieces: Some(body).into_iter().filter(|body| !body.is_empty()).collect(), stuck: false }
    }

    /// One that does not: chunked in HTTP/1.1, without content-length in HTTP/2.
    pub fn pieces(body: &[u8], size: usize) -> Self {
        Self { pieces: body.chunks(size).map(Bytes::copy_from_slice).collect(), length: None, stuck: false }
    }

    /// The same, and it never ends.
    pub fn stuck(body: &[u8], size: usize) -> Self {
        Self { stuck: true, ..Self::pieces(body, size) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            // Nobody is to wake it: there is nothing more to come.
            None if self.stuck => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && !self.stuck
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The client.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// Why there is no answer.
pub type Lost = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    /// For the proxy on `port`, which must show `certificate` (a PEM file).
    pub fn new(port: u16, certificate: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), tls: Arc::new(tls) }
    }

    /// A TLS connection that offers one protocol only.
    pub async fn connect(&self, http: Http) -> Result<TlsStream<TcpStream>, Lost> {
        timeout(PATIENCE, async { self.tls_over(TcpStream::connect(self.address).await?, http).await }).await?
    }

    /// TLS over a connection that stands already.
    pub async fn tls_over(&self, stream: TcpStream, http: Http) -> Result<TlsStream<TcpStream>, Lost> {
        let mut tls = ClientConfig::clone(&self.tls);
        let alpn: &[u8] = if http == Http::One { b"http/1.1" } else { b"h2" };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
        Ok(stream)
    }

    /// For many requests over one connection.
    pub fn session(&self, http: Http) -> Session {
        Session { client: self.clone(), http, sender: None }
    }

    /// Where it connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, http: Http, request: Request<Upload>) -> Result<Answer, Lost> {
        let stream = self.connect(http).await?;
        self.send_over(stream, http, request).await
    }

    /// The same, over a connection that stands already.
    pub async fn send_over(&self, stream: TlsStream<TcpStream>, http: Http, request: Request<Upload>) -> Result<Answer, Lost> {
        timeout(PATIENCE, self.exchange(stream, http, request)).await?
    }

    async fn exchange(&self, stream: TlsStream<TcpStream>, http: Http, mut request: Request<Upload>) -> Result<Answer, Lost> {
        let response = match http {
            Http::One => {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                let host = self.address.to_string().parse()?;
                request.headers_mut().insert(http::header::HOST, host);
                sender.send_request(request).await?
            }
            Http::Two => {
                let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                *request.uri_mut() = format!("https://{}{}", self.address, request.uri()).parse()?;
                sender.send_request(request).await?
            }
        };
        read(response).await
    }
}

/// Requests one after another over a connection that is kept for as long as the server keeps it.
pub struct Session {
    client: Client,
    http: Http,
    sender: Option<Sender>,
}

enum Sender {
    One(hyper::client::conn::http1::SendRequest<Upload>),
    Two(hyper::client::conn::http2::SendRequest<Upload>),
}

impl Session {
    /// Sends a request and reads the whole answer; over a new connection where the server closed the last one in due form.
    pub async fn send(&mut self, request: Request<Upload>) -> Result<Answer, Lost> {
        timeout(PATIENCE, self.exchange(request)).await?
    }

    async fn exchange(&mut self, mut request: Request<Upload>) -> Result<Answer, Lost> {
        request.headers_mut().insert(http::header::HOST, self.client.address.to_string().parse()?);
        let path = request.uri().clone();
        loop {
            let mut kept = self.sender.take();
            let ready = match &mut kept {
                Some(Sender::One(sender)) => sender.ready().await.is_ok(),
                Some(Sender::Two(sender)) => sender.ready().await.is_ok(),
                None => false,
            };
            let sender = match kept.filter(|_| ready) {
                Some(sender) => sender,
                None => self.open().await?,
            };
            let (sender, sent) = match sender {
                Sender::One(mut sender) => {
                    let sent = sender.try_send_request(request).await;
                    (Sender::One(sender), sent)
                }
                Sender::Two(mut sender) => {
                    *request.uri_mut() = format!("https://{}{path}", self.client.address).parse()?;
                    request.headers_mut().remove(http::header::HOST);
                    let sent = sender.try_send_request(request).await;
                    (Sender::Two(sender), sent)
                }
            };
            match sent {
                Ok(response) => {
                    self.sender = Some(sender);
                    return read(response).await;
                }
                // The connection was closed in due form before a byte of the request went out: any client sends it over another one.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
    }

    async fn open(&self) -> Result<Sender, Lost> {
        let stream = TokioIo::new(self.client.connect(self.http).await?);
        Ok(match self.http {
            Http::One => {
                let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
                tokio::spawn(connection);
                Sender::One(sender)
            }
            Http::Two => {
                let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Sender::Two(sender)
            }
        })
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, Lost> {
    let (head, body) = response.into_parts();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
}
