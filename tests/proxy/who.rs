//! Who gets in, over real TLS: every way to be somebody, and everything that is none.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::{Method, Request, StatusCode};
use sq_agent::{
    desired::Algorithm,
    proxy::{
        settings::{KeyForm, Settings, TokenKey},
        supervisor::ProxyEvent,
    },
    route::{RouteState, Row},
    secret::Secret,
};
use tokio::time::Instant;

use super::{
    client::{Answer, AnyBody, Http, full},
    fake::Fake,
    host::{Host, now, ready, row, sign},
    support::{eventually, tokens::Issuer},
};

const KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";

fn get(target: &str, headers: &[(&str, &str)]) -> Request<AnyBody> {
    let mut request = Request::builder().method(Method::GET).uri(format!("https://localhost{target}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(full("")).unwrap()
}

/// What comes of a request that is let in.
async fn served(host: &Host, fake: &Fake, http: Http, headers: &[(&str, &str)]) -> (Answer, String) {
    let (client, request) = (host.client(), get("/api/v2/toc", headers));
    let answer = tokio::spawn(async move { client.ask(http, request).await });
    let seen = fake.next().await;
    let head = seen.head.clone();
    seen.answer("200 OK", "served").await;
    (answer.await.unwrap(), head)
}

/// An identity provider's key, as the agent hands it on.
fn key(issuer: &Issuer, kid: &str) -> TokenKey {
    let (secret, form) = (Secret::new(issuer.jwk().to_string()), KeyForm::Jwk);
    TokenKey { kid: Some(kid.into()), alg: Algorithm::ES256, secret, form, iss: Some("sso".into()), aud: Some("sq".into()) }
}

/// Has the proxy serve by changed settings.
async fn change(host: &Host, edit: impl FnOnce(&mut Settings)) {
    let before = host.log("proxy.log").matches("new settings are in force").count();
    let mut settings = host.settings.borrow().as_ref().clone();
    edit(&mut settings);
    host.settings.send_replace(Arc::new(settings));
    eventually("they are in force", async || host.log("proxy.log").matches("new settings are in force").count() > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_no_good_token_gets_401_and_says_why() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let issuer = Issuer::new();
    change(&host, |settings| {
        settings.token_keys[0].kid = Some("own".into());
        settings.token_keys.push(key(&issuer, "idp"));
    })
    .await;
    let exp = now() + 60;
    let (hs256, es256) = (r#"{"alg":"HS256"}"#, r#"{"alg":"ES256","kid":"idp"}"#);
    let good = format!(r#"{{"sub":"alice","exp":{exp},"iss":"sso","aud":["sq"]}}"#);
    let own = |claims: &str| host.sign(hs256, &format!(r#"{{"sub":"alice",{claims}}}"#));
    let headed = |header: &str| host.sign(header, &good);
    let bearer = |token: String| format!("Bearer {token}");
    let signed = host.sign(hs256, &good);
    let unsigned = format!("{}.{}.", B64.encode(r#"{"alg":"none"}"#), B64.encode(&good));
    let long = own(&format!(r#""exp":{exp},"x":"{}""#, "x".repeat(8_192)));
    let rows = [
        ("no credential", String::new(), "send a credential"),
        ("alg none", bearer(unsigned), "kid and algorithm"),
        ("another alg than the key's", bearer(issuer.token(r#"{"alg":"ES256","kid":"own"}"#, &good)), "kid and algorithm"),
        ("HS256 in the name of an ES256 key", bearer(headed(r#"{"alg":"HS256","kid":"idp"}"#)), "kid and algorithm"),
        (
            "a public key as HMAC secret",
            bearer(sign(r#"{"alg":"HS256","kid":"idp"}"#, &good, issuer.jwk().to_string().as_bytes())),
            "kid and algorithm",
        ),
        ("the same without a kid", bearer(sign(hs256, &good, issuer.jwk().to_string().as_bytes())), "signature"),
        ("unknown kid", bearer(headed(r#"{"alg":"HS256","kid":"other"}"#)), "no key of this server has the token's kid\""),
        ("unknown crit", bearer(headed(r#"{"alg":"HS256","crit":["x"],"x":1}"#)), "crit"),
        ("b64=false", bearer(headed(r#"{"alg":"HS256","b64":false}"#)), "crit"),
        ("exp missing", bearer(own(r#""iat":1"#)), "no numeric exp"),
        ("exp a string", bearer(own(&format!(r#""exp":"{exp}""#))), "JWT with the claims"),
        ("exp huge", bearer(own(r#""exp":1e300"#)), "JWT with the claims"),
        ("exp negative", bearer(own(r#""exp":-1"#)), "JWT with the claims"),
        ("exp past", bearer(own(&format!(r#""exp":{}"#, now() - 6))), "expired"),
        ("nbf in the future", bearer(own(&format!(r#""exp":{exp},"nbf":{}"#, now() + 30))), "not valid yet"),
        ("wrong iss", bearer(issuer.token(es256, &good.replace("sso", "oss"))), "(iss)"),
        ("wrong aud", bearer(issuer.token(es256, &good.replace("[\"sq\"]", "\"mail\""))), "(aud)"),
        ("duplicate claims", bearer(own(&format!(r#""exp":{exp},"sub":"bob""#))), "JWT with the claims"),
        ("duplicate header members", bearer(headed(r#"{"alg":"HS256","alg":"HS256"}"#)), "JWT with the claims"),
        ("LF in sub", bearer(host.sign(hs256, &format!(r#"{{"sub":"alice\nX-User-ID: bob","exp":{exp}}}"#))), "sub is not a tenant"),
        ("CR in sub", bearer(host.sign(hs256, &format!(r#"{{"sub":"alice\r","exp":{exp}}}"#))), "sub is not a tenant"),
        ("padded", bearer(format!("{signed}=")), "JWT with the claims"),
        ("over 8 KiB", bearer(long), "longer than 8 KiB"),
        ("another scheme", format!("Basic {signed}"), "must read: Bearer"),
        ("a bare token", signed.clone(), "must read: Bearer"),
        ("an unknown API key", KEY.to_owned(), "no tenant of this server has this API key"),
        ("half an API key", bearer(KEY[..20].to_owned()), "no tenant of this server has this API key"),
        ("an API key and more", bearer(format!("{KEY}, x")), "that is no API key"),
    ];
    let mut session = host.client().connect(Http::Two).await.unwrap();
    for (what, value, why) in rows {
        let headers = [("authorization", value.as_str())];
        let headers = if value.is_empty() { &headers[1..] } else { &headers[..] };
        for answer in
            [session.ask(get("/api/v2/toc", headers)).await.unwrap(), host.client().ask(Http::One, get("/api/v2/toc", headers)).await]
        {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {}", answer.text());
            assert!(answer.text().contains(why), "{what}: {}", answer.text());
            assert!(answer.header("www-authenticate").starts_with("Bearer realm=\"sq\""), "{what}");
        }
    }
    // The same ones, good: the rows above fail for their own reason.
    for token in [signed.clone(), issuer.token(es256, &good)] {
        assert_eq!(served(&host, &fake, Http::Two, &[("authorization", &bearer(token))]).await.0.status, StatusCode::OK);
    }
    for target in [format!("/api/v2/toc?access_token={signed}"), format!("/api/v2/toc?token={signed}"), format!("/api/v2/toc?key={KEY}")] {
        let answer = host.client().ask(Http::Two, get(&target, &[])).await;
        assert!(answer.status == StatusCode::UNAUTHORIZED && answer.text().contains("send a credential"), "{}", answer.text());
    }
    let two = [("authorization", bearer(signed.clone())), ("authorization", bearer(signed.clone())), ("x-sq-api-key", KEY.to_owned())];
    for (first, second) in [(0, 1), (0, 2), (2, 0), (2, 2)] {
        let headers = [first, second].map(|at: usize| (two[at].0, two[at].1.as_str()));
        let answer = host.client().ask(Http::One, get("/api/v2/toc", &headers)).await;
        assert!(answer.status == StatusCode::UNAUTHORIZED && answer.text().contains("exactly one credential"), "{}", answer.text());
        assert!(answer.header("www-authenticate").contains("invalid_request"), "{first} {second}");
    }
    assert!(fake.is_untouched().await);
    host.stop().await;
}

fn with_key(mut row: Row, key: &str) -> Row {
    row.api_keys = vec![digest::digest(&digest::SHA256, key.as_bytes()).as_ref().try_into().unwrap()];
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_opens_its_tenants_door_until_it_is_removed() {
    const OTHER: &str = "pmb-v1-ffeeddccbbaa99887766554433221100";
    let (alice, bob) = (Fake::start().await, Fake::start().await);
    let rows = || [with_key(ready("alice", 0, alice.port), KEY), with_key(ready("bob", 1, bob.port), OTHER)];
    let host = Host::start(&rows()).await;
    let bearer = format!("Bearer {KEY}");
    for http in [Http::One, Http::Two] {
        for header in [("authorization", bearer.as_str()), ("authorization", KEY), ("x-sq-api-key", KEY)] {
            let (answer, head) = served(&host, &alice, http, &[header]).await;
            assert_eq!(answer.text(), "served");
            assert!(
                head.contains("X-User-ID: alice\r\n") && !head.contains("pmb-v1") && !head.to_lowercase().contains("x-sq-api-key"),
                "{head}"
            );
        }
    }
    let (_, head) = served(&host, &bob, Http::Two, &[("x-sq-api-key", OTHER)]).await;
    assert!(head.contains("X-User-ID: bob\r\n"), "{head}");
    let ask = async |key: &str| host.client().ask(Http::Two, get("/api/v2/toc", &[("x-sq-api-key", key)])).await.status;

    // Revoked tokens are another matter: a key is removed by itself.
    let [mut first, second] = rows();
    first.tokens_valid_after = now() + 60;
    host.publish(&[first, second]).await;
    served(&host, &alice, Http::Two, &[("x-sq-api-key", KEY)]).await;
    assert_eq!(host.client().get(&host.token("alice"), "/api/v2/toc").await.status, StatusCode::UNAUTHORIZED);

    let [_, second] = rows();
    host.publish(&[ready("alice", 0, alice.port), second]).await;
    assert_eq!(ask(KEY).await, StatusCode::UNAUTHORIZED, "removed, and so at once");
    host.publish(&[with_key(row("alice", 0, RouteState::Suspended, 0, 1), KEY)]).await;
    assert_eq!(ask(KEY).await, StatusCode::FORBIDDEN, "suspended");
    assert_eq!(ask(OTHER).await, StatusCode::UNAUTHORIZED, "its tenant is gone");
    assert!(alice.is_untouched().await && bob.is_untouched().await);
    let log = host.log("access.log");
    assert!(!log.contains("pmb-v1-0011") && log.contains("\"tenant\":\"alice\""), "{log}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_takes_with_it_the_tokens_that_it_had_proved() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let issuer = Issuer::new();
    change(&host, |settings| settings.token_keys.push(key(&issuer, "idp"))).await;
    let claims = format!(r#"{{"sub":"alice","exp":{},"iss":"sso","aud":"sq"}}"#, now() + 60);
    let bearer = format!("Bearer {}", issuer.token(r#"{"alg":"ES256","kid":"idp"}"#, &claims));
    for _ in 0..2 {
        served(&host, &fake, Http::Two, &[("authorization", &bearer)]).await;
    }
    change(&host, |settings| _ = settings.token_keys.pop()).await;
    let answer = host.client().ask(Http::Two, get("/api/v2/toc", &[("authorization", &bearer)])).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_by_a_key_that_is_new_to_us_waits_until_that_key_is_fetched() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let (old, new) = (Issuer::new(), Issuer::new());
    // Without a kid it would be tried for every kid.
    change(&host, |settings| (settings.token_keys, settings.keys_renew) = (vec![key(&old, "old")], true)).await;
    let claims = format!(r#"{{"sub":"alice","exp":{},"iss":"sso","aud":"sq"}}"#, now() + 60);
    let bearer = |issuer: &Issuer, kid: &str| format!("Bearer {}", issuer.token(&format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), &claims));
    let ask = |bearer: String| {
        let client = host.client();
        tokio::spawn(async move { client.ask(Http::Two, get("/api/v2/toc", &[("authorization", &bearer)])).await })
    };
    let (first, second) = (ask(bearer(&new, "new")), ask(bearer(&new, "new")));
    host.event(|event| *event == ProxyEvent::UnknownKid).await;
    change(&host, |settings| settings.token_keys.push(key(&new, "new"))).await;
    for _ in 0..2 {
        fake.next().await.answer("200 OK", "with the new key").await;
    }
    assert_eq!((first.await.unwrap().text(), second.await.unwrap().text()), ("with the new key".into(), "with the new key".into()));

    // Whoever makes up kids learns that at once from then on, and the agent is left alone.
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        assert_eq!(ask(bearer(&new, "made-up")).await.unwrap().status, StatusCode::UNAUTHORIZED);
        if asked.elapsed() < Duration::from_millis(500) && begun.elapsed() > Duration::from_secs(1) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "still waits");
    }
    let events = host.events.lock().await.try_recv();
    assert!(!matches!(events, Ok(ProxyEvent::UnknownKid)), "{events:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_kid_is_refused_at_once_where_nothing_is_fetched() {
    let host = Host::start(&[]).await;
    let issuer = Issuer::new();
    change(&host, |settings| settings.token_keys = vec![key(&issuer, "idp")]).await;
    let begun = Instant::now();
    let token = issuer.token(r#"{"alg":"ES256","kid":"other"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, now() + 60));
    let answer = host.client().get(&token, "/api/v2/toc").await;
    assert!(answer.status == StatusCode::UNAUTHORIZED && answer.text().contains("has the token's kid"), "{}", answer.text());
    assert!(begun.elapsed() < Duration::from_millis(900), "it waited {:?}", begun.elapsed());
    host.stop().await;
}
