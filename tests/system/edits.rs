//! Saving tenants.toml makes it true.

use std::{fs, io::Write as _, os::unix::fs::symlink, time::Duration};

use crate::support::host::{Host, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_edit_adds_removes_suspends_resumes_and_changes_the_tier() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let before = host.settled().await;
    host.edit(|wanted| {
        wanted.add("cleo");
        wanted.tenant("ada").tier = "paid";
    });
    let added = host.settled().await;
    let pid = |status, id| tenant(status, id).pid;
    assert_eq!(pid(&added, "ada"), pid(&before, "ada"), "a change of tier restarts nothing");
    assert_eq!(pid(&added, "bob"), pid(&before, "bob"), "an edit leaves others alone");

    host.edit(|wanted| wanted.tenant("bob").suspended = true);
    let suspended = host.settled().await;
    host.assert_matches_proc(&suspended);
    host.edit(|wanted| {
        wanted.tenant("bob").suspended = false;
        wanted.remove("cleo");
    });
    let resumed = host.settled().await;
    host.assert_matches_proc(&resumed);
    assert!(tenant(&resumed, "bob").epoch > tenant(&before, "bob").epoch);
    assert!(host.data_dir("cleo").is_dir(), "the data of a removed tenant stays");
}

/// Each of these is a text that must change nothing, with what the error must name.
const BAD: [(&str, &str, &str); 4] = [
    ("half-written", "[[tenants]]\nid = \"ada\"\ntier = \"fr", "toml:3:11\n"),
    ("of an unknown tier", "[[tenants]]\nid = \"ada\"\ntier = \"gold\"\n", "toml:3:8\n"),
    ("with a mistyped key", "[[tenants]]\nid = \"ada\"\nteir = \"free\"\n", "toml:3:1\n"),
    ("with a tenant twice", "[[tenants]]\nid = \"ada\"\n[[tenants]]\nid = \"ada\"\n", "toml:4:6\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_that_runs_and_says_where_it_is_bad() {
    let host = Host::start(&["ada", "bob"]).await;
    let before = host.settled().await;
    for (what, text, place) in BAD {
        host.write(text);
        let refused = host.until("the bad file is said", |status| stale_for(status, place)).await;
        assert_eq!(refused.agent.desired_hash, before.agent.desired_hash, "a file {what}");
        assert_eq!(pids(&refused), pids(&before), "a file {what}");
    }
    host.write(&many(10_000));
    let refused = host.until("the long file is said", |status| stale_for(status, "10000 tenants")).await;
    assert_eq!((&refused.agent.desired_hash, pids(&refused)), (&before.agent.desired_hash, pids(&before)));
    host.until("the time grows", |status| status.agent.config_stale_seconds >= 2).await;
    host.write(&host.wanted.text());
    let mended = host.until("the good file is in force", |status| status.agent.config_stale_seconds == 0).await;
    assert_eq!(mended.agent.config_error, None);
    assert_eq!(pids(&mended), pids(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_in_place_counts_once_it_is_whole() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let before = host.settled().await;
    host.wanted.add("cleo");
    let text = host.wanted.text();
    let (first, rest) = text.split_at(text.len() - 5);
    let mut file = fs::File::create(host.file()).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    let half = host.until("the half is refused", |status| stale_for(status, "not valid TOML")).await;
    assert_eq!(pids(&half), pids(&before));
    file.write_all(rest.as_bytes()).unwrap();
    let whole = host.settled().await;
    assert_eq!((whole.agent.config_stale_seconds, whole.tenants.len()), (0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_changes_nothing_and_its_return_is_seen() {
    let mut host = Host::start(&["ada"]).await;
    let before = host.settled().await;
    fs::remove_file(host.file()).unwrap();
    let gone = host.until("the loss is said", |status| stale_for(status, "there is no such file")).await;
    assert_eq!(pids(&gone), pids(&before));
    host.edit(|wanted| _ = wanted.add("bob"));
    host.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_that_is_swapped_is_a_new_file() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let release = |host: &Host, name: &str| {
        fs::create_dir(host.root().join(name)).unwrap();
        fs::write(host.root().join(name).join("tenants.toml"), host.wanted.text()).unwrap();
        let link = host.root().join("link");
        let _ = fs::remove_file(&link);
        symlink(host.root().join(name).join("tenants.toml"), &link).unwrap();
        fs::rename(link, host.file()).unwrap();
    };
    release(&host, "release-1");
    host.launch().await;
    host.wanted.add("bob");
    release(&host, "release-2");
    let status = host.settled().await;
    assert_eq!(status.tenants.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_changes_within_50_ms_end_in_the_second() {
    let mut host = Host::start(&["ada"]).await;
    host.edit(|wanted| _ = wanted.add("bob"));
    tokio::time::sleep(Duration::from_millis(30)).await; // the gap is what is tested
    host.edit(|wanted| {
        wanted.remove("bob");
        wanted.add("cleo");
    });
    let status = host.settled().await;
    host.assert_matches_proc(&status);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_edits_in_a_second_end_in_the_last_one() {
    let mut host = Host::start(&["ada"]).await;
    for round in 0..50 {
        host.edit(|wanted| {
            wanted.tenants.retain(|id, _| id == "ada");
            wanted.add(&format!("t{}", round % 7)).suspended = round % 3 == 0;
            wanted.tenant("ada").tier = if round % 2 == 0 { "free" } else { "paid" };
        });
        tokio::time::sleep(Duration::from_millis(20)).await; // so that fifty take a second
    }
    let status = host.settled().await;
    assert_eq!(tenant(&status, "t0").state, "ready");
    assert_eq!(tenant(&status, "ada").tier, "paid");
    host.assert_matches_proc(&status);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_bad_file_serves_what_was_good_last() {
    let mut host = Host::start(&["ada", "bob"]).await;
    host.end_agent(rustix::process::Signal::TERM);
    host.write("[[tenants]]\nid = \"ada\"\n\n[[tenants]]\nid = ");
    host.spawn_agent();
    let status = host.until("the last good copy is in force", |status| host.as_wanted(status)).await;
    assert!(stale_for(&status, "toml:5:6\n"), "{status:#?}");
    host.write(&host.wanted.text());
    host.until("the good file is in force", |status| status.agent.config_stale_seconds == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_tenants_are_accepted_and_more_than_there_are_ports_are_refused() {
    let host = Host::prepare(|wanted| _ = wanted.add("ada"));
    host.write(&many(5_000));
    let ran = host.cli(&["check"]);
    assert_eq!((ran.code, ran.out.contains("5000 tenants")), (0, true), "{ran:?}");
    host.write(&many(10_000));
    let ran = host.cli(&["check"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("10000 tenants") && ran.err.contains("9999"), "{}", ran.err);
}

/// A file with `count` tenants on the 9,999 ports that are there if nothing is said.
fn many(count: usize) -> String {
    (0..count).map(|i| format!("[[tenants]]\nid = \"t{i}\"\n")).collect()
}

fn stale_for(status: &sq_agent::admin::status::Status, why: &str) -> bool {
    status.agent.config_stale_seconds > 0 && status.agent.config_error.as_ref().is_some_and(|error| error.contains(why))
}

fn pids(status: &sq_agent::admin::status::Status) -> Vec<Option<u32>> {
    status.tenants.iter().map(|tenant| tenant.pid).collect()
}
