//! Every call of sq, through the proxy and straight to a bare sq beside it: the answers are the same, byte for byte.

use std::fs;

use http::{Method, Request};
use regex::Regex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Running,
    client::{Http, Upload},
    host::Host,
};

/// One call: method, what follows `/api/v2/` (P stands for the phext), body.
type Call = (&'static str, &'static str, &'static str);

/// In an order in which each finds what it needs. A phext with one scroll for json-export, which lists in random order.
const CALLS: &[Call] = &[
    ("GET", "insert?p=P&c=1.1.1/1.1.1/1.1.1&s=Hello", ""),
    ("GET", "insert?p=P&c=1.1.1/1.1.1/1.1.1&s=%20w%C3%B6rld%20%F0%9F%8C%8D", ""),
    ("GET", "insert?p=P&c=1.1.1/1.1.1/1.1.1&s=a+b%2Bc%26d%3De", ""),
    ("GET", "select?p=P&c=1.1.1/1.1.1/1.1.1", ""),
    ("GET", "json-export?p=P", ""),
    ("POST", "insert?p=P&c=1.1.1/1.1.1/1.1.2", "Grüße, 世界 \u{1f469}\u{200d}\u{1f4bb}\r\n\ttab\u{0}nul"),
    ("POST", "insert?p=P&c=1.1.1/1.1.1/1.1.2&s=shadowed", " and more"),
    ("GET", "select?p=P&c=1.1.1/1.1.1/1.1.2", ""),
    ("GET", "update?p=P&c=2.3.4/5.6.7/8.9.1&s=far%20away", ""),
    ("POST", "update?p=P&c=2.3.4/5.6.7/8.9.1", "farther \u{1f680}"),
    ("POST", "update?p=P&c=1.1.1/1.1.1/2.1.1", "p=other&c=9.9.9/9.9.9/9.9.9&s=not a form"),
    ("POST", "update?p=P&c=1.1.1/1.1.1/3.1.1", ""),
    ("GET", "select?p=P&c=7.7.7/7.7.7/7.7.7", ""),
    ("GET", "toc?p=P", ""),
    ("GET", "get?p=P", ""),
    ("GET", "get?p=missing", ""),
    ("GET", "checksum?p=P", ""),
    ("GET", "delta?p=P", ""),
    ("POST", "delta?p=P", "1.1.1/1.1.1/1.1.1: 0000\n3.3.3/3.3.3/3.3.3: 1111\n"),
    ("GET", "query?p=P&from=1.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/9.9.9", ""),
    ("GET", "query?p=P&set=1.1.1/1.1.1/1.1.2,5.5.5/5.5.5/5.5.5&limit=2", ""),
    ("POST", "query?p=P", "1.1.1/1.1.1/1.1.1\n2.3.4/5.6.7/8.9.1"),
    ("GET", "query?p=P", ""),
    ("GET", "query?p=P&from=9.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/1.1.1", ""),
    ("POST", "where?p=P&algo=checksum", "where does this go?"),
    ("POST", "where?p=P&limit=3", "some words of text"),
    ("GET", "status?p=P", ""),
    ("GET", "version?p=P", ""),
    ("GET", "version", ""),
    ("GET", "versionXYZ?p=P", ""),
    ("GET", "load?p=P", ""),
    ("GET", "delete?p=P&c=1.1.1/1.1.1/1.1.2", ""),
    ("GET", "delete?p=P&c=1.1.1/1.1.1/1.1.2", ""),
    ("GET", "toc?p=P", ""),
    ("GET", "nothing?p=P", ""),
    ("POST", "select?p=P&c=1.1.1/1.1.1/1.1.1", ""),
    ("GET", "select?p=../P&c=1.1.1/1.1.1/1.1.1", ""),
    ("GET", "", ""),
];

/// What differs between any two sq: where their data lies, and how many connections they have had.
fn comparable(answer: (u16, String), data_dir: &std::path::Path) -> (u16, String) {
    let text = answer.1.replace(data_dir.to_str().unwrap(), "DATA");
    (answer.0, Regex::new("Connection ID: [0-9]+").unwrap().replace(&text, "Connection ID: N").into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_answers_through_the_proxy_as_a_bare_sq_does() {
    let host = Host::start(&["ada"]).await;
    let beside = tempfile::tempdir().unwrap();
    let bare = Running::start(beside.path(), "ada", "key").await;
    let (ada, bare_data) = (host.user("ada"), bare.user_dir.canonicalize().unwrap().join("phext-data"));
    for (http, phext) in [(Http::One, "one"), (Http::Two, "two")] {
        for (method, call, body) in CALLS {
            let target = format!("/api/v2/{}", call.replace("p=P", &format!("p={phext}")));
            let request = ada.request(method.parse().unwrap(), &target, Upload::whole(*body));
            let answer = ada.client.send(http, request).await.unwrap_or_else(|error| panic!("{http:?} {method} {target}: {error}"));
            assert_eq!(answer.header("access-control-allow-origin"), "*");
            let through = comparable((answer.status, answer.text().to_owned()), &host.data_dir("ada"));
            let straight = comparable(ask(&bare, method, &target, body).await, &bare_data);
            assert_eq!(through, straight, "{http:?} {method} {target}");
        }
        for file in [format!("{phext}.phext"), format!("{phext}.phext.json")] {
            let stored = fs::read(host.data_dir("ada").join(&file)).unwrap();
            assert_eq!(stored, fs::read(bare_data.join(&file)).unwrap(), "{file}");
            assert!(!stored.is_empty(), "{file}");
        }
    }
}

/// Straight to an sq: status and body.
async fn ask(sq: &Running, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", sq.port)).await.unwrap();
    let (key, length) = (&sq.key, body.len());
    let head = format!("{method} {target} HTTP/1.1\r\nHost: sq\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sq_answers_badly_the_proxy_answers_well() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    for method in ["HEAD", "PUT", "DELETE", "PATCH"] {
        let answer = ada.send(method.parse().unwrap(), "/api/v2/version", Upload::default()).await.unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, POST, OPTIONS"), "{method}");
    }
    assert_eq!(ada.get("/favicon.ico").await.status, 404);
    let preflight = Request::builder().method(Method::OPTIONS).uri("/api/v2/update").body(Upload::default()).unwrap();
    let answer = ada.client.send(Http::Two, preflight).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0), "a preflight carries no token");
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, OPTIONS"),
        ("access-control-allow-headers", "Authorization, Content-Type, X-SQ-API-Key"),
        ("access-control-max-age", "86400"),
    ] {
        assert_eq!(answer.header(name), value);
    }
}
