//! A disk that is nearly full: nobody writes more, everybody reads, deletes and writes less, and all is as before once there is room.

use std::time::Duration;

use sq_agent::{admin::status::Status, store::Store};

use crate::{
    disk::{Disk, may_mount},
    texts::{APPEND, Ada, ID, READ, WRITE, assert_problem},
};

const MB: u64 = 1 << 20;
/// A look every 5 s, on a busy machine.
const LOOKS: Duration = Duration::from_secs(30);

fn free(status: &Status) -> u64 {
    status.disk.unwrap().free
}

fn refused(status: &Status) -> bool {
    status.disk.is_some_and(|disk| disk.writes_refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nearly_full_takes_only_what_makes_less_from_anybody_until_there_is_room_again() {
    if !may_mount() {
        return;
    }
    let mut host = Ada::prepare("");
    host.edit(|wanted| {
        wanted.disk_reserve = "16M";
        wanted.add("bob");
    });
    let disk = Disk::small(&host, 64);
    let ada = Ada::launch(host).await;
    let (users, bob) = (ada.host.state_dir().join("users"), ada.host.user("bob"));
    ada.stores("a longer text").await;
    assert_eq!(bob.post(WRITE, b"bob's").await.status, 200);
    let status = ada.host.within(LOOKS, "the disk is known", |status| status.disk.is_some()).await;
    assert_eq!((status.disk.unwrap().total, refused(&status)), (64 * MB, false));

    let full = Disk::leave(&users, 15 * MB);
    let status = ada.host.within(LOOKS, "writes are refused", refused).await;
    assert!(free(&status) < 16 * MB && ada.host.cli(&["status"]).code == 2, "{status:#?}");
    assert!(ada.host.cli(&["doctor"]).out.contains("only what makes less is written"), "{:?}", ada.host.cli(&["doctor"]));
    for user in [&ada.user, &bob] {
        assert_problem(&user.post(APPEND, b"more").await, 507, "disk-low");
        assert_problem(&user.post(WRITE, &[b'x'; 1_000]).await, 507, "disk-low");
        assert_eq!(user.get(READ).await.status, 200);
    }
    ada.stores("less").await;
    assert_eq!(bob.get("/api/v2/delete?p=diary&c=1.1.1/1.1.1/1.1.1").await.status, 200);
    drop(full);

    // Between the two marks, and a look has been since.
    let full = Disk::leave(&users, 17 * MB);
    let status = ada.host.within(LOOKS, "a look has been", |status| free(status) > 16 * MB && free(status) < 18 * MB).await;
    assert!(refused(&status), "not to and fro: {status:#?}");
    assert_problem(&ada.user.post(APPEND, b"more").await, 507, "disk-low");
    drop(full);
    ada.host.within(LOOKS, "writes are taken again", |status| !refused(status)).await;
    let more = ada.user.post(APPEND, b" and more").await;
    assert_eq!(more.status, 200, "{more:?}");
    ada.holds_after_a_kill("less and more").await;
    let events = Store::open(&ada.host.state_dir()).unwrap().store.events(100).unwrap();
    let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!((count("disk_low"), count("disk_has_room")), (1, 1), "{ID}: {events:#?}");
    drop(disk);
}
