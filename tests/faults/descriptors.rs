//! sq without descriptors: it reads empty texts, and would write them.

use std::{fs, time::Duration};

use crate::texts::{APPEND, Ada, READ, WRITE};

const OTHER: &str = "/api/v2/select?p=other&c=1.1.1/1.1.1/1.1.1";

/// Leaves sq so many descriptors beside those that it has open while nobody asks it anything.
async fn leave(ada: &Ada, more: Option<usize>) {
    let sq = ada.sq();
    let mut open = usize::MAX;
    // The last request may not have closed all of its own yet, and a probe comes and goes.
    for _ in 0..20 {
        open = open.min(fs::read_dir(format!("/proc/{sq}/fd")).unwrap().count());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The soft one: nobody may raise the other again.
    ada.limit(&format!("--nofile={}:", more.map_or(1_024, |more| open + more)));
}

async fn prepared() -> Ada {
    let ada = Ada::launch(Ada::prepare("")).await;
    let other = ada.user.post("/api/v2/update?p=other&c=1.1.1/1.1.1/1.1.1", b"other").await;
    assert_eq!(other.status, 200);
    ada.stores("before").await;
    ada
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_sq_cannot_open_its_file_for_is_not_acknowledged() {
    let ada = prepared().await;
    // One for the connection, none for the file.
    leave(&ada, Some(1)).await;
    for target in [WRITE, APPEND, WRITE] {
        let answer = ada.user.post(target, b"never").await;
        assert!([503, 507].contains(&answer.status), "{answer:?}");
        // It may be another start by now.
        ada.host.settled().await;
        ada.holds("before").await;
        leave(&ada, Some(1)).await;
    }
    leave(&ada, None).await;
    ada.stores("after").await;
    ada.holds_after_a_kill("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_sq_could_not_read_is_not_wiped_by_the_next_write() {
    let ada = prepared().await;
    for append in ["one", "two"] {
        let before = ada.user.get(READ).await.text().to_owned();
        leave(&ada, Some(1)).await;
        // sq forgets its phext for another one that it cannot open, and then cannot open the first one again.
        assert_eq!(ada.user.get(OTHER).await.status, 200);
        assert_eq!(ada.user.get(READ).await.text(), "", "it reads back as empty (sq-facts); this test is about what follows");
        leave(&ada, None).await;
        let answer = ada.user.post(APPEND, append.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        ada.holds(&format!("{before}{append}")).await;
        ada.holds_after_a_kill(&format!("{before}{append}")).await;
    }
    assert_eq!(ada.user.get(OTHER).await.text(), "other");
}
