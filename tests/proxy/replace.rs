//! A proxy is replaced by a new one, and no client notices.

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use http::{Method, Request};
use sq_agent::{
    proxy::supervisor::ProxyEvent,
    route::{RouteState, Side},
    secret::Secret,
};
use tokio::task::JoinHandle;

use super::{
    busy::Busy,
    client::{Answer, AnyBody, Client, Connection, Http, full, request},
    fake::{Fake, Seen},
    frames::{ACK, DATA, END_HEADERS, GOAWAY, HEADERS, PING, Raw, block, frame},
    host::{Host, ready, row},
    load::{Habit, Load},
    support::{DEADLINE, eventually},
};

/// A user, and the fake sq that answers her.
struct Alice {
    client: Client,
    token: String,
    sq: Fake,
}

impl Alice {
    /// On a host that serves her alone.
    async fn on_a_host() -> (Host, Self) {
        let sq = Fake::start().await;
        let host = Host::start(&[ready("alice", 0, sq.port)]).await;
        let (client, token) = (host.client(), host.token("alice"));
        (host, Self { client, token, sq })
    }

    fn request(&self) -> Request<AnyBody> {
        request(Method::GET, &self.token, "/api/v2/toc", full(""))
    }

    /// A request of hers on its way.
    fn ask(&self, http: Http) -> JoinHandle<Answer> {
        let (client, asked) = (self.client.clone(), self.request());
        tokio::spawn(async move { client.ask(http, asked).await })
    }

    /// One that her sq has, and has not answered.
    async fn in_flight(&self, http: Http) -> (JoinHandle<Answer>, Seen) {
        (self.ask(http), self.sq.next().await)
    }
}

/// Waits for the end of the replaced proxy: which one it was, and what it cut.
pub async fn retired(host: &Host) -> (u32, Option<u64>) {
    match host.event(|event| matches!(event, ProxyEvent::Retired { .. })).await {
        ProxyEvent::Retired { pid, cut } => (pid, cut),
        other => panic!("{other:?}"),
    }
}

