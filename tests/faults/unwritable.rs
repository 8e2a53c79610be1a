//! A file system that takes no writes, in mid-write or for good, a device that fails, and a limit on the size of files.

use crate::{
    disk::{Disk, ReadOnly, may_mount},
    texts::{APPEND, Ada, WRITE, assert_problem},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_turns_read_only_under_a_write_is_told_and_undone() {
    if !may_mount() {
        return;
    }
    let ada = Ada::launch(Ada::prepare("")).await;
    ada.stores("before").await;
    let writing = ada.write_that_hangs(APPEND, "never".into()).await;
    let read_only = ReadOnly::make(&ada.host.data_dir("ada"));
    assert_problem(&writing.go_on().await, 507, "not-stored");
    ada.holds("before").await;
    let refused = ada.user.post(WRITE, b"never").await;
    assert!([503, 507].contains(&refused.status), "{refused:?}");
    ada.holds("before").await;
    // A start takes a directory that can be written.
    ada.kill_sq();
    drop(read_only);
    ada.host.settled().await;
    ada.holds("before").await;
    ada.stores("after").await;
    ada.holds_after_a_kill("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_has_given_up_is_read_and_not_written_and_after_its_repair_all_is_there() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("durability = \"power\"\n");
    let disk = Disk::on_a_failing_device(&host, 80);
    let mut ada = Ada::launch(host).await;
    ada.stores("before").await;
    let writing = ada.write_that_hangs(APPEND, "never".into()).await;
    disk.fail();
    let answer = writing.go_on().await;
    assert!([503, 507].contains(&answer.status), "{answer:?}");
    let refused = ada.user.post(WRITE, b"never").await;
    assert!([503, 507].contains(&refused.status), "{refused:?}");
    ada.host.end_agent(rustix::process::Signal::TERM);
    disk.mend().await;
    ada.host.launch().await;
    ada.holds("before").await;
    ada.stores("after").await;
    ada.holds_after_a_kill("after").await;
    // It is the host's until its end.
    ada.host.end_agent(rustix::process::Signal::TERM);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durability_power_a_device_that_takes_no_more_is_never_answered_with_200() {
    if !may_mount() {
        return;
    }
    let host = Ada::prepare("durability = \"power\"\n");
    let disk = Disk::on_a_failing_device(&host, 16);
    let mut ada = Ada::launch(host).await;
    ada.stores("before").await;
    let full = Disk::fill(disk.below());
    let mut refused = 0;
    let mut known = "before".to_owned();
    for round in 0..6 {
        let body = format!("{round}").repeat(300_000);
        let answer = ada.user.post(WRITE, body.as_bytes()).await;
        match answer.status {
            // The device had these blocks already.
            200 => known = body,
            503 | 507 => refused += 1,
            _ => panic!("{answer:?}"),
        }
    }
    assert!(refused > 0, "the device took everything");
    drop(full);
    ada.host.end_agent(rustix::process::Signal::TERM);
    disk.mend().await;
    ada.host.launch().await;
    ada.holds(&known).await;
    ada.stores("after").await;
    ada.host.end_agent(rustix::process::Signal::TERM);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_ends_sq_in_mid_write_and_the_text_is_as_it_was() {
    let ada = Ada::launch(Ada::prepare("")).await;
    let before = "a".repeat(100_000);
    ada.stores(&before).await;
    ada.limit("--fsize=150000:");
    assert_problem(&ada.user.post(APPEND, "b".repeat(100_000).as_bytes()).await, 503, "not-applied");
    ada.holds(&before).await;
    // The next start has no such limit.
    ada.stores(&"b".repeat(200_000)).await;
}
