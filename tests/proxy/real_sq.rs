//! Through the proxy to real sq.

use http::StatusCode;

use super::{
    client::Http,
    host::{Host, ready},
    support::Running,
};

const AT: &str = "p=book&c=1.1.1/1.1.1/1.1.1";

#[tokio::test(flavor = "multi_thread")]
async fn each_user_reaches_their_own_sq_and_nobody_elses() {
    let host = Host::start(&[]).await;
    let alice = Running::start(host.path(), "alice", &host.instance_key("alice", 1)).await;
    let bob = Running::start(host.path(), "bob", &host.instance_key("bob", 1)).await;
    host.publish(&[ready("alice", 0, alice.port), ready("bob", 1, bob.port)]).await;
    let (client, a, b) = (host.client(), host.token("alice"), host.token("bob"));
    let text = "gr\u{fc}n \u{1f98a} & 100 % = ?";
    assert_eq!(client.post(&a, &format!("/api/v2/update?{AT}"), text).await.status, StatusCode::OK);
    assert_eq!(client.post(&b, &format!("/api/v2/update?{AT}"), "bob's").await.status, StatusCode::OK);
    assert_eq!(client.get(&a, &format!("/api/v2/select?{AT}")).await.text(), text);
    assert_eq!(client.get(&b, &format!("/api/v2/select?{AT}")).await.text(), "bob's");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_goes_there_and_back_over_either_http() {
    let host = Host::start(&[]).await;
    let alice = Running::start(host.path(), "alice", &host.instance_key("alice", 1)).await;
    host.publish(&[ready("alice", 0, alice.port)]).await;
    let (client, token) = (host.client(), host.token("alice"));
    for (http, letter) in [(Http::One, "a"), (Http::Two, "b")] {
        let text = letter.repeat(1 << 20);
        let update = super::client::request(http::Method::POST, &token, &format!("/api/v2/update?{AT}"), super::client::full(&text));
        assert_eq!(client.ask(http, update).await.status, StatusCode::OK);
        let select = super::client::request(http::Method::GET, &token, &format!("/api/v2/select?{AT}"), super::client::full(""));
        assert!(client.ask(http, select).await.text() == text, "{http:?}");
    }
    host.stop().await;
}
