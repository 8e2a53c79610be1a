//! Nobody reads or writes another user's text, whatever they send.

use http::{HeaderValue, Method, Request};
use serde_json::{Value, json};

use crate::support::{
    client::{Http, Upload},
    host::{Host, User, tenant},
    tokens::{claims, now, secret, sign, sign_as, unsigned},
};

const DIARY: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// Two users with a text each.
async fn two_users() -> (Host, User, User) {
    let host = Host::start(&["ada@example.com", "bob@example.com"]).await;
    let (ada, bob) = (host.user("ada@example.com"), host.user("bob@example.com"));
    assert_eq!(ada.post(WRITE, b"Ada's secret").await.status, 200);
    assert_eq!(bob.post(WRITE, b"Bob's secret").await.status, 200);
    (host, ada, bob)
}

fn with(mut claims: Value, key: &str, value: impl Into<Value>) -> Value {
    claims[key] = value.into();
    claims
}

fn without(mut claims: Value, key: &str) -> Value {
    claims.as_object_mut().unwrap().remove(key).unwrap();
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_sees_their_own_text_and_no_other() {
    let (_host, ada, bob) = two_users().await;
    assert_eq!(ada.get(DIARY).await.text(), "Ada's secret");
    assert_eq!(bob.get(DIARY).await.text(), "Bob's secret");
    for path in ["..%2F..%2Fada@example.com%2Fphext-data%2Fdiary", "../../ada@example.com/phext-data/diary", "..%5Cdiary"] {
        let answer = bob.get(&format!("/api/v2/select?p={path}&c=1.1.1/1.1.1/1.1.1")).await;
        assert_eq!((answer.status, answer.text()), (403, "Forbidden: invalid phext path"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_gets_401_and_nothing_else() {
    let (host, ada, _bob) = two_users().await;
    let secret = secret(&host.state_dir());
    let good = claims("ada@example.com");
    let hs256 = json!({ "alg": "HS256", "typ": "JWT" });
    let none = json!({ "alg": "none", "typ": "JWT" });
    let mut other_claims = sign(&secret, &claims("bob@example.com"));
    let signature = other_claims.split_off(other_claims.rfind('.').unwrap());
    let cases = [
        ("expired", sign(&secret, &with(good.clone(), "exp", now() - 60))),
        ("without an end", sign(&secret, &without(good.clone(), "exp"))),
        ("valid from tomorrow", sign(&secret, &with(good.clone(), "nbf", now() + 86_400))),
        ("alg none, no signature", format!("{}.", unsigned(&none, &good))),
        ("alg none, a signature all the same", sign_as(&none, &secret, &good)),
        ("alg None in other letters", format!("{}.", unsigned(&json!({ "alg": "nOnE" }), &good))),
        ("another algorithm", sign_as(&json!({ "alg": "HS512" }), &secret, &good)),
        ("signed with another secret", sign(b"0123456789abcdef0123456789abcdef", &good)),
        ("signed with an empty secret", sign(b"", &good)),
        ("another's signature", format!("{}{signature}", unsigned(&hs256, &good))),
        ("no signature", format!("{}.", unsigned(&hs256, &good))),
        ("an unknown critical extension", sign_as(&json!({ "alg": "HS256", "crit": ["x"], "x": 1 }), &secret, &good)),
        ("without a name", sign(&secret, &without(good.clone(), "sub"))),
        ("a path for a name", sign(&secret, &with(good.clone(), "sub", "../ada@example.com"))),
        ("nonsense", "a.b.c".into()),
    ];
    for (what, token) in cases {
        let user = User { token, ..ada.clone() };
        for http in [Http::One, Http::Two] {
            let answer = user.client.send(http, user.request(Method::GET, DIARY, Upload::default())).await.unwrap();
            assert_eq!(answer.status, 401, "{what}: {answer:?}");
            assert!(answer.header("www-authenticate").starts_with("Bearer realm=\"sq\", error=\"invalid_token\""), "{what}");
            assert!(!answer.text().contains("secret"), "{what}");
        }
        assert_eq!(user.post(WRITE, b"overwritten").await.status, 401, "{what}");
    }
    assert_eq!(ada.get(DIARY).await.text(), "Ada's secret", "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_exactly_one_credential_gets_401() {
    let (_host, ada, bob) = two_users().await;
    let bearer = |user: &User| HeaderValue::try_from(format!("Bearer {}", user.token)).unwrap();
    let cases: [(&str, Vec<(&str, HeaderValue)>); 6] = [
        ("none", vec![]),
        ("a cookie", vec![("cookie", format!("token={}", ada.token).parse().unwrap())]),
        ("sq's own header", vec![("x-sq-api-key", ada.token.parse().unwrap())]),
        ("two", vec![("authorization", bearer(&bob)), ("authorization", bearer(&ada))]),
        ("a second in sq's own header", vec![("authorization", bearer(&bob)), ("x-sq-api-key", ada.token.parse().unwrap())]),
        ("a password", vec![("authorization", "Basic YWRhOmFkYQ==".parse().unwrap())]),
    ];
    for (what, headers) in cases {
        let mut request = Request::builder().uri(DIARY).body(Upload::default()).unwrap();
        headers.into_iter().for_each(|(name, value)| _ = request.headers_mut().append(name, value));
        let answer = ada.client.send(Http::One, request).await.unwrap();
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        assert!(answer.header("www-authenticate").starts_with("Bearer realm=\"sq\""), "{what}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&problem["status"], &problem["request_id"]), (&json!(401), &json!(answer.header("x-request-id"))), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_port_leads_nowhere() {
    let (host, _ada, bob) = two_users().await;
    let status = host.settled().await;
    let port = tenant(&status, "ada@example.com").port.unwrap();
    let token = sign(&secret(&host.state_dir()), &with(claims("bob@example.com"), "port", port));
    let claiming = User { token, ..bob };
    assert_eq!(claiming.get(DIARY).await.text(), "Bob's secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_makes_a_user_another() {
    let (_host, _ada, bob) = two_users().await;
    for (name, value) in [
        ("x-user-id", "ada@example.com"),
        ("authorization-extra", "Bearer junk"),
        ("x-forwarded-user", "ada@example.com"),
        ("x-real-ip", "127.0.0.1"),
        ("x-original-url", "/../../ada@example.com"),
    ] {
        let mut request = bob.request(Method::GET, DIARY, Upload::default());
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(bob.client.send(Http::One, request).await.unwrap().text(), "Bob's secret", "{name}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_of_nobody_here_gets_403() {
    let (host, ..) = two_users().await;
    let answer = host.user("eve@example.com").get(DIARY).await;
    assert_eq!((answer.status, answer.header("content-type")), (403, "application/problem+json"));
    assert!(!host.data_dir("eve@example.com").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_user_gets_403_until_resumed_and_finds_everything_again() {
    let (mut host, ada, bob) = two_users().await;
    host.edit(|wanted| wanted.tenant("ada@example.com").suspended = true);
    host.settled().await;
    let answer = ada.get(DIARY).await;
    assert_eq!((answer.status, answer.text().contains("suspended")), (403, true));
    assert_eq!(bob.get(DIARY).await.text(), "Bob's secret");
    host.edit(|wanted| wanted.tenant("ada@example.com").suspended = false);
    host.settled().await;
    assert_eq!(ada.get(DIARY).await.text(), "Ada's secret");
}
