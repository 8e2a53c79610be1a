//! The page: who gets in, what a browser is told to allow, and that its forms really do what they say; all without a script.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use http::{Method, Request};
use serde_json::Value;

use crate::support::{
    admin::{self, Admin, KEY, Said},
    browser::{Browser, location, text, token},
    eventually, free_port,
    host::Host,
};

/// Every page of a host that serves `ada`.
const PAGES: [&str; 8] = [
    "/",
    "/tenants",
    "/tenants/ada",
    "/tenants/ada/restart",
    "/events",
    "/alerts",
    "/plan",
    "/tenants?q=a&state=ready&tier=free&trouble=any&sort=-memory&page=2",
];

async fn start(ids: &[&str]) -> (Host, Admin, u16) {
    let (host, api) = admin::start(ids).await;
    let listen = host.status().unwrap().admin.unwrap().listen.unwrap();
    (host, api, listen.rsplit_once(':').unwrap().1.parse().unwrap())
}

fn has_policy(said: &Said) -> bool {
    let policy = said.headers.get("content-security-policy").map(|policy| policy.to_str().unwrap()).unwrap_or_default();
    let wanted =
        ["default-src 'none'", "style-src 'self'", "script-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"];
    wanted.iter().all(|part| policy.contains(part))
        && !policy.contains("unsafe")
        && said.headers["x-content-type-options"] == "nosniff"
        && said.headers["referrer-policy"] == "same-origin"
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_logged_in_is_led_to_the_log_in_and_back_to_what_it_wanted() {
    let (_host, _, port) = start(&["ada"]).await;
    let mut browser = Browser::new(port);
    for page in PAGES {
        let said = browser.get(page).await;
        assert!(said.status == 303 && location(&said).starts_with("/login") && said.body.is_empty(), "{page}: {said:?}");
    }
    assert_eq!(location(&browser.get("/tenants?q=a&page=2").await), "/login?to=%2Ftenants%3Fq%3Da%26page%3D2");
    assert_eq!(browser.get("/live?at=/").await.status, 401, "nobody is led anywhere by a page that looks by itself");
    let login = browser.page("/login?to=%2Ftenants%3Fq%3Da").await;
    assert!(login.contains("name=\"to\" value=\"/tenants?q=a\"") && login.contains("type=\"password\""), "{login}");
    assert!(!browser.page("/login?to=%2F%2Fevil.example.com").await.contains("evil"), "nobody is led elsewhere");

    let said = browser.log_in(KEY, "&to=%2Ftenants%3Fq%3Da&name=ada+lovelace").await;
    assert_eq!((said.status, location(&said)), (303, "/tenants?q=a".to_owned()));
    let cookie = said.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with(&format!("sq-agent-{port}=")), "{cookie}");
    for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=43200"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "browsers would not keep it on plain HTTP: {cookie}");
    for page in PAGES {
        let html = browser.page(page).await;
        assert!(html.contains("<title>") && html.contains("ada lovelace") && html.contains("Skip to the content"), "{page}: {html}");
    }
    assert_eq!(location(&browser.get("/login").await), "/", "who is logged in has nothing to do there");
    assert_eq!(browser.get("/tenants/nobody").await.status, 404);
    let said = browser.get("/nothing").await;
    assert!(said.status == 404 && text(&said).contains("there is no such page"), "{said:?}");

    let elsewhere = Browser { origin: "https://127.0.0.1".to_owned(), ..browser.clone() };
    let behind_tls = Browser { admin: browser.admin.with("host", "127.0.0.1"), ..elsewhere }.log_in(KEY, "").await;
    let cookie = behind_tls.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with(&format!("__Host-sq-agent-{port}=")) && cookie.ends_with("; Secure"), "{cookie}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_log_out_and_with_its_key() {
    let (host, api, port) = start(&["ada"]).await;
    let (one, other) = (Browser::logged_in(port).await, Browser::logged_in(port).await);
    let opens = async |browser: &Browser| browser.get("/").await.status == 200;
    assert!(opens(&one).await && opens(&other).await);
    // It is no key of the API.
    assert!(
        api.with_key(None).with("cookie", one.cookie.as_deref().unwrap()).get("/api/admin/tenants").await.is_problem(401, "unauthorized")
    );
    let said = one.post("/logout", &format!("token={}", token(&one.page("/").await))).await;
    assert!(location(&said) == "/login" && said.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"), "{said:?}");
    assert!(!opens(&one).await && opens(&other).await, "of the one alone");
    admin::put_key(host.root(), "bmV3LWtleS1mb3ItdGVzdHMtYWxvbmUtbmV3LWtleQ==");
    eventually("the key of before opens nothing", async || !opens(&other).await).await;
    let mut guess = one.clone();
    guess.cookie = Some(format!("sq-agent-{port}={}", "A".repeat(43)));
    assert!(!opens(&guess).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_opens_nothing_and_is_slowed_down_as_with_the_api() {
    let (host, _) =
        admin::start_with(&["ada"], |wanted| wanted.more = wanted.more.replace("rate = \"none\"", "rate = \"60/h\"\nburst = 39")).await;
    let port = host.status().unwrap().admin.unwrap().listen.unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut browser = Browser::new(port);
    for _ in 0..4 {
        let said = browser.log_in("wrong<script>", "&name=%22%3E%3Cb%3E").await;
        let html = text(&said);
        assert!(said.status == 403 && html.contains("That is not the key.") && !said.headers.contains_key("set-cookie"), "{said:?}");
        assert!(!html.contains("wrong&lt;") && !html.contains("<b>") && html.contains("value=\"&quot;&gt;&lt;b&gt;\""), "{html}");
    }
    let said = browser.log_in("wrong", "").await;
    assert!(said.status == 429 && said.headers.contains_key("retry-after") && text(&said).contains("Too many requests"), "{said:?}");
    assert_eq!(Browser::new(port).get("/login").await.status, 200, "the form is there for others");
    assert_eq!(browser.log_in(KEY, "").await.status, 303, "who has the key has a budget of its own");
    assert!(!host.logged().contains(KEY) && host.logged().contains("wrong key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_a_browser_may_do_and_only_the_names_of_this_host_are_answered() {
    let (_host, _, port) = start(&["ada"]).await;
    let browser = Browser::logged_in(port).await;
    let page = browser.page("/").await;
    let asset = |mark: &str| page.split('"').find(|part| part.starts_with("/assets/") && part.ends_with(mark)).unwrap().to_owned();
    let (style, script) = (asset(".css"), asset(".js"));
    let none = Browser::new(port);
    for (browser, targets) in [
        (&browser, &PAGES[..]),
        (&browser, &["/nothing", "/tenants/nobody", &style, &script]),
        (&none, &["/", "/login", "/live", "/assets/x"]),
    ] {
        for target in targets {
            let said = browser.get(target).await;
            assert!(has_policy(&said) && said.headers.contains_key("x-request-id"), "{target}: {said:?}");
            let keeps = said.headers["cache-control"].to_str().unwrap();
            assert_eq!(keeps.contains("immutable"), target.contains("/page-"), "{target}: {keeps}");
            assert!(
                !text(&said).contains("<script>") && !text(&said).contains(" style=") && !text(&said).contains(" onclick="),
                "{target}"
            );
        }
    }
    let strange = Browser { admin: browser.admin.with("host", "evil.example.com"), ..browser.clone() };
    for target in ["/", "/login", &style] {
        let said = strange.get(target).await;
        assert!(said.status == 421 && has_policy(&said) && !text(&said).contains("ada"), "{target}: {said:?}");
    }
    let said = browser.ask(Method::DELETE, "/tenants/ada").await;
    assert!(said.status == 405 && said.headers.contains_key("allow") && has_policy(&said), "{said:?}");
    // The API, and what is for programs, stay what they are.
    for target in ["/api/admin/tenants", "/api/nothing"] {
        assert!(browser.get(target).await.is_problem(401, "unauthorized"), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_somebody_elses_does_nothing() {
    let (host, api, port) = start(&["ada"]).await;
    let (browser, other) = (Browser::logged_in(port).await, Browser::logged_in(port).await);
    let token_of = async |browser: &Browser| token(&browser.page("/tenants/ada/suspend").await);
    let (own, foreign) = (token_of(&browser).await, token_of(&other).await);
    assert_ne!(own, foreign);
    let target = "/tenants/ada/suspend";
    let form = |token: &str| format!("token={token}");
    let from = |origin: &str| Browser { origin: origin.to_owned(), ..browser.clone() };
    let request = || Request::post(target).header("content-type", "application/x-www-form-urlencoded");
    let refused = [
        browser.post(target, "").await,
        browser.post(target, &form("x")).await,
        browser.post(target, &form(&foreign)).await,
        from("http://127.0.0.1:1").post(target, &form(&own)).await,
        from("http://evil.example.com").post(target, &form(&own)).await,
        from("null").post(target, &form(&own)).await,
        browser.send_with(request().header("sec-fetch-site", "cross-site"), &form(&own)).await,
        browser.send_with(request().header("sec-fetch-site", "same-site"), &form(&own)).await,
    ];
    for said in refused {
        assert!(said.status == 403 && has_policy(&said), "{said:?}");
    }
    let said = browser.send_with(Request::post(target).header("content-type", "application/json"), "{}").await;
    assert_eq!(said.status, 415, "{said:?}");
    let said = Browser { cookie: None, ..browser.clone() }.post(target, &form(&own)).await;
    assert_eq!((said.status, location(&said)), (303, "/login".to_owned()));
    assert_eq!(from("http://evil.example.com").log_in(KEY, "").await.status, 403, "nor does it log anybody in");
    assert_eq!(browser.get(target).await.status, 200, "to look at the question does nothing");
    assert_eq!(api.get("/api/admin/tenants/ada").await.json()["state"], "ready");
    assert!(!fs::read_to_string(host.root().join("tenants.toml")).unwrap().contains("suspended"));
    assert_eq!(browser.post(target, &form(&own)).await.status, 303, "and its own does");
    assert_eq!(api.get("/api/admin/tenants/ada").await.json()["state"], "suspended");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_suspend_and_resume_are_done_by_the_way_of_the_api_with_the_same_record() {
    let (host, api, port) = start(&["ada", "bob"]).await;
    let mut browser = Browser::new(port);
    browser.log_in(KEY, "&name=grace").await;
    let before = api.get("/api/admin/tenants/ada").await.json();
    let said = browser.submit("/tenants/ada/restart", "&reason=it+%3Cb%3Estutters").await;
    assert_eq!((said.status, location(&said)), (303, "/tenants/ada".to_owned()), "{said:?}");
    let page = browser.page("/tenants/ada").await;
    assert!(page.contains("ada was restarted: another instance answers."), "{page}");
    assert!(!browser.page("/tenants/ada").await.contains("ada was restarted"), "it is told once");
    let after = api.get("/api/admin/tenants/ada").await.json();
    assert!(after["state"] == "ready" && after["epoch"].as_u64() > before["epoch"].as_u64() && after["pid"] != before["pid"], "{after:#}");

    let said = browser.submit("/tenants/ada/suspend", "&reason=does+not+pay").await;
    assert_eq!(said.status, 303, "{said:?}");
    let page = browser.page("/tenants/ada").await;
    assert!(
        page.contains("class=\"state suspended\"") && page.contains("/tenants/ada/resume") && !page.contains("href=\"/tenants/ada/restart"),
        "{page}"
    );
    assert!(fs::read_to_string(host.root().join("tenants.toml")).unwrap().contains("suspended = true"));
    assert_eq!(host.user("ada").get("/api/v2/toc?p=x").await.status, 403);
    let said = browser.submit("/tenants/ada/restart", "").await;
    assert_eq!(said.status, 303);
    assert!(browser.page("/tenants/ada").await.contains("Not as things stand"), "what cannot be done is said");
    browser.submit("/tenants/ada/resume", "").await;
    assert!(browser.page("/tenants/ada").await.contains("class=\"state ready\""));
    assert_eq!(host.user("ada").get("/api/v2/toc?p=x").await.status, 200);

    let events = api.get("/api/admin/events?kind=admin_change&tenant=ada").await.json();
    let details: Vec<&str> = events["events"].as_array().unwrap().iter().rev().map(|event| event["detail"].as_str().unwrap()).collect();
    let wanted = [
        ("restart: 200; by grace (127.0.0.1)", "reason: it <b>stutters"),
        ("suspend: 200; by grace", "reason: does not pay"),
        ("restart: 409", "by grace"),
        ("resume: 200", "by grace"),
    ];
    assert_eq!(details.len(), wanted.len(), "{details:#?}");
    for (detail, (what, why)) in details.iter().zip(wanted) {
        assert!(detail.contains(what) && detail.contains(why), "{detail}");
    }
    let page = browser.page("/events?tenant=ada&kind=admin_change").await;
    assert!(page.contains("it &lt;b&gt;stutters") && !page.contains("<b>stutters"), "{page}");
    assert_eq!(browser.get("/tenants/nobody/restart").await.status, 404);
    assert_eq!(browser.get("/tenants/ada/explode").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_plan_is_shown_and_goes_through_by_its_form() {
    let ids: Vec<String> = (0..9).map(|n| format!("t{n}")).collect();
    let (mut host, _, port) = start(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let browser = Browser::logged_in(port).await;
    assert!(browser.page("/plan").await.contains("No plan is held."));
    host.edit(|wanted| (0..7).for_each(|n| wanted.remove(&format!("t{n}"))));
    let held = host.until("it is held", |status| status.held.is_some()).await.held.unwrap();
    eventually("the page says so", async || browser.page("/plan").await.contains(&held.hash)).await;
    let page = browser.page("/plan").await;
    assert!(
        page.contains("Removing 7 of 9 tenants at once") && page.contains("remove, HELD") && page.contains("href=\"/tenants/t6\""),
        "{page}"
    );
    eventually("and so does the overview", async || browser.page("/").await.contains("waits for your word")).await;
    assert!(browser.page("/tenants?trouble=held").await.contains("7 tenants"));
    assert_eq!(browser.get("/plan/confirm?hash=000000000000").await.status, 409, "another plan is not asked about");
    let question = format!("/plan/confirm?hash={}", held.hash);
    let said = browser.submit(&question, "&hash=000000000000").await;
    assert_eq!(location(&said), "/plan");
    assert!(browser.page("/plan").await.contains("said bad"), "nor does it go through");
    let said = browser.submit(&question, &format!("&hash={}&reason=they+left", held.hash)).await;
    assert_eq!(location(&said), "/plan");
    assert!(browser.page("/plan").await.contains("is confirmed"));
    host.until("they are gone", |status| status.tenants.len() == 2 && status.held.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_writes_is_text_on_its_page() {
    let (host, _, port) = start(&["ada"]).await;
    let browser = Browser::logged_in(port).await;
    let log = host.state_dir().join("users/ada/sq.log");
    let hostile = "<script>alert(1)</script> \u{1b}[2J\u{1b}]0;x\u{7} \"'&amp; </pre><img src=x onerror=alert(1)>\n";
    let written = fs::read_to_string(&log).unwrap() + hostile;
    fs::write(&log, written).unwrap();
    let page = browser.page("/tenants/ada").await;
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt; \u{fffd}[2J\u{fffd}]0;x\u{fffd} &quot;'&amp;amp; &lt;/pre&gt;&lt;img"),
        "{page}"
    );
    assert!(!page.contains("<script>") && !page.contains("<img src=x") && !page.contains('\u{1b}'), "{page}");
    for odd in ["/tenants?q=%22%3E%3Cscript%3E&sort=%3Cb%3E", "/events?kind=%22%3E%3Cscript%3E"] {
        let page = browser.page(odd).await;
        assert!(page.contains("value=\"&quot;&gt;&lt;script&gt;\"") && !page.contains("<script>") && !page.contains("<b>"), "{page}");
    }
    let secret = host.root().join("secret");
    fs::write(&secret, "not for its page\n").unwrap();
    fs::remove_file(&log).unwrap();
    symlink(&secret, &log).unwrap();
    assert!(!browser.page("/tenants/ada").await.contains("not for its page"), "a link is not followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_is_told_what_changes_until_its_session_ends() {
    let (host, _, port) = start(&["ada"]).await;
    let browser = Browser::logged_in(port).await;
    let page = browser.page("/tenants/ada").await;
    let address = page.split("data-live=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
    let listening = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get(&address).await }
    });
    browser.submit("/tenants/ada/suspend", "").await;
    assert_eq!(host.status().unwrap().tenants[0].state, "suspended");
    // A page that is opened now has been told what there was.
    let late = browser.page("/tenants/ada").await;
    let address = late.split("data-live=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
    let late = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get(&address).await }
    });
    eventually("both streams have looked", async || host.status().unwrap().agent.uptime_seconds > 6).await;
    browser.post("/logout", &format!("token={}", token(&page))).await;
    let (early, late) = (listening.await.unwrap(), late.await.unwrap());
    for said in [&early, &late] {
        assert_eq!((said.status, &said.headers["content-type"]), (200, &"text/event-stream".parse().unwrap()));
        assert!(has_policy(said) && text(said).ends_with("event: over\ndata: {}\n\n"), "{}", text(said));
    }
    let news: Vec<Value> = text(&early).lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert!(news.iter().any(|piece| piece["standing"].as_str().is_some_and(|html| html.contains("state suspended"))), "{news:#?}");
    let changed = text(&late).lines().filter(|line| line.starts_with("data: {\"")).filter(|line| line.contains("state suspended")).count();
    // How long ago things were is told anew each half minute.
    assert!(changed <= 1, "what stands on it is not sent: {}", text(&late));
    assert_eq!(browser.get("/live?at=/nothing").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; with --release"]
async fn what_10_000_tenants_cost_the_page() {
    const TENANTS: usize = 9_999;
    const RUNNING: usize = 100;
    const TIMES: usize = 50;
    let mut host = Host::prepare(|wanted| {
        // Their instances have a network of their own.
        (wanted.ports, wanted.https) = ((10_001, 19_999), 0);
        for n in 0..TENANTS {
            wanted.add(&format!("somebody.{n:05}@a-company.example.com")).suspended = n >= RUNNING;
        }
    });
    let port = free_port();
    let table = admin::table(host.root(), port);
    host.edit(|wanted| wanted.more = table);
    host.spawn_agent();
    host.within(Duration::from_secs(180), "all is as desired", |status| host.as_wanted(status)).await;
    let browser = Browser::logged_in(port).await;
    for target in [
        "/",
        "/tenants",
        "/tenants?sort=memory&trouble=&q=somebody",
        "/tenants?q=9999&state=suspended",
        "/tenants/somebody.00001@a-company.example.com",
        "/plan",
    ] {
        let (mut took, mut bytes) = (Vec::new(), 0);
        for _ in 0..TIMES {
            let began = Instant::now();
            bytes = browser.get(target).await.body.len();
            took.push(began.elapsed().as_secs_f64() * 1_000.0);
            // The glance of the second before is too old.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        took.sort_by(f64::total_cmp);
        let zipped = gzipped(&browser.page(target).await);
        eprintln!("{target}: median {:.1} ms, worst {:.1} ms, {bytes} bytes, {zipped} with gzip", took[TIMES / 2], took[TIMES - 1]);
        assert!(bytes <= 100 << 10 && (cfg!(debug_assertions) || took[TIMES - 1] <= 200.0), "{target}");
    }
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", host.agent_pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    let during = async |what: &str| {
        let (began, before) = (Instant::now(), ticks());
        tokio::time::sleep(Duration::from_secs(20)).await;
        eprintln!("{what}: {:.2} % of a core", (ticks() - before) as f64 / began.elapsed().as_secs_f64());
    };
    during("nobody looks").await;
    let mut open = Vec::new();
    for n in 0..10 {
        let target = ["/", "/tenants?sort=memory", "/tenants/somebody.00001@a-company.example.com"][n % 3];
        let page = browser.page(target).await;
        let address = page.split("data-live=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
        let browser = browser.clone();
        open.push(tokio::spawn(async move { browser.get(&address).await }));
    }
    during("ten pages are open").await;
    open.iter().for_each(tokio::task::JoinHandle::abort);
}

fn gzipped(text: &str) -> usize {
    let mut child = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    child.wait_with_output().unwrap().stdout.len()
}
