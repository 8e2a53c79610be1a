//! A client over real TLS, of HTTP/1.1 or HTTP/2, or of raw bytes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub type AnyBody = BoxBody<Bytes, Infallible>;

#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A connection of either kind.
pub enum Connection {
    One(hyper::client::conn::http1::SendRequest<AnyBody>),
    Two(hyper::client::conn::http2::SendRequest<AnyBody>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    One,
    Two,
}

impl Client {
    pub fn new(address: SocketAddr, cert_pem: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(cert_pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Self { address, config: Arc::new(config.with_root_certificates(roots).with_no_client_auth()) }
    }

    /// The bytes inside TLS.
    pub async fn raw(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls(TcpStream::connect(self.address).await?, alpn).await
    }

    /// TLS over a connection that stands already.
    pub async fn tls(&self, tcp: TcpStream, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(Arc::new(self.config(&[alpn]))).connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    /// How it speaks TLS, with these protocols.
    pub fn config(&self, protocols: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    /// TLS with `name`, whoever shows what certificate, as an ACME server does it.
    pub async fn tls_to(&self, tcp: TcpStream, name: &'static str, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = self.config(protocols);
        let anybody = Anybody(config.crypto_provider().clone());
        config.resumption = rustls::client::Resumption::disabled();
        config.dangerous().set_certificate_verifier(Arc::new(anybody));
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), tcp).await
    }

    pub async fn connect(&self, http: Http) -> std::io::Result<Connection> {
        self.over(TcpStream::connect(self.address).await?, http).await
    }

    /// Over a connection that stands already.
    pub async fn over(&self, tcp: TcpStream, http: Http) -> std::io::Result<Connection> {
        match http {
            Http::One => {
                let io = TokioIo::new(self.tls(tcp, b"http/1.1").await?);
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Ok(Connection::One(sender))
            }
            Http::Two => {
                let io = TokioIo::new(self.tls(tcp, b"h2").await?);
                let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Ok(Connection::Two(sender))
            }
        }
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, http: Http, request: Request<AnyBody>) -> Answer {
        self.connect(http).await.unwrap().ask(request).await.unwrap()
    }

    pub async fn get(&self, token: &str, target: &str) -> Answer {
        self.ask(Http::Two, request(Method::GET, token, target, full(""))).await
    }

    pub async fn post(&self, token: &str, target: &str, body: &str) -> Answer {
        self.ask(Http::One, request(Method::POST, token, target, full(body))).await
    }
}

/// Takes any certificate: that of a challenge has an extension which no checker knows.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Connection {
    /// The answer's head; its body still comes.
    pub async fn begin(&mut self, request: Request<AnyBody>) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                let mut request = request;
                let target = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
                *request.uri_mut() = target;
                request.headers_mut().insert("host", http::HeaderValue::from_static("localhost"));
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub async fn ask(&mut self, request: Request<AnyBody>) -> hyper::Result<Answer> {
        let (head, body) = self.begin(request).await?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

pub fn full(body: &str) -> AnyBody {
    Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed()
}

/// A body whose length nobody knows before its end (chunked, or h2 without content-length).
pub fn pieces() -> (mpsc::Sender<Bytes>, AnyBody) {
    struct Pieces(mpsc::Receiver<Bytes>);
    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }
    let (sender, receiver) = mpsc::channel(4);
    (sender, Pieces(receiver).boxed())
}

/// A request with a token (none if it is empty).
pub fn request<B: Body>(method: Method, token: &str, target: &str, body: B) -> Request<B> {
    let mut request = Request::builder().method(method).uri(format!("https://localhost{target}"));
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(body).unwrap()
}
