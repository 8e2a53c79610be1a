//! Clients that take their time. The limits themselves are tested on a paused clock, beside the code; here each is met once in earnest.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, interval, timeout},
};

use super::{
    fake::Fake,
    frames::{END_HEADERS, HEADERS, Raw, block, frame},
    host::{Host, ready},
    support::{DEADLINE, eventually},
};

/// A head must be whole, and a body must have begun, so long after.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes `piece` again and again, often enough never to be silent, until the other side ends it: when that was, and what it said.
async fn dribble(mut stream: impl AsyncRead + AsyncWrite + Unpin, start: &[u8], piece: &[u8]) -> (Duration, String) {
    let begun = Instant::now();
    stream.write_all(start).await.unwrap();
    let mut pieces = interval(Duration::from_millis(400));
    let mut said = Vec::new();
    let ended = async {
        loop {
            tokio::select! {
                read = stream.read_buf(&mut said) => if read.is_err() || read.is_ok_and(|length| length == 0) {
                    return;
                },
                _ = pieces.tick(), if !piece.is_empty() => {
                    let written = stream.write_all(piece).await.is_ok() && stream.flush().await.is_ok();
                    if !written {
                        return;
                    }
                }
            }
        }
    };
    timeout(DEADLINE, ended).await.expect("it may go on for ever");
    (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

fn is_after(what: &str, elapsed: Duration) {
    // Its clock started a little before ours, and the machine may be busy.
    assert!(elapsed > PATIENCE - Duration::from_millis(500) && elapsed < PATIENCE + Duration::from_secs(4), "{what}: {elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_slow_bodies_and_silent_clients_have_ten_seconds() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let post = format!("POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n", host.token("alice"));
    let client = host.client();
    let raw = || async { client.raw(b"http/1.1").await.unwrap() };

    let slow_head = async {
        let (elapsed, said) = dribble(raw().await, b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n").await;
        is_after("a slow head", elapsed);
        assert_eq!(said, "");
    };
    let silent_in_head = async {
        let (elapsed, said) = dribble(raw().await, b"G", b"").await;
        is_after("a head that stops", elapsed);
        assert_eq!(said, "");
    };
    let slow_head_of_http_2 = async {
        let fields = block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")]);
        let mut raw = Raw::connect(&host).await;
        raw.send(HEADERS, 0, 1, &fields).await.unwrap();
        let (elapsed, _) = dribble(raw.into_stream(), b"", b"").await;
        is_after("a slow head of HTTP/2", elapsed);
    };
    let head_in_pieces_of_http_2 = async {
        let fields = block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x"), ("a", &"b".repeat(1_000))]);
        let whole = frame(HEADERS, END_HEADERS, 1, &fields);
        let (elapsed, _) = dribble(Raw::connect(&host).await.into_stream(), &whole[..100], &whole[100..101]).await;
        is_after("a slow frame of HTTP/2", elapsed);
    };
    let slow_body = async |framing: &str, piece: &[u8]| {
        let (elapsed, said) = dribble(raw().await, format!("{post}{framing}\r\n").as_bytes(), piece).await;
        is_after("a slow body", elapsed);
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("urn:sq-agent:problem:body-too-slow"), "{said}");
        assert!(said.to_lowercase().contains("\r\nconnection: close\r\n"), "{said}");
    };
    let silent_tls = async {
        let (elapsed, said) = dribble(TcpStream::connect(host.address).await.unwrap(), b"", b"").await;
        is_after("a silent client of TLS", elapsed);
        assert_eq!(said, "");
    };
    tokio::join!(
        slow_head,
        silent_in_head,
        slow_head_of_http_2,
        head_in_pieces_of_http_2,
        slow_body("Content-Length: 100000\r\n", b""),
        slow_body("Content-Length: 100000\r\n", b"x"),
        slow_body("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n"),
        silent_tls,
    );
    assert!(fake.is_untouched().await);
    eventually("nothing is in flight", async || host.activity.slot(0).unwrap().in_flight() == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_unknown_length_share_a_budget_and_past_it_are_told_to_come_again() {
    const LARGEST: usize = 64 << 20;
    let fake = Fake::start().await;
    let mut large = ready("alice", 0, fake.port);
    large.limits.body_max = LARGEST as u64;
    let host = Host::start(&[large]).await;
    let head = format!(
        "POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        host.token("alice")
    );
    // Each but a little short of its largest, and none of them whole.
    let chunk = [&b"100000\r\n"[..], &vec![b'x'; 1 << 20], b"\r\n"].concat();
    let mut waiting = Vec::new();
    let refused = loop {
        let mut raw = host.client().raw(b"http/1.1").await.unwrap();
        raw.write_all(head.as_bytes()).await.unwrap();
        let mut refusal = Vec::new();
        for _ in 0..LARGEST >> 20 {
            if raw.write_all(&chunk).await.is_err() {
                break;
            }
        }
        // There is no sign of one that is waited for.
        while let Ok(Ok(1..)) = timeout(Duration::from_millis(500), raw.read_buf(&mut refusal)).await {}
        if !refusal.is_empty() {
            break String::from_utf8(refusal).unwrap();
        }
        waiting.push(raw);
        assert!(waiting.len() < 8, "the budget is 512 MiB, and half of it for one tenant alone");
    };
    assert!((3..=4).contains(&waiting.len()), "{}", waiting.len());
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.to_lowercase().contains("\r\nretry-after: 2\r\n"), "{refused}");
    assert!(refused.contains("urn:sq-agent:problem:out-of-memory"), "{refused}");
    assert!(fake.is_untouched().await);
    drop(waiting);
    eventually("the memory is given back", async || host.client().post(&host.token("alice"), "/favicon.ico", "x").await.status == 404)
        .await;
    host.stop().await;
}
