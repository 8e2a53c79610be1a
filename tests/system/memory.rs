//! On a host whose kernel does not hold an instance to its memory_max, the agent does: by a drained restart.

use std::{collections::BTreeMap, time::Duration};

use sq_agent::admin::status::Status;

use crate::support::{
    host::{Host, tenant},
    work::Work,
};

const WRITE: &str = "/api/v2/update?p=big&c=1.1.1/1.1.1/1.1.1";
const READ: &str = "/api/v2/select?p=big&c=1.1.1/1.1.1/1.1.1";
/// A survey every 20 s measures a part of the instances anew, each after a few; and a busy machine.
const ENFORCED_WITHIN: Duration = Duration::from_secs(150);

/// A host, unless its kernel does the work, and a note of it then.
async fn polled_host(edit: impl FnOnce(&mut crate::support::wanted::Wanted)) -> Option<(Host, Status)> {
    let mut host = Host::prepare(edit);
    let status = host.launch().await;
    if status.agent.memory_enforced == "kernel" {
        eprintln!("skipped: the kernel enforces memory_max here, so the agent has nothing to do");
        return None;
    }
    Some((host, status))
}

fn pids(status: &Status) -> BTreeMap<&str, Option<u32>> {
    status.tenants.iter().map(|tenant| (tenant.id.as_str(), tenant.pid)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_uses_more_memory_than_its_limit_is_restarted_with_its_data_and_told_why_and_no_other_is_touched() {
    let start = polled_host(|wanted| {
        // A guard would refuse what it takes here.
        wanted.add("ada").more = "memory_max = \"4M\"\nbody_max = \"16M\"\ndurability = \"off\"\n";
        wanted.add("bob");
    });
    let Some((host, before)) = start.await else { return };
    let (ada, text) = (host.user("ada"), vec![b'a'; 4 << 20]);
    assert_eq!(ada.post(WRITE, &text).await.status, 200);
    // An idle sq keeps the phext that it was last asked for, 4.9 MB of it for a text of 4 MB; another one would take its place.
    let work = Work::of(&host, &["bob"]);
    let status = host
        .within(ENFORCED_WITHIN, "ada is restarted for its memory", |status| {
            let ada = tenant(status, "ada");
            ada.epoch > tenant(&before, "ada").epoch && host.as_wanted(status)
        })
        .await;
    let said = tenant(&status, "ada").last_exit.clone().unwrap();
    assert!(said.contains("used more memory than its limit") && said.contains("raise memory_max"), "{said}");
    assert_eq!(pids(&status)["bob"], pids(&before)["bob"], "bob was not touched");
    assert_eq!(tenant(&status, "bob").restarts, 0);
    work.goes_on().await;
    eprintln!("{} requests during it, none failed", work.end().await);
    assert!(ada.get(READ).await.body == text, "the text is as it was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_limits_restart_nobody() {
    let start = polled_host(|wanted| {
        wanted.add("ada").more = "memory_max = \"20M\"\ncpu_quota = \"10%\"\n";
        wanted.add("bob");
    });
    let Some((mut host, before)) = start.await else { return };
    for more in [
        "memory_max = \"40M\"\ncpu_quota = \"10%\"\n",
        "memory_max = \"40M\"\ncpu_quota = \"50%\"\n",
        "memory_max = \"16M\"\ncpu_quota = \"5%\"\n",
        "",
    ] {
        host.edit(|wanted| wanted.tenant("ada").more = more);
        let status = host.settled().await;
        assert_eq!(pids(&status), pids(&before), "{more:?}");
        assert_eq!(status.tenants.iter().map(|tenant| tenant.restarts).sum::<u64>(), 0, "{more:?}");
    }
}
