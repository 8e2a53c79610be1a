//! Markers as a dead host would leave them.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    support::{
        eventually,
        processes::{ended_within, signal},
    },
    texts::{Ada, WRITE},
};

/// The agent's book of events.
fn events(ada: &Ada) -> Vec<(String, String)> {
    let book = rusqlite::Connection::open_with_flags(ada.host.state_dir().join("instances.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
        .unwrap();
    let mut found = book.prepare("SELECT kind, detail FROM events WHERE id = 'ada'").unwrap();
    found.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

fn place(ada: &Ada) {
    fs::write(ada.user_dir().join("guard/diary.phext"), fs::read(ada.file()).unwrap()).unwrap();
    fs::write(ada.file(), "cut").unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let size = fs::metadata(ada.user_dir().join("guard/diary.phext")).unwrap().len();
    let marker = serde_json::json!({
        "file": "diary.phext", "request_id": "request-7", "epoch": 1, "existed": true, "size": size, "durable": false, "boot_id": boot_id.trim(),
    });
    fs::write(ada.user_dir().join("guard/marker"), marker.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_stands_is_put_right_before_the_next_start_and_told() {
    let ada = Ada::launch(Ada::prepare("")).await;
    ada.stores("before").await;
    let sq = ada.sq();
    signal(sq, Signal::STOP);
    place(&ada);
    signal(sq, Signal::KILL);
    assert!(ended_within(sq, Duration::from_secs(10)));
    ada.host.settled().await;
    ada.holds("before").await;
    assert!(!ada.is_marked());
    let told = |(kind, detail): &(String, String)| kind == "write_undone" && detail.contains("diary.phext") && detail.contains("request-7");
    eventually("it is told", async || events(&ada).iter().any(told)).await;
    ada.stores("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_stands_beside_a_living_sq_is_put_right_before_the_next_write() {
    let ada = Ada::launch(Ada::prepare("")).await;
    ada.stores("before").await;
    let sq = ada.sq();
    place(&ada);
    let answer = ada.user.post(WRITE, b"after").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(ada.sq(), sq);
    assert!(events(&ada).iter().any(|(kind, _)| kind == "write_undone"));
    ada.holds_after_a_kill("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_cannot_be_read_keeps_nobody_from_writing() {
    let ada = Ada::launch(Ada::prepare("")).await;
    ada.stores("before").await;
    fs::write(ada.user_dir().join("guard/marker"), "{\"file\":").unwrap();
    let answer = ada.user.post(WRITE, b"after").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    ada.holds_after_a_kill("after").await;
}
