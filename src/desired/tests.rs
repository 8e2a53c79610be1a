//! What a tenants.toml means, and how a bad one is answered.

use std::{fmt::Write, fs, path::PathBuf, time::Instant};

use proptest::prelude::*;

use super::*;

const FILE: &str = "/etc/sq-agent/tenants.toml";

pub(super) fn good(text: &str) -> Desired {
    parse(text, Path::new(FILE)).unwrap_or_else(|rejected| panic!("{rejected}"))
}

fn problems(text: &str) -> Vec<Problem> {
    parse(text, Path::new(FILE)).expect_err(text).problems
}

/// The one problem of `text`: its line and column, the offending text, and all else that is said.
fn problem(text: &str) -> (usize, usize, String, String) {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{text}\n{found:#?}");
    let place = found[0].place.as_ref().expect("a place");
    (place.line, place.column, found[0].offending.clone(), format!("{}; {}", found[0].message, found[0].help))
}

/// `text` is refused for `offending` with an answer that holds each of `says`.
fn refused(text: &str, offending: &str, says: &[&str]) {
    let (_, _, found, said) = problem(text);
    assert_eq!(found, offending, "{text}\n{said}");
    for part in says {
        assert!(said.contains(part), "{text}\n{said:?} does not say {part:?}");
    }
}

#[test]
fn an_empty_file_means_the_defaults_and_nobody() {
    let desired = good("");
    assert_eq!(desired.state_dir, Path::new("/etc/sq-agent/state"));
    assert_eq!(desired.ports, PortRange { first: 10_001, last: 19_999 });
    assert_eq!(desired.sq, SqSource::Version("0.6.0".into()));
    assert_eq!(desired.proxy.listen, ["127.0.0.1:8443".parse().unwrap()]);
    assert_eq!((desired.alerts.memory.warning, desired.alerts.memory.critical), (80, 90));
    assert_eq!((desired.tenants.len(), desired.admin.is_none(), desired.name.len()), (0, true, 12));
    let free = &desired.tiers["free"];
    assert_eq!((free.memory_max, free.cpu_quota, free.burst), (Some(20 << 20), Some(10), 20));
    assert_eq!(free.rate, Some(Rate { count: 100, per_seconds: 60 }));
    assert_eq!((free.concurrency, free.queue, free.body_max), (8, 100, 2 << 20));
    // `printf '' | sha256sum`
    assert_eq!(desired.hash, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

#[test]
fn a_port_is_one_of_the_instances_and_one_tenants() {
    let two = |ports: [u16; 2]| format!("[[tenants]]\nid = \"a\"\nport = {}\n[[tenants]]\nid = \"b\"\nport = {}\n", ports[0], ports[1]);
    assert_eq!(good(&two([10_001, 10_002])).meant_ports().map(|(port, _)| port).collect::<Vec<_>>(), [10_001, 10_002]);
    refused(&two([10_001, 10_001]), "10001", &["a second tenant with port 10001"]);
    refused(&two([10_001, 8_443]), "8443", &["none of the instances', 10001-19999", "widen `ports`"]);
}

#[test]
fn what_is_written_is_what_is_meant() {
    let desired = good(include_str!("../../examples/tiers.toml"));
    let tenant = |id: &str| &desired.tenants[&TenantId::parse(id).unwrap()];
    assert_eq!((tenant("ada@example.com").tier.as_str(), &tenant("ada@example.com").limits), ("free", &desired.tiers["free"]));
    let bob = &tenant("bob@example.com").limits;
    assert_eq!(bob, &Limits { rate: Some(Rate { count: 50, per_seconds: 1 }), ..desired.tiers["pro"].clone() });
    assert_eq!(tenant("nightly-import").api_keys[0][..2], [0x9f, 0x86]);
    // `date -ud 2026-02-09T22:32:00Z +%s`
    assert_eq!(tenant("carol@example.com").tokens_valid_after, 1_770_676_320);
}

#[test]
fn a_moment_counts_in_utc_and_rounds_up() {
    let after = |moment: &str| {
        good(&format!("[[tenants]]\nid = 'a'\ntokens_valid_after = {moment}\n")).tenants.into_values().next().unwrap().tokens_valid_after
    };
    assert_eq!(after("2026-02-09T22:32:00Z"), 1_770_676_320);
    assert_eq!(after("2026-02-10T00:32:00+02:00"), 1_770_676_320);
    assert_eq!(after("2026-02-09T22:31:59.001Z"), 1_770_676_320);
    assert_eq!(after("2026-02-09 22:32Z"), 1_770_676_320);
    for (bad, says) in [
        ("2026-02-09", "offset"),
        ("2026-02-09T22:32:00", "offset"),
        ("22:32:00", "offset"),
        ("1960-01-01T00:00:00Z", "1970"),
        ("'2026-02-09T22:32:00Z'", "without quotes"),
        ("1770676320", "date"),
    ] {
        refused(
            &format!("[[tenants]]\nid = 'a'\ntokens_valid_after = {bad}\n"),
            bad,
            &[says, "write `tokens_valid_after = 2026-02-09T22:32:00Z`"],
        );
    }
}

#[test]
fn a_limit_can_be_lifted_for_one_tenant() {
    let desired = good("[[tenants]]\nid = 'a'\nmemory_max = 'none'\ncpu_quota = 'none'\nrate = 'none'\n");
    let limits = &desired.tenants.values().next().unwrap().limits;
    assert_eq!((limits.memory_max, limits.cpu_quota, limits.rate, limits.burst), (None, None, None, 20));
}

#[test]
fn the_name_follows_the_state_directory_and_nothing_else() {
    let name = |text: &str| good(text).name;
    assert_eq!(name(""), name("[[tenants]]\nid = 'a'"));
    assert_eq!(name(""), name("[agent]\nstate_dir = './state/'"));
    assert_ne!(name(""), name("[agent]\nstate_dir = 'other'"));
    assert_eq!(name("[agent]\nname = 'host-1'"), "host-1");
}

#[test]
fn a_bad_id_says_what_an_id_is() {
    let long = "x".repeat(129);
    for (id, says) in [
        ("../x", "start with a dot"),
        (".x", "start with a dot"),
        ("", "at least one character"),
        (long.as_str(), "at most 128 bytes, this one has 129"),
        ("a\\u0000b", "not '\\0'"),
        ("a/b", "not '/'"),
        ("a b", "not ' '"),
        ("é", "not 'é'"),
    ] {
        refused(&format!("[[tenants]]\nid = \"{id}\"\n"), &format!("\"{id}\""), &[says]);
    }
}

#[test]
fn a_second_tenant_of_one_id_is_shown_with_the_first() {
    let text = "[[tenants]]\nid = 'a'\n[[tenants]]\nid = 'A'\n[[tenants]]\nid = 'a'\n";
    let found = problems(text);
    let first = found[0].related.as_ref().expect("the first");
    assert_eq!((found.len(), found[0].place.as_ref().unwrap().line, first.place.line, first.label.as_str()), (1, 6, 2, "the first one"));
    let shown = parse(text, Path::new(FILE)).unwrap_err().to_string();
    assert!(shown.contains("tenants.toml:6:6") && shown.contains("the first one"), "{shown}");
}

#[test]
fn an_unknown_key_or_tier_is_answered_with_the_nearest() {
    refused("[agent]\nstatedir = 'x'\n", "statedir", &["unknown key `statedir` in [agent]", "did you mean `state_dir`?"]);
    refused("[[tenant]]\nid = 'x'\n", "tenant", &["did you mean `tenants`?"]);
    refused("[proxy]\nrate = '1/s'\n", "rate", &["belongs under [tiers.NAME]"]);
    refused("[sandbox]\nnamespaces = true\n", "sandbox", &["unknown key `sandbox`", "known here: agent, sq, proxy"]);
    refused("[[tenants]]\nid = 'a'\ntier = 'fre'\n", "'fre'", &["no tier \"fre\"", "did you mean `tier = \"free\"`?"]);
    refused("[tiers.pro]\n[[tenants]]\nid = 'a'\ntier = 'enterprise'\n", "'enterprise'", &["tiers of this file: pro"]);
    refused("[tiers.pro]\n[[tenants]]\nid = 'a'\n", "'a'", &["names no tier"]);
}

#[test]
fn a_wrong_type_is_answered_with_the_form() {
    for (line, offending, says) in [
        ("rate = 100", "100", "write `rate = \"100/m\"`"),
        ("burst = '20'", "'20'", "must be a whole number, not a string; write `burst = 20`"),
        ("memory_max = 20", "20", "write `memory_max = \"20M\"`"),
        ("cpu_quota = 0.1", "0.1", "must be a string, not a float"),
        ("suspended = 'yes'", "'yes'", "must be true or false, not a string"),
        ("api_keys = 'x'", "'x'", "must be a list, not a string"),
        ("queue = [1]", "[1]", "not an array"),
    ] {
        refused(&format!("[[tenants]]\nid = 'a'\n{line}\n"), if line.starts_with("api") { "'x'" } else { offending }, &[says]);
    }
    refused("[tenants]\nid = 'a'\n", "[tenants]", &["must be a list of tables, not a table", "`[[tenants]]`"]);
    refused("tiers = 1\n", "1", &["must be a table", "`[tiers.NAME]`"]);
    refused("[tiers]\nfree = 'x'\n", "'x'", &["`[tiers.free]`"]);
    refused("[[proxy]]\n", "[[proxy]]", &["must be a table, not an array"]);
}

#[test]
fn a_limit_outside_its_range_names_the_range() {
    for (line, says) in [
        ("rate = '0/m'", "must be at least 1"),
        ("rate = '100/w'", "second, minute, hour or day"),
        ("rate = '+1/m'", "not \"+1/m\""),
        ("rate = '99999999999/s'", "at most 1000000"),
        ("memory_max = '20'", "K, M or G"),
        ("memory_max = '20MB'", "K, M or G"),
        ("memory_max = '99999999999G'", "must be a number"),
        ("memory_max = '1M'", "must be at least 4M"),
        ("body_max = '65M'", "must be at most 64M"),
        ("body_max = 'none'", "K, M or G"),
        ("cpu_quota = '0%'", "from 1% to 25600%"),
        ("cpu_quota = '10'", "whole percentage"),
        ("burst = -1", "must lie between 0 and 10000, this is -1"),
        ("concurrency = 0", "between 1 and 512"),
        ("queue = 65536", "must lie between 0 and 10000"),
    ] {
        let value = line.split_once("= ").unwrap().1;
        refused(&format!("[[tenants]]\nid = 'a'\n{line}\n"), value, &[says]);
    }
    assert_eq!(good("[[tenants]]\nid = 'a'\nburst = 0\nqueue = 0\nbody_max = '64M'").tenants.values().next().unwrap().limits.burst, 0);
}

#[test]
fn ports_must_be_there_and_free_for_instances() {
    for (ports, says) in [
        ("1023-2000", "must start at 1024"),
        ("9-8", "empty range"),
        ("2000-70000", "must end at 65535"),
        ("2000", "range of ports"),
        ("a-b", "range of ports"),
        ("2000-+9", "range of ports"),
        ("", "range of ports"),
    ] {
        refused(&format!("[agent]\nports = '{ports}'\n"), &format!("'{ports}'"), &[says, "write `ports = \"10001-19999\"`"]);
    }
    let two = "[[tenants]]\nid = 'a'\n[[tenants]]\nid = 'b'\nsuspended = true\n";
    refused(
        &format!("[agent]\nports = '2000-2000'\n{two}"),
        "'2000-2000'",
        &["2 tenants, but only 1 ports in 2000-2000", "`ports = \"2000-2001\"`"],
    );
    good(&format!("[agent]\nports = '2000-2001'\n{two}"));
    refused("[proxy]\nlisten = ['127.0.0.1:10443']\n", "'127.0.0.1:10443'", &["range of the instances, 10001-19999"]);
    refused("[admin]\nlisten = '127.0.0.1:10443'\nkey_file = 'k'\n", "'127.0.0.1:10443'", &["range of the instances"]);
}

#[test]
fn an_address_can_be_bound_once() {
    refused("[proxy]\nlisten = ['localhost:1']\n", "'localhost:1'", &["must be an IP address with a port"]);
    refused("[proxy]\nlisten = []\n", "[]", &["empty list"]);
    refused("[proxy]\nlisten = ['1.2.3.4:443', '1.2.3.4:443']\n", "'1.2.3.4:443'", &["beside 1.2.3.4:443"]);
    refused("[proxy]\nlisten = ['0.0.0.0:443', '1.2.3.4:443']\n", "'1.2.3.4:443'", &["beside 0.0.0.0:443"]);
    refused("[admin]\nlisten = '127.0.0.1:8444'\nkey_file = 'k'\n[proxy]\nlisten = ['127.0.0.1:8444']\n", "'127.0.0.1:8444'", &["beside"]);
    good("[proxy]\nlisten = ['0.0.0.0:443', '[::]:443', '127.0.0.1:0', '127.0.0.1:0']\n");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    refused("[sq]\nversion = '0.6.0'\nbinary = '/bin/sq'\n", "'/bin/sq'", &["both `version` and `binary`"]);
    refused("[sq]\nversion = '^0.6'\n", "'^0.6'", &["one exact version"]);
    refused("[sq]\nversion = '0.6.0 --git x'\n", "'0.6.0 --git x'", &["one exact version"]);
    refused("[alerts]\nmemory_warning = '95%'\n", "'95%'", &["95%", "90%"]);
    refused("[alerts]\nmemory_critical = '101%'\n", "'101%'", &["from 1% to 100%"]);
    refused("[alerts]\ndisk_critical = '80%'\n", "'80%'", &["`disk_warning` (80%) is not below `disk_critical` (80%)"]);
    refused("[alerts]\nreminder = '5s'\n", "'5s'", &["between 1m and 30d"]);
    refused("[alerts.webhook]\n", "[alerts.webhook]", &["[alerts.webhook] needs `url_file`"]);
    good("[alerts]\nreminder = 'off'\ntenant_memory_warning = '50%'\n[alerts.discord]\n[alerts.exec]\nprogram = 'hook'\n");
    let jwt = |kid: &str| format!("[[proxy.jwt]]\n{kid}\nalg = 'HS256'\nsecret_file = 's'\n");
    refused(&format!("{}{}", jwt("kid = 'k'"), jwt("kid = 'k'")), "'k'", &["two token keys with kid \"k\""]);
    refused(&format!("{}{}", jwt(""), jwt("")), "[[proxy.jwt]]", &["two token keys without `kid`"]);
    good(&format!("{}{}{}", jwt("kid = 'k'"), jwt("kid = 'l'"), jwt("")));
    refused("[[proxy.jwt]]\nalg = 'none'\nsecret_file = 's'\n", "'none'", &["HS256, ES256, EdDSA or RS256"]);
    refused("[proxy]\npublic_url = 'http://x'\n", "'http://x'", &["https://"]);
    refused("[agent]\nname = 'A_b'\n", "'A_b'", &["lower-case"]);
    refused("[agent]\nstate_dir = '~/sq'\n", "'~/sq'", &["not expanded"]);
    refused("[proxy.tls]\ncert = 'c'\n", "[proxy.tls]", &["[proxy.tls] needs `key`"]);
}

#[test]
fn token_keys_come_from_exactly_one_place() {
    let jwt = |lines: &str| format!("[[proxy.jwt]]\n{lines}\n");
    let of = |lines: &str| good(&jwt(lines)).proxy.jwt.remove(0);
    assert_eq!(of("jwks_file = 'jwks.json'").source, KeySource::JwksFile("/etc/sq-agent/jwks.json".into()));
    let url = of("jwks_url = 'https://login.example.com/jwks'\niss = 'sso'\naud = 'sq'");
    assert_eq!(url.source, KeySource::JwksUrl("https://login.example.com/jwks".into()));
    assert_eq!((url.iss.as_deref(), url.aud.as_deref()), (Some("sso"), Some("sq")));
    refused(&jwt("iss = 'sso'"), "[[proxy.jwt]]", &["names no key", "`secret_file`", "`jwks_url`"]);
    refused(&jwt("kid = 'a'\nsecret_file = 's'"), "[[proxy.jwt]]", &["needs `alg`"]);
    refused(&jwt("alg = 'HS256'\nsecret_file = 's'\njwks_file = 'j'"), "'j'", &["both `secret_file` and `jwks_file`"]);
    refused(&jwt("jwks_file = 'j'\njwks_url = 'https://x/j'"), "'https://x/j'", &["both `jwks_file` and `jwks_url`"]);
    refused(&jwt("jwks_file = 'j'\nalg = 'RS256'"), "'RS256'", &["remove `alg`"]);
    refused(&jwt("jwks_file = 'j'\nkid = 'a'"), "'a'", &["remove `kid`"]);
    refused(&jwt("jwks_url = 'http://x/j'"), "'http://x/j'", &["https://"]);
    refused(&jwt("jwks_url = 'https://u:pw@x/j'"), "…", &["no secret stands in this file"]);
    good(&format!("{}{}", jwt("jwks_file = 'j'"), jwt("jwks_url = 'https://x/j'")));
}

#[test]
fn a_backup_names_where_and_by_which_secret_and_shows_none() {
    let backup = |lines: &str| format!("[backup]\npassword_file = \"pw\"\n{lines}\n");
    let of = |lines: &str| good(&backup(lines)).backup.unwrap();
    let usual = of("repository = \"../vault\"");
    assert_eq!((usual.repository.as_str(), usual.every, usual.restic.to_str()), ("/etc/sq-agent/../vault", 21_600, Some("restic")));
    assert_eq!(usual.password_file, Path::new("/etc/sq-agent/pw"));
    for elsewhere in ["sftp:backup@vault:/srv/sq", "s3:https://s3.example.com/bucket", "rest:https://vault.example.com/"] {
        assert_eq!(of(&format!("repository = {elsewhere:?}")).repository, elsewhere);
    }
    assert_eq!(of("repository = \"v\"\nrestic = \"./bin/restic\"").restic, Path::new("/etc/sq-agent/bin/restic"));
    let (_, _, offending, said) = problem(&backup("repository = \"rest:https://sq:hunter2@vault.example.com/\""));
    assert!(!said.contains("hunter2") && !offending.contains("hunter2") && said.contains("env_file"), "{said}");
    refused(&backup("repository = \"v\"\nevery = \"6 h\""), "\"6 h\"", &["a number with s, m, h or d"]);
    refused(&backup("repository = \"v\"\nevery = \"31d\""), "\"31d\"", &["between 1s and 30d"]);
}

#[test]
fn an_api_key_stands_once_and_never_in_the_clear() {
    let digest = "a".repeat(64);
    let twice = format!("[[tenants]]\nid = 'a'\napi_keys = ['sha256:{digest}']\n[[tenants]]\nid = 'b'\napi_keys = ['sha256:{digest}']\n");
    refused(&twice, &format!("'sha256:{digest}'"), &["listed twice"]);
    for bad in ["sk-live-hunter2", "sha256:hunter2", &format!("sha256:{}é", "a".repeat(62)), &format!("sha256:{}g", "a".repeat(63))] {
        let rejected = parse(&format!("[[tenants]]\nid = 'a'\napi_keys = ['{bad}']\n"), Path::new(FILE)).unwrap_err();
        assert_eq!((rejected.problems.len(), rejected.problems[0].offending.as_str()), (1, "…"));
        let said = format!("{rejected} {} {}", rejected.summary(), serde_json::to_string(&rejected).unwrap());
        assert!(!said.contains("hunter2") && said.contains("never the key itself"), "{said}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_in_their_order() {
    let text = "[agent]\nportz = 1\nports = '9-8'\n[proxy]\nlisten = ['x']\n[tiers.free]\nrate = '0/m'\nmemory_max = 20\n\
                [[tenants]]\nid = '../x'\n[[tenants]]\nid = 'a'\ntier = 'fee'\n[[tenants]]\nid = 'a'\n";
    let lines: Vec<usize> = problems(text).iter().map(|problem| problem.place.as_ref().unwrap().line).collect();
    assert_eq!(lines, [2, 3, 5, 7, 8, 10, 13, 15]);
}

#[test]
fn syntax_errors_come_with_the_rest_and_without_their_echoes() {
    let text = "[tiers.pro\n[[tenants]]\nid = a\ntier = 'pro'\n[agent]\nports = 7\n";
    let found = problems(text);
    let lines: Vec<usize> = found.iter().map(|problem| problem.place.as_ref().unwrap().line).collect();
    assert_eq!(lines, [1, 3, 6], "{found:#?}");
    refused("[agent]\nname = 'a'\nname = 'b'\n", "name", &["duplicate key"]);
    let (line, ..) = problem("[[tenants]]\nid 'a'\n");
    assert_eq!(line, 2, "that the tenant has no id is an echo");
}

#[test]
fn a_file_cut_anywhere_is_refused_or_good_but_never_a_panic() {
    for text in [include_str!("../../tenants.toml"), include_str!("../../examples/tiers.toml"), include_str!("../../examples/gitops.toml")]
    {
        let mut refused = 0;
        for end in 0..text.len() {
            if let Some(cut) = text.get(..end) {
                match parse(cut, Path::new(FILE)) {
                    Ok(desired) => assert!(desired.tenants.len() <= good(text).tenants.len()),
                    Err(rejected) => {
                        refused += 1;
                        assert!(!rejected.problems.is_empty() && !rejected.to_string().is_empty());
                    }
                }
            }
        }
        assert!(refused > 50, "only {refused} cuts were refused");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}") {
        if let Err(rejected) = parse(&text, Path::new(FILE)) {
            prop_assert!(!rejected.problems.is_empty() && !rejected.to_string().is_empty() && !rejected.render(true).is_empty());
        }
    }

    #[test]
    fn a_good_file_with_a_few_bytes_changed_never_panics(at in 0usize..1_500, len in 0usize..4, with in "[\\[\\]\"'=.\n\r\t a0é\u{0}]{0,4}") {
        let text = include_str!("../../examples/tiers.toml");
        let (Some(before), Some(after)) = (text.get(..at), text.get(at + len..)) else { return Ok(()) };
        if let Err(rejected) = parse(&format!("{before}{with}{after}"), Path::new(FILE)) {
            prop_assert!(!rejected.problems.is_empty() && !rejected.to_string().is_empty());
        }
    }
}

fn many(tenants: usize, ports: &str) -> String {
    let mut text = format!("[agent]\nports = '{ports}'\n");
    for i in 0..tenants {
        _ = write!(text, "[[tenants]]\nid = 'user{i}@example.com'\ntier = 'free'\n\n");
    }
    text
}

#[test]
fn ten_thousand_tenants_are_read_at_once_and_need_as_many_ports() {
    let text = many(10_000, "10001-20000");
    let start = Instant::now();
    assert_eq!(good(&text).tenants.len(), 10_000);
    let took = start.elapsed();
    println!("10,000 tenants in {took:?}");
    assert!(took.as_secs() < 5, "{took:?}");
    refused(&many(10_000, "10001-19999"), "'10001-19999'", &["10000 tenants, but only 9999 ports", "`ports = \"10001-20000\"`"]);
    refused(&many(20_001, "10001-60000"), "'user20000@example.com'", &["at most 20000"]);
}

#[test]
fn ten_thousand_mistakes_are_told_in_good_time() {
    let start = Instant::now();
    let rejected = parse(&many(10_000, "10001-20000").replace("'free'", "'fee'"), Path::new(FILE)).unwrap_err();
    assert_eq!(rejected.problems.len(), 10_000);
    assert!(rejected.to_string().len() > 1_000_000);
    assert!(rejected.summary().ends_with("(and 9999 more problems)"), "{}", rejected.summary());
    let took = start.elapsed();
    println!("10,000 mistakes in {took:?}");
    assert!(took.as_secs() < 20, "{took:?}");
}

#[test]
fn there_is_room_for_1024_sets_of_limits() {
    let text = |sets: usize| (0..sets).map(|i| format!("[[tenants]]\nid = 't{i}'\nburst = {i}\n")).collect::<String>();
    good(&text(1_024));
    refused(&text(1_026), "'t1024'", &["more than 1024 different sets"]);
}

#[test]
fn the_file_at_the_top_and_the_examples_are_good() {
    let mut names: Vec<PathBuf> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|ext| ext == "toml"));
    assert!(names.len() >= 4);
    names.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("tenants.toml"));
    for name in names {
        let desired = load_without_files(&name).unwrap_or_else(|rejected| panic!("{rejected}"));
        assert!(desired.tenants.len() >= 2, "{}", name.display());
    }
}

#[test]
fn a_small_memory_limit_lets_fewer_reads_run_side_by_side() {
    let reads =
        |memory: Option<u64>| Limits { memory_max: memory, ..good("[[tenants]]\nid = 'a'\n").tiers["free"].clone() }.reads_at_once();
    assert_eq!([reads(Some(4 << 20)), reads(Some(20 << 20)), reads(Some(64 << 20)), reads(None)], [1, 2, 8, 8]);
}
