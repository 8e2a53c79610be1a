//! Many removals at once wait for a person; data is never deleted.

use sq_agent::admin::status::Status;

use crate::support::host::{Host, tenant};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("user{i:02}")).collect()
}

async fn host_of(count: usize) -> Host {
    let names = names(count);
    Host::start(&names.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn held(status: &Status) -> Option<&str> {
    status.held.as_ref().map(|held| held.hash.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_removals_of_twenty_are_held_while_all_else_is_applied_until_their_hash_is_confirmed() {
    let mut host = host_of(20).await;
    let before = host.settled().await;
    host.edit(|wanted| {
        names(10).iter().for_each(|id| wanted.remove(id));
        wanted.add("new");
        wanted.tenant("user15").tier = "paid";
        wanted.tenant("user16").suspended = true;
    });
    let status = host
        .until("the rest is applied and the removals are held", |status| {
            let state = |id: &str| status.tenants.iter().find(|t| t.id == id).map(|t| (t.state.as_str(), t.tier.as_str()));
            held(status).is_some()
                && state("new") == Some(("ready", "free"))
                && state("user15") == Some(("ready", "paid"))
                && state("user16") == Some(("suspended", "free"))
        })
        .await;
    let hash = held(&status).unwrap();
    for id in names(10) {
        assert_eq!(tenant(&status, &id).pid, tenant(&before, &id).pid, "{id} goes on");
        assert!(tenant(&status, &id).detail.contains("held"), "{id}");
    }
    let plan = host.cli(&["plan"]);
    assert_eq!((plan.code, plan.out.contains(&format!("sq-agent confirm {hash}"))), (2, true), "{plan:?}");

    let wrong = host.cli(&["confirm", "000000000000"]);
    assert_eq!((wrong.code, wrong.err.contains(hash)), (1, true), "{wrong:?}");
    assert_eq!(host.instances().len(), 20, "19 of before without user16, and the new one");

    let right = host.cli(&["confirm", hash]);
    assert_eq!((right.code, right.out.contains("10 removals")), (0, true), "{right:?}");
    let after = host.settled().await;
    host.assert_matches_proc(&after);
    assert_eq!(held(&after), None);
    for id in names(20) {
        assert!(host.data_dir(&id).is_dir(), "the data of {id} is still there");
    }
    assert_eq!(host.cli(&["confirm", hash]).code, 1, "a hash that was used holds no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_file_is_held_and_another_edit_voids_its_hash() {
    let mut host = host_of(7).await;
    let before = host.settled().await;
    host.edit(|wanted| wanted.tenants.clear());
    let status = host.until("the removals are held", |status| held(status).is_some()).await;
    let hash = held(&status).unwrap().to_owned();
    assert_eq!(status.tenants.iter().map(|t| t.pid).collect::<Vec<_>>(), before.tenants.iter().map(|t| t.pid).collect::<Vec<_>>());

    host.edit(|wanted| _ = wanted.add("user06"));
    let status = host.until("the new plan has a hash of its own", |status| held(status).is_some_and(|new| new != hash)).await;
    assert_eq!(host.cli(&["confirm", &hash]).code, 1);
    assert_eq!(host.instances().len(), 7);

    host.edit(|wanted| wanted.tenants.clear());
    host.until("the file is empty again", |status| held(status) == Some(hash.as_str())).await;
    assert_eq!(host.cli(&["confirm", &hash]).code, 0);
    let after = host.settled().await;
    host.assert_matches_proc(&after);
    assert_eq!((held(&status).is_some(), after.tenants.len()), (true, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_removals_at_once_go_through() {
    let mut host = host_of(6).await;
    host.edit(|wanted| names(5).iter().for_each(|id| wanted.remove(id)));
    let status = host.settled().await;
    host.assert_matches_proc(&status);
}
