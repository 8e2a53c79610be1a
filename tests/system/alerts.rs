//! Alerts reach people: by a server that plays Discord, by any other, by a program of the host's; whatever dies, and however they answer.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sq_agent::{
    admin::status::{ChannelStatus, Status},
    alerts::Kind,
};

use crate::support::{
    client::Upload,
    free_port,
    host::{Host, User, tenant},
    processes::{ended_within, signal},
    receiver::{Bad, Got, Receiver, TOKEN},
};

/// From what happens to the message; with room for a busy machine. What it really took is printed.
const SOON: Duration = Duration::from_secs(15);
/// A threshold of memory is to be seen within 10 s.
const MEMORY: Duration = Duration::from_secs(25);
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";

/// The memory and the disk of whoever runs the tests are none of our business.
const CALM: &str = "\n[alerts]\nmemory_warning = \"98%\"\nmemory_critical = \"99%\"\ndisk_warning = \"98%\"\ndisk_critical = \"99%\"\n";

/// A host that tells `receiver`, not running yet. `more` are further lines and tables below [alerts].
fn prepare(receiver: &Receiver, ids: &[&str], more: &str) -> Host {
    let mut host = Host::prepare(|wanted| ids.iter().for_each(|id| _ = wanted.add(id)));
    receiver.put_url(&host.root().join("discord"));
    host.edit(|wanted| wanted.more = format!("{CALM}{more}\n[alerts.discord]\nwebhook_file = \"discord\"\n"));
    host
}

async fn start(receiver: &Receiver, ids: &[&str]) -> Host {
    let mut host = prepare(receiver, ids, "");
    host.launch().await;
    host
}

/// Writes a tenants.toml that is refused.
fn break_file(host: &Host) {
    host.write("[agent]\nno such key = 1\n");
}

fn mend_file(host: &Host) {
    host.write(&host.wanted.text());
}

fn is_open(status: &Status, kind: Kind) -> bool {
    status.alerts.open.iter().any(|alert| alert.kind == kind)
}

/// How the one channel stands; an agent that has just begun has not looked for it yet.
fn discord(status: &Status) -> ChannelStatus {
    let none = || ChannelStatus {
        name: "discord".into(),
        waiting: 0,
        last_sent: None,
        trouble: None,
        trouble_since: None,
        stopped: false,
        given_up: 0,
    };
    status.alerts.channels.first().cloned().unwrap_or_else(none)
}

