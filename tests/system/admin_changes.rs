//! The admin API: what it changes, and that it says so only once it is so.

use std::{collections::BTreeMap, fs, time::Duration};

use http::{Method, Request};
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    gitops::{Followed, git},
    secrets::{files, holds},
    support::{
        admin::{self, Admin},
        eventually, has_programs,
        host::{Host, User},
        processes::signal,
    },
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// Somebody with this token or API key.
fn user(host: &Host, credential: &Value) -> User {
    User { client: host.client(), token: credential.as_str().unwrap().to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_served_when_the_answer_says_so_and_through_its_whole_life() {
    let (host, api) = admin::start(&["ada"]).await;
    let about = |what: &str| format!("/api/admin/tenants/user1@example.com{what}");
    let said = api.post("/api/admin/provision/user1@example.com", json!({"reason": "it pays"})).await;
    assert_eq!(said.status, 200, "{said:?}");
    let made = said.json();
    let (port, pid) = (made["port"].as_u64().unwrap(), made["pid"].as_u64().unwrap());
    let url = format!("https://127.0.0.1:{}", host.wanted.https);
    assert_eq!(made, json!({"success": true, "userId": "user1@example.com", "port": port, "pid": pid, "sqURL": url, "status": "running"}));
    assert!(host.instances().iter().any(|sq| (sq.id.as_str(), u64::from(sq.pid), u64::from(sq.port)) == ("user1@example.com", pid, port)));
    assert_eq!(api.post("/api/admin/provision/user1%40example.com", json!({})).await.json(), made, "twice is once");
    assert_eq!(api.ask(Method::POST, "/api/admin/provision/user1@example.com", None).await.json(), made, "also without a body");

    let token = api.post(&about("/tokens"), json!({"ttl_seconds": 600})).await;
    assert_eq!((token.status, token.json()["sub"].as_str()), (201, Some("user1@example.com")));
    let by_token = user(&host, &token.json()["token"]);
    assert_eq!(by_token.post(WRITE, b"hello").await.status, 200);
    assert_eq!(host.user("user1@example.com").get(READ).await.text(), "hello");

    let key = api.post(&about("/api-keys"), json!({})).await;
    assert_eq!((key.status, &key.json()["pending"]), (201, &Value::Null), "{key:?}");
    let by_key = user(&host, &key.json()["api_key"]);
    assert_eq!(by_key.get(READ).await.text(), "hello", "at once");
    let digest = key.json()["digest"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&about("/api-keys")).await.json(), json!({"digests": [digest]}));
    let gone = api.ask(Method::DELETE, &about(&format!("/api-keys/{digest}")), None).await;
    assert_eq!((gone.status, by_key.get(READ).await.status), (200, 401), "{gone:?}");
    assert!(api.ask(Method::DELETE, &about(&format!("/api-keys/{digest}")), None).await.is_problem(404, "no-such-key"));

    let revoked = api.ask(Method::DELETE, &about("/tokens"), None).await;
    assert_eq!((revoked.status, by_token.get(READ).await.status), (200, 401), "{revoked:?}");
    let token = api.post(&about("/tokens"), json!({})).await.json();
    let by_token = user(&host, &token["token"]);
    assert_eq!(by_token.get(READ).await.status, 200, "one that was made since");

    let tier = api.ask(Method::PUT, &about("/tier"), Some(json!({"tier": "metered"}))).await;
    assert_eq!((tier.status, &tier.json()["tier"]), (200, &"metered".into()));
    assert_eq!(by_token.get(READ).await.header("ratelimit-policy"), "\"default\";q=100;w=60");

    let restarted = api.post(&about("/restart"), json!({})).await;
    assert_eq!((restarted.status, &restarted.json()["state"]), (200, &"ready".into()), "{restarted:?}");
    assert!(restarted.json()["pid"] != pid && restarted.json()["epoch"].as_u64() > Some(1), "{:#}", restarted.json());

    let suspended = api.post(&about("/suspend"), json!({"reason": "does not pay"})).await;
    assert_eq!((suspended.status, &suspended.json()["state"], &suspended.json()["pid"]), (200, &"suspended".into(), &Value::Null));
    assert_eq!(by_token.get(READ).await.status, 403);
    assert!(api.post(&about("/restart"), json!({})).await.is_problem(409, "conflict"));
    assert!(api.post("/api/admin/provision/user1@example.com", json!({})).await.is_problem(409, "conflict"));
    let resumed = api.post(&about("/resume"), json!({})).await;
    assert_eq!((resumed.status, &resumed.json()["state"]), (200, &"ready".into()));
    assert_eq!(by_token.get(READ).await.text(), "hello");

    let removed = api.ask(Method::DELETE, &about(""), Some(json!({"reason": "it left"}))).await;
    assert_eq!((removed.status, &removed.json()["id"]), (200, &"user1@example.com".into()), "{removed:?}");
    assert_eq!((by_token.get(READ).await.status, api.get(&about("")).await.status), (403, 404));
    assert!(api.ask(Method::DELETE, &about(""), None).await.is_problem(404, "no-such-tenant"));
    assert!(host.data_dir("user1@example.com").join("diary.phext").exists(), "its data stays");
    assert_eq!(api.post("/api/admin/provision/user1@example.com", json!({"tier": "paid"})).await.status, 200);
    assert_eq!(host.user("user1@example.com").get(READ).await.text(), "hello", "and is there when it comes back");
    assert!(fs::read_to_string(host.file()).unwrap().starts_with(&host.wanted.text()), "the rest of the file is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_that_cannot_be_made_says_why_and_changes_nothing() {
    let (host, api) = admin::start_with(&["ada", "bob"], |wanted| wanted.tenant("bob").suspended = true).await;
    let text = fs::read_to_string(host.file()).unwrap();
    let digest = format!("sha256:{}", "0".repeat(64));
    for (method, path, body, status, name) in [
        ("POST", "/provision/.hidden", json!({}), 400, "bad-request"),
        ("POST", "/provision/ada", json!({"tier": "paid"}), 409, "conflict"),
        ("POST", "/provision/bob", json!({}), 409, "conflict"),
        ("POST", "/provision/cleo", json!({"tier": "golden"}), 409, "no-such-tier"),
        ("POST", "/provision/cleo", json!({"tier": 7}), 422, "unprocessable"),
        ("POST", "/provision/cleo", json!({"teir": "free"}), 422, "unprocessable"),
        ("POST", "/provision/cleo", json!([]), 422, "unprocessable"),
        ("POST", "/provision/cleo", json!({"reason": "x".repeat(257)}), 422, "unprocessable"),
        ("PUT", "/tenants/ada/tier", json!({}), 422, "unprocessable"),
        ("PUT", "/tenants/ada/tier", json!({"tier": "golden"}), 409, "no-such-tier"),
        ("PUT", "/tenants/nobody/tier", json!({"tier": "free"}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/suspend", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/resume", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/restart", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/tokens", json!({}), 404, "no-such-tenant"),
        ("DELETE", "/tenants/nobody/tokens", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/api-keys", json!({}), 404, "no-such-tenant"),
        ("DELETE", "/tenants/nobody", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/snapshots", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/nobody/restore", json!({}), 404, "no-such-tenant"),
        ("POST", "/tenants/ada/tokens", json!({"ttl_seconds": 0}), 422, "unprocessable"),
        ("POST", "/tenants/ada/tokens", json!({"ttl_seconds": 2_592_001}), 422, "unprocessable"),
        ("DELETE", "/tenants/ada/api-keys/sha256:zz", json!({}), 400, "bad-request"),
        ("DELETE", &format!("/tenants/ada/api-keys/{digest}"), json!({}), 404, "no-such-key"),
        ("POST", "/tenants/ada/restore", json!({}), 409, "conflict"),
        ("POST", "/tenants/ada/restore", json!({"from": "../bob"}), 422, "unprocessable"),
        ("POST", "/confirm/0123", json!({}), 409, "conflict"),
    ] {
        let said = api.ask(method.parse().unwrap(), &format!("/api/admin{path}"), Some(body.clone())).await;
        assert!(said.is_problem(status, name), "{method} {path} {body}: {said:?}");
    }
    for broken in ["{", "\"", "{}{}", "\u{feff}{}"] {
        let request = Request::post("/api/admin/provision/cleo").header("content-type", "application/json; charset=utf-8");
        let said = api.send_raw(request.body(Full::from(broken.to_owned())).unwrap()).await.unwrap();
        assert!(said.is_problem(400, "bad-request"), "{broken}: {said:?}");
    }
    assert_eq!(fs::read_to_string(host.file()).unwrap(), text);

    host.write("[[tenants]]\nid = \"ada\"\nteir = \"free\"\n");
    let said = api.post("/api/admin/tenants/ada/suspend", json!({})).await;
    assert!(said.is_problem(409, "conflict") && said.json()["detail"].as_str().unwrap().contains(":3:"), "{said:?}");
    host.write(&text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_held_names_the_hash_that_lets_it_through() {
    let (host, api) = admin::start_with(&["ada", "bob"], |wanted| wanted.isolation = "auto\"\nrequire_reviewed_hash = true #").await;
    let held = api.ask(Method::DELETE, "/api/admin/tenants/bob", None).await;
    assert_eq!((held.status, &held.headers["location"]), (202, &"/api/admin/tenants/bob".parse().unwrap()), "{held:?}");
    let hash = held.json()["confirm"].as_str().unwrap().to_owned();
    assert_eq!((&held.json()["state"], host.status().unwrap().held.unwrap().hash), (&"ready".into(), hash.clone()));
    assert_eq!(host.user("bob").get("/api/v2/toc?p=x").await.status, 200, "served until then");
    assert_eq!(api.post(&format!("/api/admin/confirm/{hash}"), json!({})).await.status, 200);
    eventually("it is gone", async || api.get("/api/admin/tenants/bob").await.status == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_in_time_is_told_as_what_is_still_to_come() {
    let (mut host, api) = admin::start(&["ada"]).await;
    // No port is left for another one.
    host.edit(|wanted| wanted.ports.1 = wanted.ports.0);
    host.settled().await;
    let began = std::time::Instant::now();
    let said = api.post("/api/admin/provision/bob", json!({})).await;
    assert_eq!(said.status, 409, "as many tenants as there are ports: {said:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    // An sq that does not come up.
    let file = host.state_dir().join("users/cleo");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "no directory").unwrap();
    host.edit(|wanted| wanted.ports.1 += 5);
    host.settled().await;
    let said = api.post("/api/admin/provision/cleo", json!({})).await;
    assert_eq!((said.status, &said.json()["id"], &said.json()["confirm"]), (202, &"cleo".into(), &Value::Null), "{said:?}");
    assert!(["crashed", "starting"].contains(&said.json()["state"].as_str().unwrap()), "{said:?}");
    fs::remove_file(&file).unwrap();
    eventually("it comes when it can", async || api.get("/api/admin/tenants/cleo").await.json()["state"] == "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_is_done_once_also_after_a_kill() {
    let (mut host, api) = admin::start(&["ada", "bob"]).await;
    let named = |key: &str| api.with("idempotency-key", key);
    let first = named("\"k-1\"").post("/api/admin/tenants/ada/api-keys", json!({})).await;
    assert_eq!((first.status, first.headers.contains_key("idempotency-replayed")), (201, false));
    let again = named("k-1").post("/api/admin/tenants/ada/api-keys", json!({})).await;
    assert_eq!((again.status, &again.headers["idempotency-replayed"], again.json()), (201, &"true".parse().unwrap(), first.json()));
    for (path, body) in [("/api/admin/tenants/bob/api-keys", json!({})), ("/api/admin/tenants/ada/api-keys", json!({"reason": "other"}))] {
        assert!(named("k-1").post(path, body).await.is_problem(422, "idempotency-key-reused"), "{path}");
    }
    assert!(named("").post("/api/admin/tenants/ada/api-keys", json!({})).await.is_problem(400, "bad-request"));
    // What was refused may be tried again.
    assert_eq!(named("k-2").post("/api/admin/tenants/cleo/suspend", json!({})).await.status, 404);
    assert_eq!(api.post("/api/admin/provision/cleo", json!({})).await.status, 200);
    assert_eq!(named("k-2").post("/api/admin/tenants/cleo/suspend", json!({})).await.status, 200);
    // Two at once.
    let both = named("k-3");
    let restart = || both.post("/api/admin/tenants/bob/restart", json!({}));
    let (one, other) = tokio::join!(restart(), restart());
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{one:?} {other:?}");
    assert!([one, other].iter().any(|said| said.status == 200 || said.is_problem(409, "under-way")));

    signal(host.agent_pid(), Signal::KILL);
    host.reap_agent();
    host.spawn_agent();
    host.until("it is back", |status| status.proxy.pid.is_some()).await;
    eventually("it listens", async || api.send(Method::GET, "/api/admin/tenants", None).await.is_ok()).await;
    let after = named("k-1").post("/api/admin/tenants/ada/api-keys", json!({})).await;
    assert_eq!((after.status, after.json()), (201, first.json()));
    assert_eq!(api.get("/api/admin/tenants/ada/api-keys").await.json()["digests"].as_array().unwrap().len(), 1);
    assert_eq!(user(&host, &first.json()["api_key"]).get(READ).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_over_a_request_leaves_one_that_can_be_sent_again() {
    let (mut host, api) = admin::start(&["ada", "bob"]).await;
    host.end_agent(Signal::KILL);
    // Behind the edit, before anybody is told.
    host.spawn_agent_that_dies_at("edit.placed");
    host.until("it is back", |status| host.as_wanted(status)).await;
    let named = api.with("idempotency-key", "k-1");
    eventually("it listens", async || api.send(Method::GET, "/api/admin/tenants", None).await.is_ok()).await;
    assert!(named.send(Method::DELETE, "/api/admin/tenants/bob", None).await.is_err(), "it died");
    host.reap_agent();
    host.spawn_agent();
    eventually("it listens", async || api.send(Method::GET, "/api/admin/tenants", None).await.is_ok()).await;
    let again = named.ask(Method::DELETE, "/api/admin/tenants/bob", None).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert!(api.ask(Method::DELETE, "/api/admin/tenants/bob", None).await.is_problem(404, "no-such-tenant"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_on_record_with_who_asked_why_and_what_came_of_it() {
    let (host, api) = admin::start(&["ada"]).await;
    let billing = api.with("x-admin-actor", "billing").with("x-request-id", "r-17");
    assert_eq!(billing.post("/api/admin/tenants/ada/suspend", json!({"reason": "does not pay"})).await.status, 200);
    assert_eq!(billing.post("/api/admin/tenants/nobody/suspend", json!({})).await.status, 404);
    assert_eq!(Admin::socket(&host).post("/api/admin/tenants/ada/resume", json!({})).await.status, 200);
    let events = api.get("/api/admin/events?kind=admin_change").await.json();
    let details: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|event| (event["tenant"].clone(), event["detail"].as_str().unwrap())).collect();
    let uid = rustix::process::geteuid().as_raw();
    let wanted = [
        (json!("ada"), format!("POST /api/admin/tenants/ada/resume: 200; by the socket, user {uid} ")),
        (json!("nobody"), "POST /api/admin/tenants/nobody/suspend: 404; by billing (127.0.0.1), request r-17".to_owned()),
        (json!("ada"), "POST /api/admin/tenants/ada/suspend: 200; by billing (127.0.0.1), request r-17; reason: does not pay".to_owned()),
    ];
    assert_eq!(details.len(), wanted.len(), "{details:#?}");
    for ((id, detail), (wanted_id, wanted)) in details.iter().zip(wanted) {
        assert!(*id == wanted_id && detail.starts_with(&wanted), "{id} {detail}");
    }
    assert!(host.logged().lines().any(|line| line.contains("a change was asked for") && line.contains("billing") && line.contains("r-17")));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_listed_and_put_back() {
    let (host, api) = admin::start(&["ada", "bob"]).await;
    let (ada, snapshots) = (host.user("ada"), "/api/admin/tenants/ada/snapshots");
    assert_eq!(api.get(snapshots).await.json(), json!({"snapshots": []}));
    assert_eq!(ada.post(WRITE, b"one").await.status, 200);
    let taken = api.post(snapshots, json!({})).await;
    assert_eq!((taken.status, &taken.json()["snapshot"]["reason"]), (201, &"asked".into()), "{taken:?}");
    eventually("nothing has changed", async || api.post(snapshots, json!({})).await.status == 200).await;
    let count = async || api.get(snapshots).await.json()["snapshots"].as_array().unwrap().len();
    let before = count().await;
    assert_eq!(ada.post(WRITE, b"two").await.status, 200);
    let restored = api.post("/api/admin/tenants/ada/restore", json!({"at": taken.json()["snapshot"]["time"], "phext": "diary"})).await;
    assert_eq!((restored.status, &restored.json()["files"]), (200, &1.into()), "{restored:?}");
    assert_eq!(ada.get(READ).await.text(), "one");
    assert_eq!(count().await, before + 1, "with what was there before");
    let other = api.post("/api/admin/tenants/bob/restore", json!({"from": "ada", "phext": "diary"})).await;
    assert_eq!((other.status, host.user("bob").get(READ).await.text()), (200, "one"), "{other:?}");
    // Of one that left, too.
    assert_eq!(api.ask(Method::DELETE, "/api/admin/tenants/ada", None).await.status, 200);
    assert!(api.get(snapshots).await.is_problem(404, "no-such-tenant"));
    assert_eq!(api.post("/api/admin/tenants/bob/restore", json!({"from": "ada", "phext": "diary"})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_fails_while_the_agent_is_replaced() {
    let (host, api) = admin::start(&["ada"]).await;
    let agent = host.agent_pid();
    let changing = tokio::spawn({
        let api = api.clone();
        async move {
            let mut statuses = BTreeMap::<u16, usize>::new();
            for round in 0_usize.. {
                let to = ["suspend", "resume"][round % 2];
                let said = api.send(Method::POST, &format!("/api/admin/tenants/ada/{to}"), None).await.map_or(0, |said| said.status);
                *statuses.entry(said).or_default() += 1;
                if ![200, 202].contains(&said) {
                    break;
                }
            }
            statuses
        }
    });
    for _ in 0..3 {
        let ran = host.cli(&["upgrade"]);
        assert_eq!(ran.code, 0, "{}{}", ran.err, host.account());
        host.until("the first process is the agent again", |status| status.agent.pid == agent && status.proxy.pid.is_some()).await;
    }
    assert!(!changing.is_finished(), "{:?}", changing.await);
    changing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_has_every_route_and_no_other() {
    let (_host, api) = admin::start(&["ada"]).await;
    let document = api.get("/api/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 18, "{:?}", paths.keys());
    for (path, item) in paths {
        let target = path.replace("{id}", "nobody").replace("{userId}", ".x").replace("{digest}", "x").replace("{hash}", "x");
        for method in ["get", "put", "post", "delete", "patch"] {
            let is_there = item.get(method).is_some();
            let said = api.ask(method.to_uppercase().parse().unwrap(), &target, None).await;
            let answered = said.status == 200 || !said.is_problem(405, "method-not-allowed") && !said.is_problem(404, "not-found");
            assert_eq!(is_there, answered, "{method} {target}: {said:?}");
            let documented = |status: u16| item[method]["responses"].get(status.to_string()).is_some();
            assert!(!is_there || documented(said.status), "{method} {path} answers {} and does not say so", said.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_followed_repository_a_change_is_a_commit_and_answered_once_that_is_in_force() {
    if !has_programs(&["git"]) {
        return;
    }
    let it = Followed::start(&["ada"], "").await;
    let billing = Admin::socket(&it.host).with("x-admin-actor", "billing");
    let said = billing.post("/api/admin/provision/bob", json!({"reason": "it pays"})).await;
    assert_eq!((said.status, &said.json()["status"]), (200, &"running".into()), "{said:?}");
    assert_eq!(it.host.user("bob").get("/api/v2/toc?p=x").await.status, 200);
    git(&it.clone, &["fetch", "--quiet"]);
    let commit = git(&it.clone, &["log", "-1", "--format=%an: %B", "origin/main"]);
    assert!(commit.starts_with("billing: Provision bob") && commit.contains("it pays"), "{commit}");
    assert_eq!(git(&it.clone, &["show", "origin/main:tenants.toml"]), it.text());
    let removed = billing.ask(Method::DELETE, "/api/admin/tenants/bob", None).await;
    assert_eq!((removed.status, it.host.user("bob").get("/api/v2/toc?p=x").await.status), (200, 403), "{removed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_and_no_token_stands_anywhere_but_in_its_answer() {
    let (host, api) = admin::start(&["ada"]).await;
    let named = api.with("idempotency-key", "a-name-of-a-request");
    let key = named.post("/api/admin/tenants/ada/api-keys", json!({})).await.json();
    let again = named.post("/api/admin/tenants/ada/api-keys", json!({})).await.json();
    assert_eq!(key, again, "it is kept, sealed");
    // Not the one that is shown to whoever starts an agent by hand.
    let token = api.with("idempotency-key", "another").post("/api/admin/tenants/ada/tokens", json!({"ttl_seconds": 600})).await.json();
    for credential in [&key["api_key"], &token["token"]] {
        assert_eq!(user(&host, credential).get(READ).await.status, 200);
    }
    let wrong = "d3Jvbmcta2V5LWZvci10ZXN0cy1hbG9uZS13cm9uZw";
    assert_eq!(api.with_key(Some(wrong)).get(&format!("/api/admin/tenants?key={wrong}")).await.status, 401);
    assert_eq!(api.get(&format!("/api/admin/tenants?key={wrong}")).await.status, 400);
    let secrets = [admin::KEY, wrong, "a-name-of-a-request", key["api_key"].as_str().unwrap(), token["token"].as_str().unwrap()];
    let status = api.get("/api/admin/status").await;
    let events = api.get("/api/admin/events?limit=1000").await;
    let mut places = vec![("the status".to_owned(), status.body.to_vec()), ("the events".to_owned(), events.body.to_vec())];
    let mut found = Vec::new();
    files(host.root(), &mut found);
    assert!(["agent.log", "instances.db"].iter().all(|name| found.iter().any(|(path, bytes)| path.ends_with(name) && !bytes.is_empty())));
    places.extend(
        found.into_iter().filter(|(path, _)| !path.ends_with("admin.key")).map(|(path, bytes)| (path.display().to_string(), bytes)),
    );
    for (place, bytes) in &places {
        for secret in secrets {
            assert!(!holds(bytes, secret), "{secret} stands in {place}");
        }
    }
}
