//! A forge tells of a push, and the host serves what was pushed within two seconds; nobody else can make it look, and nobody too often.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use http::{Method, Request};
use rustix::process::Signal;
use sq_agent::admin::status::GitOpsStatus;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    gitops::{Followed, READ},
    support::{
        DEADLINE,
        client::{Answer, Http, Upload},
        eventually, has_programs,
    },
};

const PATH: &str = "/.sq-agent/gitops";
const SECRET: &str = "8b1a9953c4611296a827abf8c47804d7f0e3";
const PING: &[u8] = br#"{"zen":"Keep it logically awesome.","hook_id":1}"#;

fn put_secret(it: &Followed, secret: &str) {
    let (path, new) = (it.host.root().join("webhook.key"), it.host.root().join("webhook.key.new"));
    fs::write(&new, format!("{secret}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// A host that takes webhooks; `proxy` stands under [proxy].
async fn start(ids: &[&str], proxy: &str) -> Followed {
    let mut it = Followed::prepare(ids, "webhook_secret_file = \"webhook.key\"");
    put_secret(&it, SECRET);
    it.host.edit(|wanted| proxy.clone_into(&mut wanted.proxy));
    it.push("With its proxy", &[]);
    it.host.launch().await;
    it.host.until("the first look", |status| status.gitops.as_ref().is_some_and(|gitops| gitops.finished > 0)).await;
    it
}

fn digest(secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(method: Method, fields: &[(&str, &str)], body: Upload) -> Request<Upload> {
    fields
        .iter()
        .fold(Request::builder().method(method).uri(PATH), |request, (name, value)| request.header(*name, *value))
        .body(body)
        .unwrap()
}

async fn post(it: &Followed, fields: &[(&str, &str)], body: &[u8]) -> Answer {
    it.host.client().send(Http::One, request(Method::POST, fields, Upload::whole(body.to_vec()))).await.unwrap()
}

/// As Gitea sends it.
async fn tell(it: &Followed) -> Answer {
    post(it, &[("x-gitea-signature", &digest(SECRET, PING))], PING).await
}

fn gitops(it: &Followed) -> GitOpsStatus {
    it.host.status().unwrap().gitops.unwrap()
}

async fn until(it: &Followed, what: &str, condition: impl Fn(&GitOpsStatus) -> bool) -> GitOpsStatus {
    it.host.until(what, |status| status.gitops.as_ref().is_some_and(&condition)).await.gitops.unwrap()
}

/// `PUSHES=100 cargo test --test system within_two_seconds -- --nocapture` measures more of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_served_within_two_seconds() {
    if !has_programs(&["git", "curl", "openssl"]) {
        return;
    }
    let pushes = std::env::var("PUSHES").map_or(10, |n| n.parse().expect("PUSHES is a number"));
    let mut it = start(&["ada"], "").await;
    let hook = it.host.root().join("remote.git/hooks/post-receive");
    let text = format!(
        "#!/bin/sh\nbody='{{\"ref\":\"refs/heads/main\"}}'\nsignature=$(printf %s \"$body\" | openssl dgst -sha256 -hmac {SECRET} | sed 's/.* //')\n\
         exec curl --silent --show-error --fail --cacert {} -H \"X-Hub-Signature-256: sha256=$signature\" --data \"$body\" https://127.0.0.1:{}{PATH}\n",
        it.host.state_dir().join("tls/cert.pem").display(),
        it.host.wanted.https
    );
    fs::write(&hook, text).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let mut times = Vec::new();
    for n in 0..pushes {
        let id = format!("new-{n}");
        it.host.wanted.add(&id);
        it.commit("Add one more", &it.host.wanted.text(), &[]);
        let user = it.host.user(&id);
        let begun = Instant::now();
        it.upload();
        while user.get(READ).await.status != 200 {
            assert!(begun.elapsed() < DEADLINE, "push {n} is not served\n{}", it.host.account());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(begun.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    eprintln!("{pushes} pushes, from `git push` to the new tenant's first 200: median {median:?}, max {:?}", times.last().unwrap());
    assert!(median <= Duration::from_secs(2), "{times:?}");
}

#[tokio::test]
async fn every_forge_is_known_by_its_signature_and_whoever_has_none_is_told_so_and_moves_nothing() {
    if !has_programs(&["git"]) {
        return;
    }
    let it = start(&["ada"], "trusted_proxies = [\"127.0.0.1\"]").await;
    let first = gitops(&it);
    assert_eq!((first.webhook, first.last_webhook), (true, None));
    let good = digest(SECRET, PING);
    let (of_github, of_another) = (format!("sha256={good}"), digest("another secret of thirty-two byte", PING));
    let of_stranger = format!("sha256={of_another}");
    let from = |n: u8| format!("192.0.2.{n}");
    let mut stranger = 0;
    for (fields, slug) in [
        (&[][..], "webhook-unsigned"),
        (&[("x-hub-signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")], "webhook-unsigned"),
        (&[("x-hub-signature-256", &good)], "webhook-unsigned"),
        (&[("x-hub-signature-256", &of_stranger)], "webhook-signature"),
        (&[("x-gitea-signature", &of_another)], "webhook-signature"),
        (&[("x-forgejo-signature", &of_another)], "webhook-signature"),
        (&[("x-gitlab-token", &SECRET[1..])], "webhook-signature"),
        (&[("x-gitlab-token", &good)], "webhook-signature"),
        (&[("authorization", &format!("Bearer {}", it.host.user("ada").token))], "webhook-unsigned"),
    ] {
        stranger += 1;
        let answer = post(&it, &[fields, &[("x-forwarded-for", from(stranger).as_str())]].concat(), PING).await;
        assert_eq!(answer.status, 401, "{fields:?} {answer:?}");
        assert!(answer.text().contains(slug) && answer.header("content-type") == "application/problem+json", "{answer:?}");
    }
    let client = it.host.client();
    let got = client.send(Http::One, request(Method::GET, &[("x-gitlab-token", SECRET)], Upload::default())).await.unwrap();
    assert_eq!((got.status, got.header("allow")), (405, "POST"));
    // A body that says no length is read no further than it may be.
    let too_much = vec![b'x'; (25 << 20) + 1];
    let signed = digest(SECRET, &too_much);
    let fields = [("x-gitea-signature", signed.as_str()), ("x-forwarded-for", "198.51.100.1")];
    let answer = client.send(Http::Two, request(Method::POST, &fields, Upload::pieces(&too_much, 16_384))).await.unwrap();
    assert_eq!(answer.status, 413, "{answer:?}");

    // So far nothing was looked at: the next look is the second.
    for (n, field) in [
        ("x-hub-signature-256", of_github.as_str()),
        ("x-gitea-signature", &good),
        ("x-forgejo-signature", &good),
        ("x-gitlab-token", SECRET),
    ]
    .into_iter()
    .enumerate()
    {
        let http = if n % 2 == 0 { Http::One } else { Http::Two };
        let body = if n % 2 == 0 { Upload::pieces(PING, 7) } else { Upload::whole(PING) };
        let answer = client.send(http, request(Method::POST, &[field], body)).await.unwrap();
        assert_eq!(answer.status, 202, "{field:?} {answer:?}");
        let looks = first.finished + 1 + n as u64;
        let seen = until(&it, "it is looked at", |gitops| gitops.finished >= looks).await;
        assert_eq!(seen.finished, looks, "one look each");
        assert!(seen.last_webhook.is_some());
    }
    assert!(it.host.cli(&["gitops", "status"]).out.contains("last webhook: 20"));
    let told =
        [it.host.logged(), it.host.account(), it.host.cli(&["status", "--json"]).out, it.host.cli(&["doctor", "--json"]).out].concat();
    let access = fs::read_to_string(it.host.state_dir().join("access.log")).unwrap();
    let proxy = fs::read_to_string(it.host.state_dir().join("proxy.log")).unwrap();
    assert!(access.contains("webhook-signature") && access.contains(PATH), "{access}");
    for secret in [SECRET, &SECRET[1..], &good] {
        assert!(!told.contains(secret) && !access.contains(secret) && !proxy.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn who_tries_too_often_has_to_wait_and_nobody_else_does() {
    if !has_programs(&["git"]) {
        return;
    }
    let it = start(&["ada"], "trusted_proxies = [\"127.0.0.1\"]").await;
    let (good, bad) = (digest(SECRET, PING), digest("another", PING));
    let mut refused = None;
    for n in 0..12 {
        let answer = post(&it, &[("x-gitea-signature", bad.as_str()), ("x-forwarded-for", "192.0.2.7")], PING).await;
        assert!(answer.status == 401 || (answer.status == 429 && n >= 10), "{n} {answer:?}");
        refused = Some(answer).filter(|answer| answer.status == 429).or(refused);
    }
    let refused = refused.expect("twelve tries at once are too many");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!(refused.text().contains("webhook-rate-limited") && (1..=6).contains(&wait), "{refused:?}");
    for (address, status) in [("192.0.2.7", 429), ("192.0.2.8", 202)] {
        let answer = post(&it, &[("x-gitea-signature", good.as_str()), ("x-forwarded-for", address)], PING).await;
        assert_eq!(answer.status, status, "{address}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_webhooks_makes_one_look_a_second_and_misses_no_push() {
    if !has_programs(&["git"]) {
        return;
    }
    let mut it = start(&["ada"], "").await;
    let (before, begun) = (gitops(&it).finished, Instant::now());
    let signature = digest(SECRET, PING);
    let storms: Vec<_> = (0..4)
        .map(|_| {
            let (mut session, signature) = (it.host.client().session(Http::One), signature.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while begun.elapsed() < Duration::from_secs(3) {
                    let told = request(Method::POST, &[("x-gitea-signature", &signature)], Upload::whole(PING));
                    assert_eq!(session.send(told).await.unwrap().status, 202);
                    count += 1;
                }
                count
            })
        })
        .collect();
    it.host.wanted.add("bob");
    let pushed = it.push("Add bob", &[]);
    assert_eq!(tell(&it).await.status, 202);
    let mut told = 0;
    for storm in storms {
        told += storm.await.unwrap();
    }
    let seen = until(&it, "the push is applied", |gitops| gitops.applied.as_ref().is_some_and(|commit| commit.id == pushed)).await;
    let (looks, seconds) = (seen.finished - before, begun.elapsed().as_secs());
    assert!(told > 50 && looks >= 1 && looks <= seconds + 2, "{told} webhooks, {looks} looks in {seconds} s");
    eprintln!("{told} webhooks, {looks} looks in {seconds} s");
    it.host.settled().await;
}

#[tokio::test]
async fn another_secret_is_in_force_as_soon_as_its_file_says_it() {
    if !has_programs(&["git"]) {
        return;
    }
    let mut it = start(&["ada"], "trusted_proxies = [\"127.0.0.1\"]").await;
    let new = "the secret of next month, thirty-two bytes and more";
    put_secret(&it, new);
    let signature = digest(new, PING);
    let begun = Instant::now();
    // Each try from another address: strangers have few.
    for n in 0_u32.. {
        let address = format!("198.51.{}.{}", n / 256, n % 256);
        let answer = post(&it, &[("x-gitea-signature", signature.as_str()), ("x-forwarded-for", &address)], PING).await;
        if answer.status == 202 {
            break;
        }
        assert!(answer.status == 401 && begun.elapsed() < DEADLINE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(tell(&it).await.status, 401, "the old one is none any more");
    // One that is no good leaves this one in force, and is told.
    put_secret(&it, "short");
    it.host.until("it is told", |status| status.proxy.troubles.iter().any(|why| why.contains("it has 5 bytes"))).await;
    assert_eq!(post(&it, &[("x-gitea-signature", &signature)], PING).await.status, 202);
    // Where tenants.toml names none, there is no such door: the path is a tenant's like any other.
    let more = it.host.wanted.more.replace("webhook_secret_file", "# webhook_secret_file");
    it.host.wanted.more = more;
    it.push("No webhook", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    it.host.settled().await;
    let begun = Instant::now();
    loop {
        let answer = post(&it, &[("x-gitea-signature", &signature)], PING).await;
        if answer.status == 401 && answer.text().contains("problem:unauthorized") {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(it.host.user("ada").get(PATH).await.status, 404, "sq has no such path");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_taken_while_the_agent_is_away_and_by_a_proxy_that_retires() {
    if !has_programs(&["git"]) {
        return;
    }
    let mut it = start(&["ada"], "").await;
    it.host.end_agent(Signal::KILL);
    assert_eq!(tell(&it).await.status, 202);
    it.host.spawn_agent();
    let first = until(&it, "the next agent is told", |gitops| gitops.last_webhook.is_some()).await.last_webhook;
    it.host.settled().await;
    // Both are told by the second, so the next one has to come at another.
    let told = Instant::now();
    eventually("another second", async || told.elapsed().as_secs() >= 1).await;
    let second = |status: &GitOpsStatus| status.last_webhook > first;

    let mut stream = it.host.client().connect(Http::One).await.unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-Gitea-Signature: {}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        digest(SECRET, PING),
        PING.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut goes_on = [0; 25];
    stream.read_exact(&mut goes_on).await.unwrap();
    assert_eq!(&goes_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&PING[..7]).await.unwrap();
    let old = it.host.status().unwrap().proxy.pid;
    let upgraded = it.host.cli(&["upgrade"]);
    assert_eq!(upgraded.code, 0, "{}{}", upgraded.out, upgraded.err);
    let new = it.host.until("another proxy serves", |status| status.proxy.pid.is_some() && status.proxy.pid != old).await;
    assert!(!second(&new.gitops.unwrap()));
    stream.write_all(&PING[7..]).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 202");
    until(&it, "the agent hears it from the proxy that retires", second).await;
    drop(stream);
    assert_eq!(tell(&it).await.status, 202, "and the new one takes them too");
}