/// Waits until nothing waits for the channels.
async fn all_taken(host: &Host) -> Status {
    host.within(SOON, "all is taken", |status| status.alerts.channels.iter().all(|channel| channel.waiting == 0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_once_with_what_to_do_and_once_when_it_is_over_and_a_users_fault_never() {
    let receiver = Receiver::start().await;
    let mut host = prepare(&receiver, &["ada", "bob"], "");
    host.edit(|wanted| wanted.tenant("bob").tier = "metered");
    host.launch().await;

    // Bad tokens, and too many requests.
    let stranger = User { token: "e30.e30.e30".into(), ..host.user("ada") };
    assert_eq!(stranger.get(READ).await.status, 401);
    let bob = host.user("bob");
    let mut refused = 0;
    for _ in 0..200 {
        refused += u32::from(bob.get(READ).await.status == 429);
    }
    assert!(refused > 0);

    let happened = Instant::now();
    break_file(&host);
    let got = receiver.says(&host, SOON, &["tenants.toml refused", "warning"]).await;
    eprintln!("a refused tenants.toml is with Discord after {:?}", got.at - happened);
    assert!(got.target.ends_with(&format!("/{TOKEN}?wait=true")), "{}", got.target);
    let embed = &got.body["embeds"][0];
    let fields: Vec<_> = embed["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| (field["name"].as_str().unwrap(), field["value"].as_str().unwrap()))
        .collect();
    assert!(fields.iter().any(|(name, run)| *name == "Run" && run.contains("sq-agent check")), "{fields:?}");
    assert!(fields.iter().any(|(name, since)| *name == "Since" && since.starts_with("<t:")), "{fields:?}");
    assert!(embed["description"].as_str().unwrap().contains("tenants.toml:2"), "{embed}");
    let status = host.status().unwrap();
    assert!(is_open(&status, Kind::ConfigRefused));
    let said = host.cli(&["status"]);
    assert!(said.err.contains("tenants.toml refused") && said.err.contains("`sq-agent check`"), "{said:?}");
    assert!(host.cli(&["doctor"]).out.contains("tenants.toml refused"));
    break_file(&host);
    mend_file(&host);
    let over = receiver.says(&host, SOON, &["tenants.toml refused: resolved"]).await;
    assert_eq!(over.body["embeds"][0]["color"], 0x0057_F287);

    let happened = Instant::now();
    for crash in 0..5 {
        // The fourth back-off alone is up to 10 s.
        let runs = |status: &Status| tenant(status, "ada").state == "ready" && tenant(status, "ada").restarts >= crash;
        let ada = host.within(Duration::from_secs(60), "ada runs", runs).await;
        signal(tenant(&ada, "ada").pid.unwrap(), Signal::KILL);
    }
    let got = receiver.says(&host, Duration::from_secs(60), &["Crash loop of ada: critical"]).await;
    eprintln!("five crashes, with their back-off, and the message after {:?}", got.at - happened);
    assert!(got.body.to_string().contains("sq.log"), "{}", got.body);
    // What comes after the fifth crash is 16 to 20 s of back-off.
    host.settled_within(Duration::from_secs(60)).await;
    let said: Vec<Got> = receiver.all();
    assert_eq!(said.len(), 3, "one a transition, and nothing of users: {said:#?}");
    assert!(!host.logged().contains(TOKEN) && !host.cli(&["status", "--json"]).out.contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_obeyed_faults_are_tried_again_and_one_message_is_taken_once() {
    let receiver = Receiver::start().await;
    let host = start(&receiver, &["ada"]).await;
    let limited = r#"{"message": "You are being rate limited.", "retry_after": 1.5, "global": true}"#;
    receiver.answer([
        Bad::Status(429, "retry-after: 2\r\nx-ratelimit-global: true\r\nx-ratelimit-scope: global\r\n", limited),
        Bad::Status(502, "", "<html>"),
        Bad::Closed,
        Bad::Status(429, "x-ratelimit-reset-after: 0.8\r\nx-ratelimit-remaining: 0\r\n", r#"{"retry_after": 0.8, "global": false}"#),
    ]);
    break_file(&host);
    receiver.says(&host, Duration::from_secs(30), &["tenants.toml refused"]).await;
    let got = receiver.all();
    let statuses: Vec<u16> = got.iter().map(|got| got.status).collect();
    assert_eq!(statuses, [429, 502, 0, 429, 200]);
    let pauses: Vec<Duration> = got.windows(2).map(|two| two[1].at - two[0].at).collect();
    eprintln!("pauses after 429 (2 s), 502, a closed connection, 429 (0.8 s): {pauses:.2?}");
    let at_least = [2_000, 1_000, 2_000, 800].map(Duration::from_millis);
    assert!(pauses.iter().zip(at_least).all(|(pause, least)| *pause >= least), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause < Duration::from_secs(8)), "{pauses:?}");
    all_taken(&host).await;
    assert_eq!(receiver.all().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_slows_nothing() {
    let receiver = Receiver::start().await;
    let mut host = start(&receiver, &["ada"]).await;
    receiver.answer_always(Some(Bad::Silence));
    break_file(&host);
    host.until("it waits for the answer", |status| discord(status).waiting == 1 && is_open(status, Kind::ConfigRefused)).await;
    let started = Instant::now();
    while receiver.all().is_empty() {
        assert!(started.elapsed() < SOON, "{}", host.account());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The loop turns: an edit is in force, and users are served.
    host.edit(|wanted| _ = wanted.add("bob"));
    let started = Instant::now();
    host.settled().await;
    eprintln!("bob is served {:?} after the edit", started.elapsed());
    assert_eq!(host.user("ada").get(READ).await.status, 200);
    let status = host.within(SOON, "the time is over", |status| discord(status).trouble.is_some()).await;
    assert!(discord(&status).trouble.as_ref().unwrap().contains("no answer within"), "{:?}", status.alerts);
    receiver.answer_always(None);
    receiver.says(&host, SOON, &["resolved"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_gone_is_let_be_and_said_and_another_one_gets_what_waited() {
    let (gone, receiver) = (Receiver::start().await, Receiver::start().await);
    let mut host = start(&gone, &["ada"]).await;
    gone.answer_always(Some(Bad::Status(404, "", r#"{"message": "Unknown Webhook", "code": 10015}"#)));
    let tried = host.cli(&["alert", "test"]);
    assert!(tried.code == 1 && tried.out.contains("404") && !tried.out.contains(TOKEN), "{tried:?}");
    break_file(&host);
    let status = host.within(SOON, "nothing is sent any more", |status| discord(status).stopped).await;
    assert_eq!(discord(&status).waiting, 1);
    let said = host.cli(&["status"]);
    assert!(said.code == 2 && said.err.contains("discord: no alert is sent any more (1 wait)") && said.err.contains("404"), "{said:?}");
    assert!(host.cli(&["doctor"]).out.contains("nothing is sent to discord any more"));
    mend_file(&host);
    host.settled().await;
    assert_eq!(gone.all().len(), 2, "the test, and one message");
    receiver.put_url(&host.root().join("discord"));
    receiver.says(&host, SOON, &["tenants.toml refused: warning"]).await;
    receiver.says(&host, SOON, &["tenants.toml refused: resolved"]).await;
    assert_eq!(gone.all().len(), 2);
    all_taken(&host).await;
    let tried = host.cli(&["alert", "test"]);
    assert_eq!((tried.code, tried.out.as_str()), (0, "discord: took the test message\n"));
    receiver.says(&host, SOON, &["test message"]).await;
    host.edit(|wanted| wanted.more = CALM.to_owned());
    let none = host.cli(&["alert", "test"]);
    assert!(none.code == 2 && none.err.contains("[alerts.discord]"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sent_outlives_the_agent_and_what_was_is_not_repeated() {
    let port = free_port();
    let nobody = Receiver::start_on(port).await;
    let mut host = prepare(&nobody, &["ada"], "");
    drop(nobody);
    host.launch().await;
    break_file(&host);
    host.within(SOON, "it is refused a connection", |status| discord(status).trouble.is_some() && discord(status).waiting == 1).await;
    assert_eq!(host.end_agent(Signal::KILL), None);
    let receiver = Receiver::start_on(port).await;
    host.spawn_agent();
    receiver.says(&host, SOON, &["tenants.toml refused: warning"]).await;
    receiver.says(&host, SOON, &["Agent restarted: warning"]).await;
    all_taken(&host).await;
    assert_eq!(receiver.all().len(), 2);
    for round in 0..3 {
        host.end_agent(Signal::KILL);
        host.spawn_agent();
        let status = host.until("it looks", |status| is_open(status, Kind::ConfigRefused) && status.agent.uptime_seconds >= 6).await;
        assert!(is_open(&status, Kind::AgentRestarted), "{round}");
    }
    assert_eq!(receiver.all().len(), 2, "open ones are not told again: {:#?}", receiver.all());
    mend_file(&host);
    receiver.says(&host, SOON, &["tenants.toml refused: resolved"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_between_noting_and_sending_is_followed_by_one_that_sends() {
    let receiver = Receiver::start().await;
    let mut host = prepare(&receiver, &["ada"], "");
    host.launch().await;
    host.end_agent(Signal::TERM);
    break_file(&host);
    host.spawn_agent_that_dies_at("alerts.kept");
    assert!(ended_within(host.agent_pid(), SOON), "it does not die\n{}", host.account());
    host.reap_agent();
    assert!(receiver.all().is_empty(), "noted, and not sent");
    host.spawn_agent();
    receiver.says(&host, SOON, &["tenants.toml refused: warning"]).await;
    mend_file(&host);
    host.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_or_is_replaced_as_it_was_told_is_no_alert() {
    let receiver = Receiver::start().await;
    let mut host = start(&receiver, &["ada"]).await;
    let upgraded = host.cli(&["upgrade"]);
    assert_eq!(upgraded.code, 0, "{upgraded:?}");
    let agent = host.agent_pid();
    host.until("the first process is the agent again", |status| status.agent.pid == agent).await;
    host.until_heirs_are_gone().await;
    host.end_agent(Signal::TERM);
    host.launch().await;
    break_file(&host);
    receiver.says(&host, SOON, &["tenants.toml refused"]).await;
    assert_eq!(receiver.all().len(), 1, "{:#?}", receiver.all());
    host.end_agent(Signal::KILL);
    host.spawn_agent();
    receiver.says(&host, SOON, &["Agent restarted"]).await;
    mend_file(&host);
    host.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_server_and_a_program_of_the_hosts_are_told_the_same() {
    let receiver = Receiver::start().await;
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let (url, program, seen) = (host.root().join("url"), host.root().join("hook"), host.root().join("seen"));
    receiver.put_url(&url);
    fs::write(&program, format!("#!/bin/sh\n[ -e {seen}.not-yet ] && exit 3\nenv > {seen}.$SQ_AGENT_ALERT_ID\n", seen = seen.display()))
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(seen.with_extension("not-yet"), "").unwrap();
    host.edit(|wanted| wanted.more = format!("{CALM}\n[alerts.webhook]\nurl_file = \"url\"\n\n[alerts.exec]\nprogram = \"hook\"\n"));
    host.launch().await;
    break_file(&host);
    let got = receiver.says(&host, SOON, &["tenants.toml refused"]).await;
    assert_eq!(
        (got.body["kind"].as_str(), got.body["news"].as_str(), got.body["severity"].as_str()),
        (Some("config_refused"), Some("raised"), Some("warning"))
    );
    let exec = |status: &Status| status.alerts.channels.iter().find(|channel| channel.name == "exec").cloned().unwrap();
    host.within(SOON, "the program has failed", |status| {
        exec(status).trouble.is_some_and(|why| why.contains("hook failed") && why.contains('3'))
    })
    .await;
    fs::remove_file(seen.with_extension("not-yet")).unwrap();
    host.within(SOON, "the program has gone well", |status| exec(status).waiting == 0).await;
    let env = fs::read_to_string(seen.with_extension(got.body["id"].to_string())).unwrap();
    let has = |line: &str| env.lines().any(|known| known == line);
    assert!(
        has("SQ_AGENT_ALERT_KIND=config_refused") && has("SQ_AGENT_ALERT_NEWS=raised") && has("SQ_AGENT_ALERT_COMMAND=sq-agent check"),
        "{env}"
    );
    assert!(!env.contains("CARGO"), "nothing of the agent's environment: {env}");
    mend_file(&host);
    receiver.says(&host, SOON, &["resolved"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discord_is_reached_by_tls_and_by_the_environment() {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(pair.cert.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.signing_key.serialize_pem().as_bytes()).unwrap();
    let receiver =
        Receiver::start_secure(rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()).await;
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    host.edit(|wanted| wanted.more = CALM.to_owned());
    let ca = host.root().join("ca.pem");
    fs::write(&ca, pair.cert.pem()).unwrap();
    host.environment = vec![("SSL_CERT_FILE", ca), ("SQ_AGENT_DISCORD_WEBHOOK", PathBuf::from(receiver.url()))];
    host.launch().await;
    break_file(&host);
    receiver.says(&host, SOON, &["tenants.toml refused"]).await;
    assert_eq!(host.cli(&["alert", "test"]).code, 0);
    // No child of the agent has it.
    let environ = |pid: u32| fs::read(format!("/proc/{pid}/environ")).map(|environ| String::from_utf8_lossy(&environ).contains(TOKEN));
    let status = host.status().unwrap();
    for pid in [status.proxy.pid.unwrap(), tenant(&status, "ada").pid.unwrap()] {
        assert!(!environ(pid).unwrap_or(false), "{pid}");
    }
    mend_file(&host);
    host.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_one_summary() {
    let receiver = Receiver::start().await;
    let mut host = prepare(&receiver, &[], "");
    let names: Vec<String> = (0..12).map(|n| format!("user{n:02}")).collect();
    host.edit(|wanted| {
        wanted.more = wanted.more.replace(CALM, &format!("{CALM}tenant_memory_warning = \"98%\"\ntenant_memory_critical = \"99%\"\n"));
        names.iter().for_each(|name| wanted.add(name).more = "memory_max = \"8M\"\n");
    });
    host.launch().await;
    let measured = |status: &Status| status.tenants.iter().all(|tenant| tenant.memory_bytes.is_some_and(|bytes| bytes > 0));
    host.within(Duration::from_secs(60), "all are measured", measured).await;
    let threshold = |host: &mut Host, from: &str, to: &str| {
        let line = |percent: &str| format!("tenant_memory_warning = {percent:?}");
        host.edit(|wanted| wanted.more = wanted.more.replace(&line(from), &line(to)));
    };
    threshold(&mut host, "98%", "1%");
    let got = receiver.says(&host, MEMORY, &["12 alerts at once: 12 raised"]).await;
    assert!(got.body["embeds"][0]["description"].as_str().unwrap().contains("user03"), "{}", got.body);
    assert_eq!(receiver.all().len(), 1);
    threshold(&mut host, "1%", "98%");
    receiver.says(&host, Duration::from_secs(90), &["12 alerts at once: 12 resolved"]).await;
    assert_eq!(receiver.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_really_fills_its_memory_is_told_in_time() {
    let receiver = Receiver::start().await;
    let mut host = prepare(&receiver, &["bob"], "tenant_memory_warning = \"15%\"\ntenant_memory_critical = \"97%\"\n");
    // A guard would refuse what it takes here.
    host.edit(|wanted| wanted.add("ada").more = "memory_max = \"64M\"\nbody_max = \"16M\"\ndurability = \"off\"\n");
    host.launch().await;
    let ada = host.user("ada");
    assert_eq!(ada.send(http::Method::POST, WRITE, Upload::whole(vec![b'a'; 14 << 20])).await.unwrap().status, 200);
    let written = Instant::now();
    let got = receiver.says(&host, MEMORY, &["Memory of a tenant of ada"]).await;
    eprintln!("a tenant's memory is with Discord after {:?}", got.at - written);
    let text = got.body.to_string();
    assert!(text.contains("sq-agent restart ada") && text.contains("Largest tenants") && text.contains("ada: "), "{text}");
    assert_eq!(receiver.all().len(), 1, "bob has no limit, and nothing of him is told");
    assert_eq!(host.cli(&["restart", "ada"]).code, 0);
    receiver.says(&host, MEMORY, &["Memory of a tenant of ada: resolved"]).await;
}

/// A cgroup with a limit of its own, of version 1: that is what the kernels have where these tests run without a machine of their own.
struct Limited(PathBuf);

impl Limited {
    const LIMIT: u64 = 500 << 20;

    /// None where this host has none to give, which is said.
    fn make() -> Option<Self> {
        let place = Path::new("/sys/fs/cgroup/memory").join(format!("sq-agent-test-{}", std::process::id()));
        let made = fs::create_dir(&place).and_then(|()| fs::write(place.join("memory.limit_in_bytes"), Self::LIMIT.to_string()));
        if let Err(error) = made {
            eprintln!("LEFT OUT: no cgroup with a limit on memory can be made ({error}); contrib/vm/limits does the same with version 2");
            let _ = fs::remove_dir(&place);
            return None;
        }
        Some(Self(place))
    }

    fn put(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// What is taken and cannot be given back, percent.
    fn percent(&self) -> u64 {
        let usage: u64 = fs::read_to_string(self.0.join("memory.usage_in_bytes")).unwrap().trim().parse().unwrap();
        let stat = fs::read_to_string(self.0.join("memory.stat")).unwrap();
        let given_back: u64 = stat.lines().find_map(|line| line.strip_prefix("total_inactive_file ")?.parse().ok()).unwrap();
        (usage - given_back) * 100 / Self::LIMIT
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process that holds whatever is written to it.
struct Eater(Child);

impl Eater {
    fn start(limited: &Limited) -> Self {
        // It looks for the last lines, and there is none.
        let tail = Command::new("tail").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        limited.put(tail.id());
        Self(tail)
    }

    fn eat(&mut self, limited: &Limited, percent: u64) {
        while limited.percent() < percent {
            self.0.stdin.as_mut().unwrap().write_all(&[b'x'; 1 << 20]).unwrap();
        }
    }
}

impl Drop for Eater {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_really_taken_is_told_at_both_thresholds_and_when_it_is_free_again() {
    let Some(limited) = Limited::make() else { return };
    let receiver = Receiver::start().await;
    let mut host = prepare(&receiver, &["ada"], "");
    host.edit(|wanted| {
        let (memory, usual) =
            ("memory_warning = \"98%\"\nmemory_critical = \"99%\"\n", "memory_warning = \"80%\"\nmemory_critical = \"90%\"\n");
        wanted.more = wanted.more.replace(memory, usual);
    });
    host.spawn_agent();
    limited.put(host.agent_pid());
    host.settled().await;
    let mut eater = Eater::start(&limited);
    for (percent, severity) in [(82, "warning"), (92, "critical")] {
        eater.eat(&limited, percent);
        let taken = Instant::now();
        let got = receiver.says(&host, MEMORY, &["Memory of the host", severity]).await;
        eprintln!("{percent} % is with Discord after {:?}", got.at - taken);
        assert!(got.body.to_string().contains("of the memory of this host is taken"), "{}", got.body);
    }
    drop(eater);
    let freed = Instant::now();
    let got = receiver.says(&host, MEMORY, &["Memory of the host: resolved"]).await;
    eprintln!("and free again after {:?}", got.at - freed);
    assert_eq!(receiver.all().len(), 3);
    drop(host);
}
