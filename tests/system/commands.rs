//! What the commands print and how they exit, for people and for scripts.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;

use crate::support::{
    host::{Host, Ran, SQ_AGENT, User, ran},
    wanted::Wanted,
};

/// The fields that scripts rely on; more may stand beside them.
const AGENT_FIELDS: [&str; 6] = ["pid", "version", "uptime_seconds", "desired_hash", "generation", "config_stale_seconds"];
const TENANT_FIELDS: [&str; 12] =
    ["id", "tier", "state", "port", "pid", "epoch", "restarts", "last_exit", "started_at", "memory_bytes", "requests", "detail"];

#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_every_field_that_scripts_rely_on() {
    let host = Host::start(&["ada", "bob"]).await;
    let ada = host.user("ada");
    for _ in 0..3 {
        assert_eq!(ada.get("/api/v2/toc?p=x").await.status, 200);
    }
    let ran = host.cli(&["status", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let status: Value = serde_json::from_str(&ran.out).unwrap();
    let missing = |of: &Value, fields: &[&str]| fields.iter().filter(|field| of.get(field).is_none()).count();
    assert_eq!(missing(&status["agent"], &AGENT_FIELDS), 0, "{status:#}");
    for tenant in status["tenants"].as_array().unwrap() {
        assert_eq!(missing(tenant, &TENANT_FIELDS), 0, "{tenant:#}");
    }
    assert_eq!(status["agent"]["pid"], host.agent_pid());
    let ada = &status["tenants"][0];
    assert_eq!((&ada["id"], &ada["state"], &ada["requests"], &ada["restarts"]), (&"ada".into(), &"ready".into(), &3.into(), &0.into()));
    assert!(ada["started_at"].as_str().unwrap().ends_with('Z'), "{ada:#}");

    let table = host.cli(&["status"]);
    assert!(table.out.lines().any(|line| line.starts_with("ada\tfree\tready\t")), "{table:?}");
    assert!(!table.out.contains('\u{1b}'), "no colour where nobody looks: {table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_opens_its_tenant_until_it_expires() {
    let host = Host::start(&["ada"]).await;
    let minted = host.cli(&["token", "--sub", "ada", "--ttl", "15m"]);
    assert_eq!((minted.code, minted.err.as_str()), (0, ""), "{minted:?}");
    let user = User { client: host.client(), token: minted.out.trim().to_owned() };
    assert_eq!(user.get("/api/v2/version?p=x").await.text(), "0.6.0");
    let stranger = host.cli(&["token", "--sub", "eve"]);
    assert!(stranger.err.contains("no tenant eve"), "{stranger:?}");
    assert_ne!(host.cli(&["token", "--sub", "../eve"]).code, 0);
}

#[test]
fn a_plan_of_two_files_says_what_would_change_by_its_exit_code() {
    let host = Host::prepare(|wanted| ["ada", "bob", "cleo"].iter().for_each(|id| _ = wanted.add(id)));
    let other = host.root().join("other.toml");
    let plan_after = |edit: &dyn Fn(&mut Wanted)| -> Ran {
        let mut wanted = host.wanted.clone();
        edit(&mut wanted);
        fs::write(&other, wanted.text()).unwrap();
        host.cli(&["plan", other.to_str().unwrap(), "--against", host.file().to_str().unwrap()])
    };
    let same = plan_after(&|_| ());
    assert_eq!((same.code, same.out.as_str()), (0, "nothing would change\n"), "{same:?}");
    let changed = plan_after(&|wanted| {
        wanted.add("dan");
        wanted.remove("bob");
        wanted.tenant("ada").tier = "metered";
        wanted.tenant("cleo").suspended = true;
    });
    assert_eq!(changed.code, 2, "{changed:?}");
    let marks: BTreeSet<_> = changed.out.lines().filter_map(|line| line.split(':').next()).collect();
    assert!(["+ dan", "- bob", "~ ada", "- cleo"].iter().all(|mark| marks.contains(mark)), "{changed:?}");
    assert!(changed.out.contains("rate: none -> 100/m"), "values as the file writes them: {changed:?}");
    fs::write(&other, "[[tenants]]\nid = ").unwrap();
    let bad = host.cli(&["plan", other.to_str().unwrap(), "--against", host.file().to_str().unwrap()]);
    assert_eq!((bad.code, bad.err.contains("other.toml:2:6")), (1, true), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_against_the_host_is_empty_once_it_is_carried_out() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let before = host.cli(&["plan"]);
    assert_eq!((before.code, before.out.contains("+ ada")), (2, true), "{before:?}");
    host.launch().await;
    let after = host.cli(&["plan"]);
    assert_eq!((after.code, after.out.as_str()), (0, "nothing would change\n"), "{after:?}");
}

#[test]
fn check_shows_every_problem_at_once_and_passes_a_good_file() {
    let host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let good = host.cli(&["check"]);
    assert_eq!((good.code, good.out.contains("1 tenant")), (0, true), "{good:?}");
    host.write("[[tenants]]\nid = \"../x\"\nteir = \"free\"\n\n[tiers.free]\nrate = \"0/m\"\n");
    let bad = host.cli(&["check"]);
    assert_eq!((bad.code, bad.err.contains("3 problems")), (1, true), "{bad:?}");
    for what in [":2:6", ":3:1", ":6:8", "did you mean `tier`?"] {
        assert!(bad.err.contains(what), "{what} in {bad:?}");
    }
}

#[test]
fn the_schema_is_json_schema_that_knows_every_table() {
    let ran = ran(Command::new(SQ_AGENT).arg("schema"));
    let schema: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, 0);
    assert!(schema["$schema"].as_str().unwrap().contains("json-schema.org"));
    for table in ["agent", "sq", "proxy", "tiers", "tenants", "admin", "alerts"] {
        assert!(schema["properties"].get(table).is_some(), "{table}");
    }
}

#[test]
fn a_command_without_an_agent_says_how_to_start_one() {
    let host = Host::prepare(|wanted| _ = wanted.add("ada"));
    for args in [&["status"][..], &["confirm", "abc"], &["restart", "ada"]] {
        let ran = host.cli(args);
        assert_eq!((ran.code, ran.err.contains("start one with `sq-agent run`")), (1, true), "{ran:?}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["run", "check", "plan", "confirm", "status", "restart", "snapshot", "snapshots", "restore", "token", "schema", "alert"]
    {
        let ran = ran(Command::new(SQ_AGENT).args([command, "--help"]));
        assert_eq!((ran.code, ran.out.contains("Example")), (0, true), "{command}: {ran:?}");
    }
}
