//! `storage_max`: who takes more than it may reads, deletes and writes less over more, until it takes less.

use std::{fs, time::Duration};

use sq_agent::{admin::status::Status, store::Store};

use crate::support::{
    client::Answer,
    host::{Host, User, tenant},
};

const MB: usize = 1 << 20;
/// A look every 20 s, on a busy machine.
const LOOKS: Duration = Duration::from_secs(60);

fn update(phext: &str, scroll: u32) -> String {
    format!("/api/v2/update?p={phext}&c=1.1.1/1.1.1/1.1.{scroll}")
}

fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 507, "{answer:?}");
    assert!(answer.text().contains("urn:sq-agent:problem:storage-quota\"") && answer.text().contains("may take 1048576"), "{answer:?}");
}

async fn stores(user: &User, target: &str, text: &[u8]) {
    let answer = user.post(target, text).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Waits for a look after which the phexts of ada take so much.
async fn measured(host: &Host, what: &str, condition: impl Fn(u64) -> bool) -> Status {
    host.within(LOOKS, what, |status| tenant(status, "ada").storage_bytes.is_some_and(&condition)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn over_its_storage_limit_a_tenant_reads_deletes_and_writes_less_until_it_is_below() {
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada").more = "storage_max = \"1M\"\nbody_max = \"4M\"\n";
        wanted.add("bob");
    });
    host.launch().await;
    let (ada, bob) = (host.user("ada"), host.user("bob"));
    stores(&ada, &update("large", 1), &vec![b'a'; MB]).await;
    stores(&ada, &update("large", 2), &vec![b'b'; 1_000]).await;
    stores(&ada, &update("small", 1), b"small").await;
    let status = measured(&host, "ada is over", |bytes| bytes > 1 << 20).await;
    let row = tenant(&status, "ada");
    assert!(row.detail.contains("of 1M: only what makes less is written"), "{}", row.detail);
    let file = host.data_dir("ada").join("large.phext");
    let before = fs::read(&file).unwrap();

    for target in ["/api/v2/insert?p=small&c=1.1.1/1.1.1/1.1.1", "/api/v2/insert?p=new&c=1.1.1/1.1.1/1.1.1"] {
        assert_refused(&ada.post(target, b"more").await);
    }
    assert_refused(&ada.get("/api/v2/json-export?p=small").await);
    assert_refused(&ada.post(&update("new", 1), b"a new phext").await);
    assert!(!host.data_dir("ada").join("new.phext").exists());
    // Larger than what is there, in a file that is much larger: sq has to try.
    assert_refused(&ada.post(&update("large", 2), &vec![b'c'; 2_000]).await);
    assert_eq!(ada.get("/api/v2/select?p=large&c=1.1.1/1.1.1/1.1.2").await.body, vec![b'b'; 1_000], "it is as it was, to sq too");
    assert!(fs::read(&file).unwrap() == before, "and on the disk");
    stores(&bob, &update("diary", 1), b"everybody else goes on").await;

    stores(&ada, &update("large", 2), &vec![b'd'; 500]).await;
    assert_eq!(ada.get("/api/v2/select?p=large&c=1.1.1/1.1.1/1.1.2").await.body, vec![b'd'; 500], "less over more");
    assert_eq!(ada.get("/api/v2/delete?p=large&c=1.1.1/1.1.1/1.1.1").await.status, 200);
    assert!(fs::metadata(&file).unwrap().len() < 1_000);
    measured(&host, "ada is below", |bytes| bytes < 1 << 20).await;
    stores(&ada, &update("new", 1), b"a new phext").await;
    stores(&ada, &update("large", 2), &vec![b'c'; 2_000]).await;
    let events = Store::open(&host.state_dir()).unwrap().store.events(100).unwrap();
    assert!(events.iter().any(|event| event.kind == "storage_full" && event.detail.ends_with(" of 1M")), "{events:?}");
}
