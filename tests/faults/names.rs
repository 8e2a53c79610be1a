//! Which file a request writes, as real sq has it.

use std::{collections::BTreeSet, fs};

use sq_agent::guard::{Call, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Running, launch};

const QUERIES: [&str; 40] = [
    "p=a",
    "p=a&p=b",
    "p=b&p=a&p",
    "p=a&p=",
    "p=&p=a",
    "p=a+b",
    "p=a%2Bb",
    "p=a%20b",
    "%70=x",
    "%50=x",
    "P=x",
    "p",
    "p=",
    "",
    "&",
    "&&p=a",
    "p=a%26b",
    "p=a%3Db",
    "p=a=b",
    "p==a",
    "p=é",
    "p=%C3%A9",
    "p=%E2%82",
    "p=%FFx",
    "p=%",
    "p=%4",
    "p=%zz",
    "p=%2",
    "p=a?p=b",
    "?p=a",
    "x?p=a",
    "p=a#b",
    "p=a;p=b",
    "p%3Da",
    "+p=a",
    "p+=a",
    "p=+a+",
    "p=a%09b",
    "p=.hidden",
    "p=a.phext",
];

/// Sends bytes as they are, and returns the status.
async fn send(sq: &Running, line: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", sq.port)).await.unwrap();
    let head = format!("{line}\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n", sq.key);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok())
}

fn files(sq: &Running) -> BTreeSet<String> {
    fs::read_dir(sq.user_dir.join("phext-data")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn clear(sq: &Running) {
    for file in files(sq) {
        fs::remove_file(sq.user_dir.join("phext-data").join(file)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_knows_which_file_sq_writes() {
    let dir = launch::state_dir();
    let sq = Running::start(dir.path(), "ada", "key").await;
    let mut compared = 0;
    for (method, path) in [
        ("POST", "/api/v2/update"),
        ("POST", "/api/v2/insertion"),
        ("GET", "/api/v2/insert"),
        ("GET", "/api/v2/update"),
        ("GET", "/api/v2/delete"),
        ("GET", "/api/v2/deleted/it"),
        ("GET", "/api/v2/json-export"),
    ] {
        for query in QUERIES {
            clear(&sq);
            let target = Target::of(path, Some(query)).expect("it writes");
            let status = send(&sq, &format!("{method} {path}?{query} HTTP/1.1")).await;
            let Ok(target) = target else {
                // Refused by the guard: whatever sq would do.
                continue;
            };
            assert_eq!(status, Some(200), "{method} {path}?{query}");
            let mut expected = BTreeSet::from([target.phext.clone()]);
            if target.call == Call::Export {
                expected.insert(target.file().into_owned());
            }
            assert_eq!(files(&sq), expected, "{method} {path}?{query}");
            compared += 1;
        }
        clear(&sq);
        let target = Target::of(path, None).unwrap().unwrap();
        assert_eq!(send(&sq, &format!("{method} {path} HTTP/1.1")).await, Some(200));
        assert!(files(&sq).contains(target.file().as_ref()), "{method} {path}");
    }
    assert!(compared > 200, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guard_takes_for_reading_changes_no_phext() {
    let dir = launch::state_dir();
    let sq = Running::start(dir.path(), "ada", "key").await;
    assert_eq!(send(&sq, "POST /api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1&s=text HTTP/1.1").await, Some(200));
    let file = sq.user_dir.join("phext-data/a.phext");
    let before = fs::read(&file).unwrap();
    for path in [
        "select", "toc", "get", "status", "checksum", "version", "query", "delta", "where", "load", "push", "slurp", "save", "shutdown",
        "Update",
    ] {
        assert!(Target::of(&format!("/api/v2/{path}"), Some("p=a")).is_none());
        for method in ["GET", "POST"] {
            send(&sq, &format!("{method} /api/v2/{path}?p=a&c=1.1.1/1.1.1/1.1.1&s=other HTTP/1.1")).await;
            assert_eq!(fs::read(&file).unwrap(), before, "{method} {path}");
        }
    }
}
