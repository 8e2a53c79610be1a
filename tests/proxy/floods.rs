//! Floods of HTTP/2: each ends its connection, none costs memory, and a neighbour is served all the while.

use super::{
    client::{Http, full, request},
    fake::Fake,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
        block, frame, integer,
    },
    host::{Host, ready},
    support::eventually,
};

const ENHANCE_YOUR_CALM: u32 = 11;

/// Most that a flood may leave behind, bytes: some connections' buffers. Each flood below sends more than this.
const MEMORY: u64 = 8 << 20;

async fn house() -> (Host, Fake) {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    // What a first connection allocates for all that follow.
    serves(&host).await;
    (host, fake)
}

/// Bytes of the proxy that are in memory.
fn resident(host: &Host) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", host.pid)).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn serves(host: &Host) {
    for http in [Http::One, Http::Two] {
        let answer = host.client().ask(http, request(http::Method::OPTIONS, "", "/", full(""))).await;
        assert_eq!(answer.status, 204);
    }
}

fn fields<'a>(token: &'a str, path: &'a str) -> Vec<u8> {
    block(&[(":method", "POST"), (":scheme", "https"), (":authority", "x"), (":path", path), ("authorization", token)])
}

/// `bytes`, over and over, must end the connection before `most` times, and leave nothing behind.
async fn ends(host: &Host, name: &str, most: usize, start: &[u8], bytes: impl FnMut(u32) -> Vec<u8>) {
    let before = resident(host);
    let mut raw = Raw::connect(host).await;
    raw.send_bytes(start).await.unwrap();
    let times = raw.flood(most, bytes).await;
    assert!(times.is_some(), "{name}: still there after {most} times");
    serves(host).await;
    let after = resident(host);
    eprintln!("{name}: gone after {} times, {} KiB more", times.unwrap(), after.saturating_sub(before) / 1024);
    assert!(after < before + MEMORY, "{name}: {before} bytes before, {after} after");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_ask_for_nothing_end_their_connection() {
    let (host, _fake) = house().await;
    let open = frame(HEADERS, END_HEADERS, 1, &fields("Bearer x", "/api/v2/update"));
    for (name, start, bytes) in [
        ("PING", &[][..], frame(PING, 0, 0, &[7; 8])),
        ("PING answered by nobody", &[], frame(PING, ACK, 0, &[7; 8])),
        ("SETTINGS", &[], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("SETTINGS acknowledged", &[], frame(SETTINGS, ACK, 0, &[])),
        ("PRIORITY", &[], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", &[], frame(0xbe, 0, 1, b"?")),
        ("DATA without data", &open, frame(DATA, 0, 1, b"")),
        ("DATA of a byte", &open, frame(DATA, 0, 1, b"x")),
        ("DATA of padding", &open, frame(DATA, 8, 1, &[3, 0, 0, 0])),
    ] {
        ends(&host, name, 20_000, start, |_| bytes.repeat(50)).await;
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once_end_their_connection() {
    let (host, fake) = house().await;
    let token = format!("Bearer {}", host.token("alice"));
    // CVE-2023-44487.
    let rapid = |end: u8, token: &str| {
        let fields = fields(token, "/api/v2/toc");
        move |times: u32| {
            let stream = 2 * times + 1;
            [frame(HEADERS, END_HEADERS | end, stream, &fields), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        }
    };
    ends(&host, "rapid reset", 20_000, &[], rapid(END_STREAM, "Bearer x")).await;
    ends(&host, "rapid reset of uploads", 20_000, &[], rapid(0, "Bearer x")).await;
    ends(&host, "rapid reset with a good token", 20_000, &[], rapid(0, &token)).await;
    // CVE-2025-8671: the server is made to take them back.
    let made = |breach: fn(u32) -> Vec<u8>| {
        let fields = fields("Bearer x", "/api/v2/toc");
        move |times: u32| {
            let stream = 2 * times + 1;
            [frame(HEADERS, END_HEADERS, stream, &fields), breach(stream)].concat()
        }
    };
    ends(&host, "made to reset by an empty window", 20_000, &[], made(|stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]))).await;
    ends(
        &host,
        "made to reset by a window too wide",
        20_000,
        &[],
        made(|stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])),
    )
    .await;
    ends(
        &host,
        "made to reset by a priority of itself",
        20_000,
        &[],
        made(|stream| frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[1]].concat())),
    )
    .await;
    ends(
        &host,
        "made to reset by data after the end",
        20_000,
        &[],
        made(|stream| [frame(DATA, END_STREAM, stream, b"x"), frame(DATA, END_STREAM, stream, b"x")].concat()),
    )
    .await;
    eventually("nothing is in flight", async || host.activity.slot(0).unwrap().in_flight() == 0).await;
    drop(fake);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_without_an_end_end_their_connection() {
    let (host, fake) = house().await;
    let start = frame(HEADERS, END_STREAM, 1, &fields("Bearer x", "/"));
    ends(&host, "CONTINUATION", 20_000, &start, |_| frame(CONTINUATION, 0, 1, &block(&[("a", &"b".repeat(1_000))]))).await;
    ends(&host, "CONTINUATION of nothing", 20_000, &start, |_| frame(CONTINUATION, 0, 1, b"").repeat(50)).await;
    ends(&host, "CONTINUATION byte by byte", 20_000, &start, |_| frame(CONTINUATION, 0, 1, b"\0").repeat(50)).await;
    assert!(fake.is_untouched().await);
    host.stop().await;
}

/// A value of 4,000 bytes is put into the table once, and then named by one byte, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_block_that_becomes_a_large_one_is_not_kept() {
    let (host, fake) = house().await;
    let before = resident(&host);
    for _ in 0..20 {
        let mut raw = Raw::connect(&host).await;
        let mut bomb = fields("Bearer x", "/");
        bomb.extend_from_slice(&[0x40, 1, b'a']);
        integer(&mut bomb, 0, 7, 4_000);
        bomb.extend_from_slice(&[b'b'; 4_000]);
        bomb.extend_from_slice(&[0xbe; 12_000]);
        // 48 MB, if it were believed.
        raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &bomb).await.unwrap();
        let outcome = raw.outcome(1).await;
        assert!(matches!(outcome, Outcome::Answered { status: 431, .. } | Outcome::Gone(Some(_)) | Outcome::Reset(_)), "{outcome:?}");
    }
    serves(&host).await;
    let after = resident(&host);
    eprintln!("HPACK bomb: {} KiB more", after.saturating_sub(before) / 1024);
    assert!(after < before + MEMORY, "{before} bytes before, {after} after");
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_are_open_at_once_and_no_more() {
    let (host, _fake) = house().await;
    let token = format!("Bearer {}", host.token("alice"));
    let mut raw = Raw::connect(&host).await;
    let settings = raw.next().await.unwrap();
    assert!(settings.payload.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 100]), "{:?}", settings.payload);
    let open = fields(&token, "/api/v2/update");
    for number in 0..101 {
        raw.send(HEADERS, END_HEADERS, 2 * number + 1, &open).await.unwrap();
    }
    let outcome = raw.outcome(201).await;
    assert!(matches!(outcome, Outcome::Reset(7) | Outcome::Gone(Some(ENHANCE_YOUR_CALM))), "{outcome:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_no_room_for_its_answers_holds_little() {
    let (host, _fake) = house().await;
    let before = resident(&host);
    let mut all = Vec::new();
    for _ in 0..20 {
        // A window of nothing: no answer's body can go out.
        let mut raw = Raw::connect_with(&host, &[0, 4, 0, 0, 0, 0]).await;
        for number in 0..100 {
            raw.send(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &fields("Bearer x", "/")).await.unwrap();
        }
        all.push(raw);
    }
    for raw in &mut all {
        let mut answered = 0;
        while answered < 100 {
            let frame = raw.next().await.expect("the connection stands");
            answered += u32::from(frame.kind == HEADERS);
        }
    }
    serves(&host).await;
    let after = resident(&host);
    eprintln!("2,000 answers that nobody takes: {} KiB more", after.saturating_sub(before) / 1024);
    assert!(after < before + 4 * MEMORY, "{before} bytes before, {after} after");
    host.stop().await;
}
