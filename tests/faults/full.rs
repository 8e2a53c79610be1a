//! A disk without room.

use crate::{
    disk::{Disk, may_mount},
    texts::{APPEND, Ada, WRITE, assert_problem},
};

/// Larger than what is left in any of these tests.
fn text(letter: &str) -> String {
    letter.repeat(1 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_for_which_the_disk_has_no_room_is_refused_before_sq_sees_it() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("");
    let disk = Disk::small(&host, 8);
    let ada = Ada::launch(host).await;
    ada.stores(&text("a")).await;
    let users = ada.host.state_dir().join("users");
    let full = Disk::fill(&users);
    assert_problem(&ada.user.post(WRITE, b"other").await, 507, "no-room");
    assert_problem(&ada.user.post(APPEND, b"more").await, 507, "no-room");
    assert_problem(&ada.user.post("/api/v2/update?p=new&c=1.1.1/1.1.1/1.1.1", b"new").await, 507, "no-room");
    ada.holds(&text("a")).await;
    // A start takes some room.
    ada.kill_sq();
    drop(full);
    ada.host.settled().await;
    ada.holds(&text("a")).await;
    ada.stores("room again").await;
    ada.holds_after_a_kill("room again").await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_a_write_leaves_the_text_as_it_was_and_nobody_is_told_200() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("");
    let disk = Disk::small(&host, 8);
    let ada = Ada::launch(host).await;
    ada.stores(&text("a")).await;
    let users = ada.host.state_dir().join("users");
    for round in 0..3 {
        let writing = ada.write_that_hangs(APPEND, text("b")).await;
        let full = Disk::fill(&users);
        assert_problem(&writing.go_on().await, 507, "not-stored");
        assert!(!ada.is_marked());
        ada.holds(&text("a")).await;
        if round == 1 {
            ada.kill_sq();
        }
        drop(full);
        ada.host.settled().await;
        ada.holds(&text("a")).await;
        let more = ada.user.post(APPEND, b"").await;
        assert_eq!(more.status, 200, "{more:?}");
        ada.holds(&text("a")).await;
    }
    ada.stores("room again").await;
    ada.holds_after_a_kill("room again").await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_any_room_at_all_what_is_acknowledged_is_there() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("");
    let disk = Disk::small(&host, 8);
    let ada = Ada::launch(host).await;
    let users = ada.host.state_dir().join("users");
    let mut known = text("a")[..1 << 19].to_owned();
    ada.stores(&known).await;
    let (mut stored, mut refused) = (0, 0);
    // Around the edge: a copy, the file and a body beside it.
    for left in (0..40).map(|step| step * (64 << 10)) {
        let full = Disk::leave(&users, left);
        let body = text("b")[..200_000].to_owned();
        let answer = ada.user.post(APPEND, body.as_bytes()).await;
        match answer.status {
            200 => {
                stored += 1;
                known.push_str(&body);
            }
            507 => refused += 1,
            _ => panic!("{answer:?} with {left} bytes left"),
        }
        ada.kill_sq();
        drop(full);
        ada.host.settled().await;
        ada.holds(&known).await;
        // The next crash is the first one again.
        ada.host.cli(&["restart", "ada"]);
        ada.host.settled().await;
        known = text("a")[..1 << 19].to_owned();
        ada.stores(&known).await;
        if stored > 3 {
            break;
        }
    }
    assert!(refused > 3 && stored > 3, "{refused} refused, {stored} stored");
    drop(disk);
}
