//! The plain port. It sends everybody to HTTPS, says whether the proxy serves, answers an ACME server that asks for a token, and does nothing
//! else: no request of a tenant is ever taken here, since its token would have travelled in the clear.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    arrival,
    serve::{ACCEPT_AGAIN, Phase},
    service::Shared,
};

/// A connection has so long for all that it may do, which is one request.
const WHOLE: Duration = Duration::from_secs(10);

/// Longest head of a request, bytes: this is for browsers that were given an address without a scheme.
const MAX_HEAD: usize = 16 * 1024;

const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// What an answer depends on, beside the request.
#[derive(Debug)]
struct State<'a> {
    /// The proxy serves: it does not end, and has a table of routes.
    serves: bool,
    /// Host and port of `public_url`.
    public: Option<&'a str>,
    /// The port of HTTPS, where there is no `public_url`.
    https: u16,
    /// Answers to tokens.
    texts: &'a HashMap<String, String>,
}

/// Answers on `listener`, on at most as many connections as there is `room` for.
pub(super) async fn accept(listener: TcpListener, https: u16, shared: Arc<Shared>, phase: watch::Receiver<Phase>, room: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (shared, phase) = (Arc::clone(&shared), phase.clone());
                tokio::spawn(async move {
                    let _place = place;
                    if timeout(WHOLE, connection(stream, address, https, &shared, &phase)).await.is_err() {
                        tracing::debug!(peer = %address, "a client of the plain port was too slow");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a plain connection");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, address: SocketAddr, https: u16, shared: &Shared, phase: &watch::Receiver<Phase>) {
    // Who it is does not matter here, but what a balancer says of that comes first.
    if let Err(error) = arrival::peer(&mut stream, address, &shared.live.get().front).await {
        tracing::debug!(peer = %address, %error, "a plain connection is closed");
        return;
    }
    let service = service_fn(|request: Request<Incoming>| {
        let live = shared.live.get();
        let serves = *phase.borrow() == Phase::Serving && live.routes.generation() > 0;
        let state = State { serves, public: live.front.public.as_deref(), https, texts: &live.texts };
        let answer = answer(request.method(), request.uri(), request.headers(), &state);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(MAX_HEAD).keep_alive(false);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(peer = %address, %error, "a plain connection broke");
    }
}

/// What a request gets.
fn answer(method: &Method, uri: &Uri, headers: &HeaderMap, state: &State<'_>) -> Response<Full<Bytes>> {
    let asks = matches!(*method, Method::GET | Method::HEAD);
    match uri.path() {
        "/healthz" if asks && state.serves => text(StatusCode::OK, "ok\n"),
        "/healthz" if asks => text(StatusCode::SERVICE_UNAVAILABLE, "not serving\n"),
        path => match path.strip_prefix(CHALLENGES).filter(|_| asks) {
            Some(token) => match state.texts.get(token) {
                Some(answer) => text(StatusCode::OK, answer),
                None => text(StatusCode::NOT_FOUND, "no such token\n"),
            },
            None => redirect(uri, headers, state),
        },
    }
}

fn redirect(uri: &Uri, headers: &HeaderMap, state: &State<'_>) -> Response<Full<Bytes>> {
    let authority = state.public.map(str::to_owned).or_else(|| host(headers).map(|host| with_port(&host, state.https)));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let location = authority.and_then(|authority| HeaderValue::try_from(format!("https://{authority}{path}")).ok());
    // `OPTIONS *` is no place to be sent to.
    let Some(location) = location.filter(|_| path.starts_with('/')) else {
        return text(StatusCode::BAD_REQUEST, "this port only sends to HTTPS, and needs one Host header for that\n");
    };
    // 308 keeps the method: a POST that came here by mistake stays one.
    let mut response = text(StatusCode::PERMANENT_REDIRECT, "use HTTPS\n");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// The one Host header's host, where it is the name or address of one.
fn host(headers: &HeaderMap) -> Option<String> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let (host, None) = (hosts.next()?, hosts.next()) else { return None };
    let text = host.to_str().ok()?;
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    let name = !host.is_empty() && host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let literal = host.starts_with('[') && host.ends_with(']') && host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_ok();
    ((name || literal) && !text.contains('@')).then(|| host.to_owned())
}

fn with_port(host: &str, port: u16) -> String {
    if port == 443 { host.to_owned() } else { format!("{host}:{port}") }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and Location of the answer to `method target` with these Host headers.
    fn asked(method: Method, target: &str, hosts: &[&str], public: Option<&str>) -> (u16, String) {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        let texts = HashMap::from([("t0k3n".to_owned(), "t0k3n.thumb".to_owned())]);
        let state = State { serves: true, public, https: 8443, texts: &texts };
        let answer = answer(&method, &target.parse().unwrap(), &headers, &state);
        let location = answer.headers().get(header::LOCATION).map_or("", |location| location.to_str().unwrap());
        (answer.status().as_u16(), location.to_owned())
    }

    #[test]
    fn path_query_and_method_are_kept_and_the_host_is_the_one_that_was_asked() {
        let to = |target, host: &str| asked(Method::POST, target, &[host], None);
        assert_eq!(to("/a%20b?c=d&e", "sq.example.com"), (308, "https://sq.example.com:8443/a%20b?c=d&e".into()));
        assert_eq!(to("/", "sq.example.com:80"), (308, "https://sq.example.com:8443/".into()));
        assert_eq!(to("http://other.example/x", "[::1]:80"), (308, "https://[::1]:8443/x".into()));
    }

    #[test]
    fn where_there_is_a_public_url_it_is_the_only_place_to_be_sent_to() {
        for hosts in [&["evil.example"] as &[_], &[], &["a", "b"]] {
            assert_eq!(asked(Method::GET, "/x?y", hosts, Some("sq.example.com")), (308, "https://sq.example.com/x?y".into()));
        }
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        for host in ["", "user@evil.example", "a b", "evil.example/x", "[::1", "[::zz]", "a,b", "http://x"] {
            assert_eq!(asked(Method::GET, "/", &[host], None).0, 400, "{host}");
        }
        assert_eq!(asked(Method::GET, "/", &[], None).0, 400);
        assert_eq!(asked(Method::GET, "/", &["a", "a"], None).0, 400);
        assert_eq!(asked(Method::OPTIONS, "*", &["a"], None).0, 400);
    }

    #[test]
    fn a_token_is_answered_and_an_unknown_one_is_not_sent_elsewhere() {
        assert_eq!(asked(Method::GET, "/.well-known/acme-challenge/t0k3n", &["a"], None).0, 200);
        assert_eq!(asked(Method::GET, "/.well-known/acme-challenge/other", &["a"], None).0, 404);
        assert_eq!(asked(Method::GET, "/.well-known/other", &["a"], None).0, 308);
    }

    #[test]
    fn health_is_said_only_to_those_who_ask_and_only_while_all_is_well() {
        let headers = HeaderMap::new();
        let texts = HashMap::new();
        let health = |method, serves| {
            let state = State { serves, public: None, https: 443, texts: &texts };
            answer(&method, &Uri::from_static("/healthz"), &headers, &state).status().as_u16()
        };
        assert_eq!((health(Method::GET, true), health(Method::HEAD, true), health(Method::GET, false)), (200, 200, 503));
        assert_eq!(health(Method::POST, true), 400, "no Host, so nowhere to be sent to");
    }
}