/// Waits until the old proxy has heard that it is to go.
pub async fn is_retiring(host: &Host) {
    eventually("the old proxy retires", async || host.log("proxy.log").contains("the agent says: end")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_starts_a_new_proxy_and_the_old_one_finishes_what_it_has() {
    let (mut host, alice) = Alice::on_a_host().await;
    let asked = [alice.ask(Http::One), alice.ask(Http::Two)];
    let seen = [alice.sq.next().await, alice.sq.next().await];
    let old = host.pid;
    host.agent_that(true).await;
    let up = host.supervisor.as_mut().unwrap().up().await.unwrap();
    assert_eq!((up.pid, up.side, up.adopted), (host.pid, Side::B, false));
    assert_ne!(host.pid, old);
    is_retiring(&host).await;
    let (new, in_new) = alice.in_flight(Http::Two).await;
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 3, "the old one's requests still count");
    for seen in seen {
        seen.answer("200 OK", "to the end").await;
    }
    for asked in asked {
        assert_eq!(asked.await.unwrap().text(), "to the end");
    }
    assert_eq!(retired(&host).await, (old, Some(0)));
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 1, "and the new one's go on counting");
    in_new.answer("200 OK", "from the new one").await;
    assert_eq!(new.await.unwrap().text(), "from the new one");
    host.agent_that(true).await;
    assert_eq!(host.supervisor.as_mut().unwrap().up().await.unwrap().side, Side::A, "the sides take turns");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_is_told_to_end_by_its_next_answer_and_not_before() {
    let (mut host, alice) = Alice::on_a_host().await;
    let mut kept = alice.client.connect(Http::One).await.unwrap();
    let first = async { kept.ask(alice.request()).await.unwrap() };
    let (first, ()) = tokio::join!(first, async { alice.sq.next().await.answer("200 OK", "1").await });
    assert_eq!(first.header("connection"), "");
    // Accepted by the old proxy, but not spoken to yet.
    let fresh = tokio::net::TcpStream::connect(host.address).await.unwrap();
    let multiplexed = alice.client.connect(Http::Two).await.unwrap();
    host.agent_that(true).await;
    is_retiring(&host).await;
    let (second, ()) =
        tokio::join!(async { kept.ask(alice.request()).await.unwrap() }, async { alice.sq.next().await.answer("200 OK", "2").await });
    assert_eq!((second.header("connection"), second.text().as_str()), ("close", "2"));
    let Connection::One(sender) = kept else { panic!() };
    eventually("the connection is closed after it was said", async || sender.is_closed()).await;
    let mut late = alice.client.over(fresh, Http::One).await.unwrap();
    let (late, ()) =
        tokio::join!(async { late.ask(alice.request()).await.unwrap() }, async { alice.sq.next().await.answer("200 OK", "3").await });
    assert_eq!((late.header("connection"), late.text().as_str()), ("close", "3"), "a handshake that was under way serves");
    let mut multiplexed = multiplexed;
    let (answer, ()) = tokio::join!(async { multiplexed.ask(alice.request()).await.unwrap() }, async {
        alice.sq.next().await.answer("200 OK", "4").await
    });
    assert_eq!((answer.header("connection"), answer.text().as_str()), ("", "4"));
    let Connection::Two(sender) = multiplexed else { panic!() };
    eventually("GOAWAY has ended it", async || sender.is_closed()).await;
    assert_eq!(retired(&host).await.1, Some(0));
    host.stop().await;
}

/// By RFC 9113 (6.8) a client sends anew what a GOAWAY names as not taken. It must be able to read that, also while it still writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_crosses_a_goaway_is_told_that_it_was_not_taken() {
    let (mut host, alice) = Alice::on_a_host().await;
    let mut raw = Raw::connect(&host).await;
    let bearer = format!("Bearer {}", host.token("alice"));
    let fields = |method, path| {
        [(":method", method), (":scheme", "https"), (":path", path), (":authority", "x"), ("authorization", bearer.as_str())]
    };
    assert_eq!(raw.ask(1, &fields("GET", "/favicon.ico"), None).await.status(), 404);
    host.agent_that(true).await;
    // The first GOAWAY takes in everything, until the answer to this PING says that it was seen.
    let ping = loop {
        let frame = raw.next().await.expect("a PING after the GOAWAY");
        if frame.kind == PING && frame.flags & ACK == 0 {
            break frame;
        }
    };
    raw.send(PING, ACK, 0, &ping.payload).await.unwrap();
    let request = frame(HEADERS, END_HEADERS, 3, &block(&fields("POST", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1")));
    raw.send_bytes(&request).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await; // time for a reset to come back
        raw.send_bytes(&frame(DATA, 0, 3, b"part of a text")).await.expect("the connection is not reset under the client's hands");
    }
    let mut last = None;
    while let Some(frame) = raw.next().await {
        if frame.kind == GOAWAY {
            last = Some(u32::from_be_bytes(frame.payload[..4].try_into().unwrap()));
        }
    }
    assert_eq!(last, Some(1), "what was not taken is named");
    drop(alice);
    host.stop().await;
}

/// How often the proxy is replaced under load; each time takes about half a second.
const REPLACEMENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_again_and_again_under_load_the_proxy_fails_no_request() {
    let busy = Busy::start(Duration::from_millis(3)).await;
    let tenants = ["keep", "shot", "multi", "up", "down", "parked"];
    let rows = |parked| {
        let rows =
            tenants.iter().zip(0..).map(|(id, slot)| row(id, slot, if *id == "parked" { parked } else { RouteState::Ready }, busy.port, 1));
        rows.collect::<Vec<_>>()
    };
    let mut host = Host::start(&rows(RouteState::Ready)).await;
    let mut load = Load::new();
    let users = [
        ("keep", Habit::KeepAlive, 5),
        ("shot", Habit::OneShot, 2),
        ("multi", Habit::Multiplexed, 2),
        ("up", Habit::Upload(Http::One), 1),
        ("up", Habit::Upload(Http::Two), 1),
        ("down", Habit::Download(Http::One), 1),
        ("down", Habit::Download(Http::Two), 1),
        ("parked", Habit::KeepAlive, 2),
        ("parked", Habit::Multiplexed, 1),
    ];
    for (id, habit, count) in users {
        (0..count).for_each(|_| load.user(habit, host.client(), host.token(id)));
    }
    for _ in 0..REPLACEMENTS {
        let before = load.answered();
        eventually("everybody is at work", async || load.answered() > before + 50).await;
        let old = host.pid;
        host.publish(&rows(RouteState::Starting)).await;
        host.agent_that(true).await;
        host.publish(&rows(RouteState::Ready)).await;
        assert_eq!(retired(&host).await, (old, Some(0)));
    }
    let (answered, failures) = load.end().await;
    assert!(failures.is_empty(), "{} of {answered} failed: {failures:#?}\n{}", failures.len(), host.log("proxy.log"));
    eprintln!("{REPLACEMENTS} replacements, {answered} requests answered, none failed");
    assert_eq!(host.activity.slots().iter().map(|slot| slot.in_flight()).sum::<u32>(), 0);
    assert_eq!(busy.writes().1, 1, "and the writes of a tenant came one by one");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_proxy_that_does_not_come_up_is_given_up_and_the_old_one_goes_on() {
    let (mut host, alice) = Alice::on_a_host().await;
    let mute = host.path().join("mute");
    std::fs::write(&mute, "#!/bin/sh\nexec sleep 60\n").unwrap();
    std::fs::set_permissions(&mute, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut bad = host.settings.borrow().as_ref().clone();
    bad.tls_key_pem = Secret::new(*b"no key at all");
    let good = host.settings.borrow().clone();
    let us = std::path::PathBuf::from(env!("CARGO_BIN_EXE_sq-agent"));
    for (exe, settings, why) in
        [("/bin/false".into(), good.clone(), "exit status: 1"), (mute, good.clone(), "it did not"), (us, Arc::new(bad), "private key")]
    {
        let (kept, seen) = alice.in_flight(Http::Two).await;
        host.settings.send_replace(settings);
        host.agent_begins(&exe, true).await;
        let not_up = host.supervisor.as_mut().unwrap().up().await.unwrap_err();
        assert!(not_up.why.contains(why) && not_up.still_serving == Some(host.pid), "{not_up:?}");
        seen.answer("200 OK", "unharmed").await;
        assert_eq!(kept.await.unwrap().text(), "unharmed");
        let after = alice.ask(Http::One);
        alice.sq.next().await.answer("200 OK", "still here").await;
        let after = after.await.unwrap();
        assert_eq!((after.text().as_str(), after.header("connection")), ("still here", ""));
    }
    host.settings.send_replace(good);
    host.agent().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_waits_for_the_one_before_and_everybody_is_served_meanwhile() {
    let (mut host, alice) = Alice::on_a_host().await;
    let (slow, seen) = alice.in_flight(Http::Two).await;
    let first = host.pid;
    host.agent_that(true).await;
    let second = host.pid;
    host.agent_that(true).await;
    assert_eq!(host.pid, second, "the present one is kept until then");
    let meanwhile = alice.ask(Http::One);
    alice.sq.next().await.answer("200 OK", "meanwhile").await;
    assert_eq!(meanwhile.await.unwrap().text(), "meanwhile");
    seen.answer("200 OK", "at last").await;
    assert_eq!(slow.await.unwrap().text(), "at last");
    let up = host.supervisor.as_mut().unwrap().up().await.unwrap();
    assert!(!up.adopted && up.pid != second && up.side == Side::A, "{up:?}");
    host.pid = up.pid;
    assert_eq!(retired(&host).await, (first, Some(0)));
    assert_eq!(retired(&host).await, (second, Some(0)));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_retires_is_left_to_finish_by_the_next_agent() {
    let (mut host, alice) = Alice::on_a_host().await;
    let (slow, seen) = alice.in_flight(Http::One).await;
    let old = host.pid;
    host.agent_that(true).await;
    let new = host.pid;
    host.agent().await;
    assert_eq!(host.pid, new, "adopted");
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 1, "a living proxy's side is left alone");
    seen.answer("200 OK", "finished").await;
    assert_eq!(slow.await.unwrap().text(), "finished");
    assert_eq!(retired(&host).await, (old, Some(0)));
    host.stop().await;
}

/// The agent died after the new proxy served and before the old one was told.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_serve_the_newer_is_adopted_and_the_older_retires() {
    let (mut host, alice) = Alice::on_a_host().await;
    let (slow, seen) = alice.in_flight(Http::One).await;
    let old = host.pid;
    let run = host.path().join("run");
    let (a, b, hidden) = (run.join("proxy-a.sock"), run.join("proxy-b.sock"), run.join("hidden"));
    host.supervisor.take().unwrap().detach().await;
    std::fs::rename(&a, &hidden).unwrap();
    host.address.set_port(0);
    host.agent().await;
    let new = host.pid;
    assert_ne!(new, old);
    host.supervisor.take().unwrap().detach().await;
    std::fs::rename(&a, &b).unwrap();
    std::fs::rename(&hidden, &a).unwrap();
    host.agent().await;
    assert_eq!(host.pid, new);
    seen.answer("200 OK", "finished").await;
    assert_eq!(slow.await.unwrap().text(), "finished");
    assert_eq!(retired(&host).await, (old, Some(0)));
    host.stop().await;
}

/// The agent died after it had started the new proxy and before it told it anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_proxy_that_was_never_told_anything_is_ended_and_the_old_one_goes_on() {
    let mut host = Host::start(&[]).await;
    let old = host.pid;
    let socket = std::os::unix::net::UnixListener::bind(host.path().join("run/proxy-b.sock")).unwrap();
    let mut unborn = std::process::Command::new(env!("CARGO_BIN_EXE_sq-agent"))
        .arg("proxy")
        .stdin(std::os::fd::OwnedFd::from(socket))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    host.agent().await;
    assert_eq!(host.pid, old);
    let ended = tokio::task::spawn_blocking(move || unborn.wait().unwrap());
    assert!(tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
    host.agent_that(true).await;
    assert_eq!(host.supervisor.as_mut().unwrap().up().await.unwrap().side, Side::B, "its side is free");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_retiring_proxy_must_cut_it_names_and_counts() {
    let (mut host, Alice { client, token, sq }) = Alice::on_a_host().await;
    let cut = tokio::spawn(async move {
        client.connect(Http::One).await.unwrap().ask(request(Method::GET, &token, "/api/v2/toc?p=private", full(""))).await
    });
    let _seen = sq.next().await;
    let old = host.pid;
    host.agent_that(true).await;
    // The agent ends and leaves less than the 30 s.
    let ending = tokio::spawn(host.supervisor.take().unwrap().shutdown(Duration::from_millis(100)));
    assert_eq!(retired(&host).await, (old, Some(1)));
    ending.await.unwrap();
    assert!(cut.await.unwrap().is_err());
    let log = host.log("proxy.log");
    let named = |line: &&str| line.contains("did not finish in time") && line.contains("alice");
    let line = log.lines().find(named).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("GET") && line.contains("/api/v2/toc") && line.contains("age_ms") && !line.contains("private"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_proxy_that_dies_while_the_old_one_retires_is_followed_by_another_on_its_side() {
    let (mut host, alice) = Alice::on_a_host().await;
    let (slow, seen) = alice.in_flight(Http::One).await;
    let old = host.pid;
    host.agent_that(true).await;
    super::agent::kill(host.pid);
    match host.event(|event| matches!(event, ProxyEvent::Up { .. })).await {
        ProxyEvent::Up { pid, side, .. } => {
            assert_eq!(side, Side::B);
            host.pid = pid;
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 1, "only the dead one's side is cleared");
    seen.answer("200 OK", "unharmed").await;
    assert_eq!(slow.await.unwrap().text(), "unharmed");
    assert_eq!(retired(&host).await, (old, Some(0)));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_another_build_is_replaced_without_being_asked_to() {
    let mut host = Host::start(&[]).await;
    let old = host.pid;
    let other = host.path().join("sq-agent");
    std::fs::write(&other, format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_sq-agent"))).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o700)).unwrap();
    host.agent_of(&other, false).await;
    let up = host.supervisor.as_mut().unwrap().up().await.unwrap();
    assert!(!up.adopted, "{up:?}");
    assert_eq!(retired(&host).await, (old, Some(0)));
    host.stop().await;
}

/// Of a version that knows two words: how to greet, and how to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_speaks_another_protocol_is_replaced_too() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut host = Host::start(&[]).await;
    host.supervisor.take().unwrap().shutdown(Duration::ZERO).await;
    let mut process = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let socket = tokio::net::UnixListener::bind(host.path().join("run/proxy-b.sock")).unwrap();
    let ended = tokio::spawn(async move {
        let (mut agent, _) = socket.accept().await.unwrap();
        let hello = format!(r#"{{"Hello":{{"pid":{},"version":"0.0.1","side":1,"listeners":0}}}}"#, process.id());
        agent.write_all(&[&u32::try_from(hello.len()).unwrap().to_le_bytes()[..], hello.as_bytes()].concat()).await.unwrap();
        let mut heard = vec![0; 4];
        agent.read_exact(&mut heard).await.unwrap();
        heard.resize(u32::from_le_bytes(heard[..4].try_into().unwrap()) as usize, 0);
        agent.read_exact(&mut heard).await.unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        String::from_utf8(heard).unwrap()
    });
    host.activity.slot(5).unwrap().enter(Side::B);
    host.agent().await;
    assert_eq!(host.supervisor.as_mut().unwrap().up().await.unwrap().side, Side::A);
    assert_eq!(ended.await.unwrap(), r#"{"Shutdown":{"grace_ms":30000,"retire":true}}"#);
    assert_eq!(retired(&host).await.1, None, "it said nothing of what it cut");
    assert_eq!(host.activity.slot(5).unwrap().in_flight(), 0);
    host.stop().await;
}

/// It greets, says what nobody understands, and does not end.
#[tokio::test(flavor = "multi_thread")]
async fn a_retiring_proxy_that_cannot_be_understood_does_not_hold_up_an_agent_that_ends() {
    use tokio::io::AsyncWriteExt;
    let mut host = Host::start(&[]).await;
    host.supervisor.take().unwrap().shutdown(Duration::ZERO).await;
    let mut process = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let pid = process.id();
    let socket = tokio::net::UnixListener::bind(host.path().join("run/proxy-b.sock")).unwrap();
    let (misunderstood, heard) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut agent, _) = socket.accept().await.unwrap();
        let hello = format!(r#"{{"Hello":{{"pid":{pid},"version":"9.0.0","side":1,"listeners":0,"protocol":9}}}}"#);
        for word in [hello.as_str(), r#"{"Mood":"good"}"#] {
            agent.write_all(&[&u32::try_from(word.len()).unwrap().to_le_bytes()[..], word.as_bytes()].concat()).await.unwrap();
        }
        misunderstood.send(()).unwrap();
        // Both the conversation and the socket stay.
        std::future::pending::<()>().await;
        drop((agent, socket));
    });
    host.agent().await;
    heard.await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, host.supervisor.take().unwrap().shutdown(Duration::ZERO)).await;
    let status = process.try_wait().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    ended.expect("the agent ends");
    assert!(status.is_some_and(|status| !status.success()), "and has ended it: {status:?}");
}
