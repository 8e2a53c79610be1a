//! No token, key or secret stands where somebody might read it: in no log, answer, status, record or command line, whatever was asked and however badly.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use http::{Method, Request};
use sq_agent::instance_key;

use crate::support::{
    client::{Http, Upload},
    host::{Host, Ran},
    processes, tokens,
};

/// Everything below `dir` that is a file, with its content.
pub(crate) fn files(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            // A file that went away while it was looked at holds nothing any more.
            found.extend(fs::read(&path).ok().map(|bytes| (path, bytes)));
        }
    }
}

pub(crate) fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_stands_in_a_log_an_answer_a_record_or_a_command_line() {
    let mut host = Host::prepare(|wanted| ["ada", "bob"].iter().for_each(|id| _ = wanted.add(id)));
    // As below systemd: what is printed lands in the journal. (Somebody at a terminal is shown a token to try the demonstration with.)
    host.environment = vec![("JOURNAL_STREAM", "8:1".into())];
    host.launch().await;
    let made = |ran: Ran| -> serde_json::Value { serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}")) };
    let key = made(host.cli(&["token", "--api-key", "--sub", "ada", "--json"]));
    let (api_key, line) = (key["api_key"].as_str().unwrap().to_owned(), key["line"].as_str().unwrap().to_owned());
    host.edit(|wanted| wanted.tenant("ada").more = Box::leak(format!("{line}\n").into_boxed_str()));
    host.settled().await;
    let minted = made(host.cli(&["token", "--sub", "ada", "--json"]))["token"].as_str().unwrap().to_owned();
    let secret = tokens::secret(&host.state_dir());
    let signed = |claims: serde_json::Value| tokens::sign(&secret, &claims);
    let expired = signed(serde_json::json!({ "sub": "ada", "exp": 1_000_000_000 }));
    let nobody = signed(tokens::claims("nobody"));
    let evil = tokens::sign(b"not the secret of this host, at all", &tokens::claims("bob"));
    let unknown_key = "pmb-v1-0123456789abcdef0123456789abcdef".to_owned();
    // Who mixes up user name and secret, or puts a credential where it does not belong, must not find it in a log either.
    let misplaced = "pmb-v1-fedcba9876543210fedcba9876543210".to_owned();

    let mut answers = Vec::new();
    for (header, value, wanted) in [
        ("authorization", format!("Bearer {minted}"), 200),
        ("authorization", format!("Bearer {api_key}"), 200),
        ("authorization", api_key.clone(), 200),
        ("x-sq-api-key", api_key.clone(), 200),
        ("authorization", format!("Bearer {expired}"), 401),
        ("authorization", format!("Bearer {nobody}"), 403),
        ("authorization", format!("Bearer {evil}"), 401),
        ("authorization", format!("Basic {evil}"), 401),
        ("authorization", evil.clone(), 401),
        ("x-sq-api-key", unknown_key.clone(), 401),
        ("x-sq-api-key", evil.clone(), 401),
    ] {
        for http in [Http::One, Http::Two] {
            for target in ["/api/v2/toc?p=x".to_owned(), format!("/api/v2/select?p=x&c=1.1.1/1.1.1/1.1.1&access_token={misplaced}")] {
                let request = Request::builder().method(Method::GET).uri(&target).header(header, &value);
                let request = request.header("x-request-id", "a1").header("cookie", format!("session={misplaced}"));
                let answer = host.client().send(http, request.body(Upload::default()).unwrap()).await.unwrap();
                assert_eq!(answer.status, wanted, "{header}: {value}: {answer:?}");
                answers.push(format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body)).into_bytes());
            }
        }
    }
    host.until("the last line is written", |_| {
        fs::read_to_string(host.state_dir().join("access.log")).is_ok_and(|log| log.lines().count() >= 44)
    })
    .await;

    let secret_text = String::from_utf8(secret).unwrap();
    let instance_secret = fs::read(host.state_dir().join("instance.key")).unwrap();
    let status = host.status().unwrap();
    let keys = status.tenants.iter().map(|tenant| {
        let id = sq_agent::desired::TenantId::parse(&tenant.id).unwrap();
        instance_key::derive(&sq_agent::secret::Secret::new(instance_secret.clone()), &id, tenant.epoch)
    });
    let mut secrets = vec![minted, api_key, expired, nobody, evil, unknown_key, misplaced, secret_text];
    secrets.extend(keys);
    // A signature is enough to give away a token whose rest is known.
    let signatures: Vec<String> = secrets.iter().filter_map(|secret| Some(secret.rsplit_once('.')?.1.to_owned())).collect();
    secrets.extend(signatures);
    // The beginning of every token: a JSON object in base64.
    secrets.push("eyJ".to_owned());

    let mut places: Vec<(String, Vec<u8>)> = answers.into_iter().map(|bytes| ("an answer".to_owned(), bytes)).collect();
    let mut found = Vec::new();
    files(host.root(), &mut found);
    let home = [host.state_dir().join("jwt.key"), host.state_dir().join("instance.key")];
    assert!(
        ["agent.log", "proxy.log", "access.log", "sq.log", "instances.db"]
            .iter()
            .all(|name| found.iter().any(|(path, bytes)| path.ends_with(name) && !bytes.is_empty()))
    );
    places.extend(found.into_iter().filter(|(path, _)| !home.contains(path)).map(|(path, bytes)| (path.display().to_string(), bytes)));
    for args in [&["status"][..], &["status", "--json"], &["doctor"], &["plan"], &["check"], &["schema"]] {
        let Ran { out, err, .. } = host.cli(args);
        places.push((format!("{args:?}"), [out, err].concat().into_bytes()));
    }
    let (sq, proxies): (Vec<u32>, _) = (host.instances().iter().map(|sq| sq.pid).collect(), host.proxies());
    let child = |pid: u32| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.contains(&format!("\nPPid:\t{}\n", host.agent_pid())))
    };
    let children = processes::all().into_iter().map(|seen| seen.pid).filter(|&pid| child(pid));
    let ours: BTreeSet<u32> = processes::naming(host.root()).iter().map(|seen| seen.pid).chain(proxies).chain(children).collect();
    let mut words = Vec::new();
    for seen in processes::all().into_iter().filter(|seen| ours.contains(&seen.pid) && !sq.contains(&seen.pid)) {
        words.extend(seen.args.get(1).cloned());
        places.push((format!("the command line of {}", seen.pid), seen.args.join(" ").into_bytes()));
        // Of another user's process it cannot be read, neither here nor by anybody else.
        places
            .extend(fs::read(format!("/proc/{}/environ", seen.pid)).ok().map(|bytes| (format!("the environment of {}", seen.pid), bytes)));
    }
    for word in ["run", "proxy", "guard", "launcher"] {
        assert!(words.iter().any(|seen| seen == word), "no {word} among {words:?}");
    }
    for (place, bytes) in &places {
        for secret in &secrets {
            assert!(!holds(bytes, secret), "{secret} stands in {place}:\n{}", String::from_utf8_lossy(bytes));
        }
    }
}
