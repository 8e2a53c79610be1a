//! Times of files that stand still while writes go on: whole seconds here, 4 ms and more on every kernel before 6.13.

use std::fs;

use rustix::process::Signal;

use crate::{
    disk::{Disk, may_mount},
    support::processes::signal,
    texts::{Ada, WRITE, assert_problem},
};

#[tokio::test(flavor = "multi_thread")]
async fn of_writes_that_leave_the_same_times_the_last_one_is_put_back() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("rate = \"none\"\n");
    let disk = Disk::with_coarse_times(&host);
    let ada = Ada::launch(host).await;
    // Of one length, and most of them of one second.
    for number in 100..300 {
        ada.stores(&format!("text {number}")).await;
    }
    let sq = ada.sq();
    let writing = ada.write_that_hangs(WRITE, "text 300".into()).await;
    fs::write(ada.file(), "tex").unwrap();
    signal(sq, Signal::KILL);
    assert_problem(&writing.answered().await, 503, "not-applied");
    ada.holds("text 299").await;
    drop(disk);
}
