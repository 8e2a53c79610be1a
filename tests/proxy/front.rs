//! Who the client is, and which certificate it gets.

use std::sync::Arc;

use http::{Method, StatusCode};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use sq_agent::{
    proxy::front::{Challenge, Front, Trusted},
    secret::Secret,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    client::{Http, full, request},
    fake::Fake,
    host::{Host, ready},
    load::{Habit, Load},
    support::eventually,
};

/// A header as HAProxy and AWS send it: 198.51.100.7, with a TLV behind the addresses.
const PASSED_ON: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc6\x33\x64\x07\x7f\0\0\x01\x30\x39\x01\xbb\x04\0\x01\0";
/// The balancer looks whether we live.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn behind(networks: &[&str], proxy_protocol: bool) -> Front {
    let trusted = Trusted::new(networks.iter().map(|network| network.parse().unwrap()).collect());
    Front { trusted, proxy_protocol, ..Front::default() }
}

/// The X-Real-IP that sq sees of a request that begins with `first` and says it was forwarded for `forwarded`.
async fn seen_as(front: Front, first: &[u8], forwarded: &[&str], http: Http) -> String {
    let fake = Fake::start().await;
    let host = Host::start_behind(front, false, &[ready("alice", 0, fake.port)]).await;
    let mut tcp = TcpStream::connect(host.address).await.unwrap();
    tcp.write_all(first).await.unwrap();
    let mut asked = request(Method::GET, &host.token("alice"), "/api/v2/toc", full(""));
    for line in forwarded {
        asked.headers_mut().append("x-forwarded-for", line.parse().unwrap());
    }
    let client = host.client();
    let answer = tokio::spawn(async move { client.over(tcp, http).await.unwrap().ask(asked).await });
    let seen = fake.next().await;
    let real = seen.head.lines().find_map(|line| line.strip_prefix("X-Real-IP: ")).unwrap().to_owned();
    assert_eq!(seen.head.matches("X-Real-IP").count(), 1);
    assert!(!seen.head.to_ascii_lowercase().contains("x-forwarded-for"));
    seen.answer("200 OK", "").await;
    assert_eq!(answer.await.unwrap().unwrap().status, StatusCode::OK);
    eventually("the log has it too", async || host.log("access.log").contains(&format!("\"peer\":\"{real}\""))).await;
    host.stop().await;
    real
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_that_a_trusted_balancer_names_is_what_sq_and_the_log_see() {
    for http in [Http::One, Http::Two] {
        let lines = ["6.6.6.6, 198.51.100.1", "10.9.9.9"];
        assert_eq!(seen_as(behind(&["127.0.0.0/8", "10.0.0.0/8"], false), b"", &lines, http).await, "198.51.100.1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_anybody_else_counts_for_nothing() {
    assert_eq!(seen_as(behind(&["10.0.0.0/8"], false), b"", &["198.51.100.1"], Http::One).await, "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_its_that_the_proxy_header_names() {
    let front = behind(&["127.0.0.1/32"], true);
    assert_eq!(seen_as(front.clone(), PASSED_ON, &[], Http::One).await, "198.51.100.7");
    assert_eq!(seen_as(front.clone(), PASSED_ON, &["6.6.6.6"], Http::Two).await, "198.51.100.7", "who may not speak for others");
    assert_eq!(seen_as(front, LOCAL, &["198.51.100.9"], Http::One).await, "198.51.100.9", "the balancer itself may");
    let both = behind(&["127.0.0.1/32", "198.51.100.7/32"], true);
    assert_eq!(seen_as(both, PASSED_ON, &["203.0.113.1"], Http::One).await, "203.0.113.1", "a balancer behind a balancer");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_header_of_version_2_a_balancers_connection_is_closed_and_from_others_a_header_is() {
    let host = Host::start_behind(behind(&["127.0.0.1/32"], true), false, &[]).await;
    let closed = async |first: &[u8]| {
        let mut tcp = TcpStream::connect(host.address).await.unwrap();
        tcp.write_all(first).await.unwrap();
        // Either way of closing will do, but not one byte of TLS.
        matches!(tcp.read(&mut [0; 16]).await, Ok(0) | Err(_))
    };
    assert!(closed(b"PROXY TCP4 198.51.100.7 127.0.0.1 12345 443\r\n").await, "the text form");
    assert!(closed(&[b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice(), &[0; 5_000]].concat()).await, "too long");
    assert!(closed(b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\0\0\0").await, "another version");
    let tcp = TcpStream::connect(host.address).await.unwrap();
    assert!(host.client().over(tcp, Http::One).await.is_err(), "TLS at once");

    host.change(|settings| settings.front = behind(&["10.0.0.0/8"], true)).await;
    let mut tcp = TcpStream::connect(host.address).await.unwrap();
    tcp.write_all(PASSED_ON).await.unwrap();
    assert!(host.client().over(tcp, Http::One).await.is_err(), "a header from somebody who is no balancer");
    let direct = TcpStream::connect(host.address).await.unwrap();
    assert!(host.client().over(direct, Http::One).await.is_ok(), "who comes without one and without a balancer is served");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hsts_is_on_every_answer_where_it_is_wanted() {
    let host = Host::start_behind(Front { hsts: Some(63_072_000), ..Front::default() }, false, &[]).await;
    for (method, target, token) in
        [(Method::GET, "/api/v2/toc", host.token("nobody")), (Method::OPTIONS, "/", String::new()), (Method::PUT, "/", String::new())]
    {
        for http in [Http::One, Http::Two] {
            let answer = host.client().ask(http, request(method.clone(), &token, target, full(""))).await;
            assert_eq!(answer.header("strict-transport-security"), "max-age=63072000", "{method} {target}");
        }
    }
    host.change(|settings| settings.front.hsts = None).await;
    assert_eq!(host.client().get("", "/").await.header("strict-transport-security"), "");
    host.stop().await;
}

/// What somebody gets who asks for `name` by `protocols`: the certificate, and the protocol.
async fn handshake(host: &Host, name: &'static str, protocols: &[&[u8]]) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let client = host.client();
    let stream = client.tls_to(TcpStream::connect(host.address).await?, name, protocols).await?;
    let session = stream.get_ref().1;
    Ok((session.peer_certificates().unwrap()[0].to_vec(), session.alpn_protocol().unwrap_or_default().to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_shown_to_an_acme_server_alone_and_only_while_it_is_on() {
    let host = Host::start(&[]).await;
    assert!(handshake(&host, "sq.example.com", &[b"acme-tls/1"]).await.is_err(), "no challenge is on");
    let mut params = CertificateParams::new(["sq.example.com".to_owned()]).unwrap();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&[7; 32])];
    let key = KeyPair::generate().unwrap();
    let proof = params.self_signed(&key).unwrap();
    let challenge = Challenge::Certificate {
        name: "sq.example.com".into(),
        cert_pem: proof.pem().into_bytes(),
        key_pem: Secret::new(key.serialize_pem()),
    };
    host.change(|settings| settings.front.challenges = vec![challenge]).await;
    let (shown, protocol) = handshake(&host, "SQ.example.com", &[b"acme-tls/1"]).await.unwrap();
    assert_eq!((shown.as_slice(), protocol.as_slice()), (proof.der().as_ref(), b"acme-tls/1".as_slice()));
    assert!(handshake(&host, "other.example.com", &[b"acme-tls/1"]).await.is_err(), "a name that is not asked about");
    let (usual, protocol) = handshake(&host, "sq.example.com", &[b"acme-tls/1", b"h2"]).await.unwrap();
    assert!(usual != shown && protocol == b"h2", "a browser gets the usual one");
    host.change(|settings| settings.front.challenges.clear()).await;
    assert!(handshake(&host, "sq.example.com", &[b"acme-tls/1"]).await.is_err());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_certificates_one_after_the_other_fail_no_handshake() {
    let fake = super::busy::Busy::start(std::time::Duration::ZERO).await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let ca = rcgen::CertifiedIssuer::self_signed(authority(), KeyPair::generate().unwrap()).unwrap();
    let client = super::client::Client::new(host.address, ca.pem().as_bytes());
    let swap = async || {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        host.change(|settings| (settings.tls_cert_pem, settings.tls_key_pem) = (cert.pem().into_bytes(), Secret::new(key.serialize_pem())))
            .await;
        cert.der().to_vec()
    };
    swap().await;
    let mut load = Load::new();
    for _ in 0..4 {
        load.user(Habit::OneShot, client.clone(), host.token("alice"));
    }
    load.user(Habit::KeepAlive, client.clone(), host.token("alice"));
    load.user(Habit::Multiplexed, client.clone(), host.token("alice"));
    for n in 0..100_u64 {
        let wanted = load.answered() + 3;
        let new = swap().await;
        let tcp = TcpStream::connect(host.address).await.unwrap();
        let stream = client.tls_to(tcp, "localhost", &[b"http/1.1"]).await.unwrap();
        assert!(stream.get_ref().1.peer_certificates().unwrap()[0].as_ref() == new, "swap {n}: whoever comes now gets the new one");
        eventually("somebody is served by it", async || load.answered() >= wanted).await;
    }
    let (answered, failures) = load.end().await;
    assert!(answered >= 300, "{answered}");
    assert_eq!(failures, Vec::<String>::new());
    host.stop().await;
}

/// Somebody whose word on certificates is taken.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_across_a_change_of_certificate() {
    let host = Host::start(&[]).await;
    // One configuration, so that its tickets are kept between the connections.
    let config = Arc::new(host.client().config(&[b"http/1.1"]));
    let resumed = async || {
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let tcp = TcpStream::connect(host.address).await.unwrap();
        let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    };
    assert!(!resumed().await);
    assert!(resumed().await);
    host.change(|settings| settings.front.hsts = Some(1)).await;
    assert!(resumed().await);
    host.stop().await;
}
