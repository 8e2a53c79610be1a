//! What sq would lose without a word is refused.

use std::fs;

use crate::texts::{Ada, WRITE, assert_problem};

fn files(ada: &Ada) -> Vec<String> {
    let names = fs::read_dir(ada.host.data_dir("ada")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_file_can_have_is_refused_and_nothing_is_stored() {
    let ada = Ada::launch(Ada::prepare("")).await;
    ada.stores("before").await;
    let long = "n".repeat(250);
    for name in [long.as_str(), "..", "..%2F..%2Fx", "a%2Fb", "a/b", "a%00", "a%0Ab", "a%7F", "a%5Cb", "%FF"] {
        for call in ["update", "insert", "delete"] {
            let answer = ada.user.post(&format!("/api/v2/{call}?p={name}&c=1.1.1/1.1.1/1.1.1"), b"never").await;
            assert_problem(&answer, 400, "bad-phext-name");
            let answer = ada.user.get(&format!("/api/v2/{call}?p={name}&c=1.1.1/1.1.1/1.1.1&s=never")).await;
            assert_problem(&answer, 400, "bad-phext-name");
        }
    }
    assert_eq!(files(&ada), ["diary.phext"]);
    let longest = &long[..249];
    assert_eq!(ada.user.post(&format!("/api/v2/update?p={longest}&c=1.1.1/1.1.1/1.1.1"), b"kept").await.status, 200);
    assert_eq!(ada.user.get(&format!("/api/v2/select?p={longest}&c=1.1.1/1.1.1/1.1.1")).await.text(), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_for_which_the_tenant_has_not_the_memory_is_refused() {
    let ada = Ada::launch(Ada::prepare("memory_max = \"16M\"\nbody_max = \"16M\"\n")).await;
    ada.stores("before").await;
    let sq = ada.sq();
    assert_problem(&ada.user.post(WRITE, &vec![b'x'; 4 << 20]).await, 413, "too-much-memory");
    ada.holds("before").await;
    assert_eq!(ada.sq(), sq, "it was not killed for it");
    ada.stores(&"x".repeat(1 << 20)).await;
    // What does not fit at once does not fit bit by bit.
    let mut stored = 1;
    loop {
        let answer = ada.user.post(&WRITE.replace("c=1", &format!("c={}", stored + 1)), &vec![b'x'; 1 << 20]).await;
        if answer.status != 200 {
            break assert_problem(&answer, 413, "too-much-memory");
        }
        stored += 1;
        assert!(stored < 16);
    }
    assert_eq!(ada.sq(), sq);
    ada.holds_after_a_kill(&"x".repeat(1 << 20)).await;
}
