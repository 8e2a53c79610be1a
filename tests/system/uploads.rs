//! Bodies of every framing arrive whole, or not at all.

use std::{
    fs,
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
};

use http::{Method, Request};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    client::{Http, Upload},
    eventually,
    host::{Host, User},
};

const WRITE: &str = "/api/v2/update?p=big&c=1.1.1/1.1.1/1.1.1";
const READ: &str = "/api/v2/select?p=big&c=1.1.1/1.1.1/1.1.1";

/// A text of a little more than 1 MB whose characters have one to four bytes, different for each `salt`.
fn megabyte(salt: &str) -> String {
    let line = format!("{salt}: aé世\u{1f30d} ");
    line.repeat(1_000_000 / line.len() + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_arrives_whole_in_every_framing() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    for (what, http, size) in [
        ("h1 with a length", Http::One, None),
        ("h1 in chunks", Http::One, Some(10_007)),
        ("h1 in one chunk", Http::One, Some(usize::MAX)),
        ("h2 with a length", Http::Two, None),
        ("h2 without one", Http::Two, Some(10_007)),
    ] {
        let text = megabyte(what);
        let upload = size.map_or_else(|| Upload::whole(text.clone()), |size| Upload::pieces(text.as_bytes(), size));
        let answer = ada.client.send(http, ada.request(Method::POST, WRITE, upload)).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, format!("Updated {} bytes", text.len()).as_str()), "{what}");
        let back = ada.client.send(http, ada.request(Method::GET, READ, Upload::default())).await.unwrap();
        assert!(back.body == text.as_bytes(), "{what}: {} bytes came back for {}", back.body.len(), text.len());
        assert!(fs::read(host.data_dir("ada").join("big.phext")).unwrap() == text.as_bytes(), "{what}: the file differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_half_way_leaves_the_old_text() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    let old = megabyte("old");
    assert_eq!(ada.post(WRITE, old.as_bytes()).await.status, 200);
    let new = megabyte("new");
    let half = &new.as_bytes()[..new.len() / 2];

    close_after(&ada, &format!("Content-Length: {}", new.len()), half).await;
    let mut chunk = format!("{:x}\r\n", new.len()).into_bytes();
    chunk.extend_from_slice(half);
    close_after(&ada, "Transfer-Encoding: chunked", &chunk).await;
    break_off(&ada, half).await;

    let log = host.state_dir().join("access.log");
    eventually("the proxy has seen all three break off", || async {
        let lines = fs::read_to_string(&log).unwrap();
        lines.lines().filter(|line| line.contains("\"POST\"") && !line.contains("\"status\":200")).count() == 3
    })
    .await;
    assert!(ada.get(READ).await.body == old.as_bytes());
    assert!(fs::read(host.data_dir("ada").join("big.phext")).unwrap() == old.as_bytes());
}

/// HTTP/1.1: sends what it announced only in part and closes the connection in order, as a program that ends early does.
async fn close_after(user: &User, framing: &str, part: &[u8]) {
    let mut stream = user.client.connect(Http::One).await.unwrap();
    let head = format!("POST {WRITE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{framing}\r\n\r\n", user.token);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(part).await.unwrap();
    stream.shutdown().await.unwrap();
}

/// HTTP/2: begins an upload, and breaks the connection off once an answer to another request on it proves that the upload has begun.
async fn break_off(user: &User, part: &[u8]) {
    let stream = user.client.connect(Http::Two).await.unwrap();
    let socket = TcpStream::from(stream.get_ref().0.as_fd().try_clone_to_owned().unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let absolute = |mut request: Request<Upload>| {
        *request.uri_mut() = format!("https://localhost{}", request.uri()).parse().unwrap();
        request
    };
    let upload = sender.send_request(absolute(user.request(Method::POST, WRITE, Upload::stuck(part, 8_192))));
    let other = sender.clone().send_request(absolute(user.request(Method::GET, "/api/v2/version?p=big", Upload::default()))).await;
    assert_eq!(other.unwrap().status(), 200);
    socket.shutdown(Shutdown::Both).unwrap();
    assert!(upload.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_beyond_the_announced_length_are_not_content() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    let mut stream = ada.client.connect(Http::One).await.unwrap();
    let request = |target: &str, body: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            ada.token,
            body.len()
        )
    };
    // Two requests in one write, as a pipelining client sends them: sq alone would store the second one, token included.
    let both = request(WRITE, "first") + &request("/api/v2/update?p=big&c=1.1.1/1.1.1/1.1.2", "second");
    stream.write_all(both.as_bytes()).await.unwrap();
    eventually("both are stored", || async { ada.get("/api/v2/select?p=big&c=1.1.1/1.1.1/1.1.2").await.text() == "second" }).await;
    assert_eq!(ada.get(READ).await.text(), "first");
}
