// What people do on the page: by mouse, by keyboard, on a phone, in the dark, without a script. Run by contrib/ci/page.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";

import axe from "axe-core";
import { chromium } from "playwright-core";

const { PAGE_URL: base, PAGE_KEY: key, PAGE_HOST: host, PAGE_PROGRAM: program, SCREENSHOT: screenshot, NO_SANDBOX } = process.env;
const PAGES = ["/", "/tenants", "/tenants/ada@acme.example", "/tenants/ada@acme.example/suspend", "/events", "/alerts", "/plan", "/nothing"];
const DESK = { viewport: { width: 1280, height: 860 } };
const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true };

let browser;
/** What the browser complained of: the policy, a script, a file that is not there. */
const complaints = [];

// It exits with 2 where something is wrong, which is what some of this is about.
const status = () => JSON.parse(spawnSync(program, ["status", "--json", "--tenants", `${host}/tenants.toml`], { encoding: "utf8" }).stdout);
const tenant = (id) => status().tenants.find((one) => one.id === id);

/** Until `what` holds. */
const eventually = async (what, holds, seconds = 20) => {
  const end = Date.now() + seconds * 1000;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `not within ${seconds} s: ${what}`);
    await new Promise((go) => setTimeout(go, 100));
  }
};

const open = async (options = {}) => {
  const context = await browser.newContext({ ...DESK, ...options });
  context.setDefaultTimeout(15000);
  const page = await context.newPage();
  page.on("console", (message) => {
    // That a page is not there, or a key is wrong, is what a test asks for.
    const wanted = /404|403/.test(message.text()) && /\/(nothing|login)$/.test(message.location().url);
    if (["error", "warning"].includes(message.type()) && !wanted) complaints.push(`${page.url()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`${page.url()}: ${error}`));
  return page;
};

const logIn = async (page, name = "") => {
  await page.goto(`${base}/login`);
  await page.fill("#key", key);
  if (name) await page.fill("#name", name);
  await page.click("main button");
  await page.waitForURL(`${base}/`);
  return page;
};

before(async () => {
  const flags = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: NO_SANDBOX ? [...flags, "--no-sandbox"] : flags });
});

after(async () => {
  await browser?.close();
});

test("a wrong key is refused, the right one leads where one wanted to", async () => {
  const page = await open();
  await page.goto(`${base}/tenants?q=grace`);
  await page.keyboard.type("not the key");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "That is not the key." }).waitFor();
  await page.keyboard.type(key);
  await page.keyboard.press("Tab");
  await page.keyboard.type("grace");
  await page.keyboard.press("Enter");
  await page.waitForURL(`${base}/tenants?q=grace`);
  assert.equal(await page.locator("tbody tr").count(), 3);
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/"]);
  await page.context().close();
});

test("a search shows what it finds while one types, columns sort, pages turn", async () => {
  const page = await logIn(await open());
  await page.click("nav >> text=Tenants");
  assert.equal(await page.locator("tbody tr").count(), 50);
  await page.click("a[rel=next]");
  await page.waitForURL(/page=2/);
  assert.equal(await page.locator("tbody tr").count(), 22);
  await page.evaluate(() => (window.stays = true));
  await page.locator("#q").pressSequentially("Quarry");
  await eventually("24 are shown", async () => (await page.locator(".summary").textContent()) === "24 tenants");
  assert.ok(page.url().includes("q=Quarry") && (await page.evaluate(() => window.stays)), "without another page");
  assert.equal(await page.evaluate(() => document.activeElement.id), "q", "and one goes on typing");
  await page.selectOption("#state", "suspended");
  await eventually("one is shown", async () => (await page.locator("tbody tr").count()) === 1);
  assert.match(await page.locator("tbody tr").textContent(), /vint@quarry\.example.*suspended/);
  await page.goto(`${base}/tenants`);
  await page.click("th >> text=Storage");
  await page.waitForURL(/sort=storage/);
  assert.equal(await page.locator("th[aria-sort=descending]").textContent(), "Storage ▼");
  // It is looked at each 20 s.
  await eventually("who was given most to keep comes first", async () => {
    await page.reload();
    return (await page.locator("tbody tr").first().textContent()).includes("margaret@acme");
  }, 60);
  await page.context().close();
});

test("a restart is asked for, done, and seen on a page that is open", async () => {
  const page = await logIn(await open(), "grace");
  const watching = await page.context().newPage();
  await watching.goto(`${base}/tenants/ada@acme.example`);
  await watching.locator("#live", { hasText: "live" }).waitFor();
  await watching.evaluate(() => (window.stays = true));
  const before = tenant("ada@acme.example");
  await page.goto(`${base}/tenants?q=ada@acme`);
  await page.click("tbody a");
  await page.click("text=Restart…");
  await page.fill("#reason", "a test of it");
  await page.click("main button");
  await page.getByRole("status").filter({ hasText: "another instance answers" }).waitFor();
  assert.ok(tenant("ada@acme.example").epoch > before.epoch);
  await watching.locator("text=start 2 since").waitFor();
  await watching.locator(".part-latest", { hasText: "by grace" }).waitFor();
  assert.ok(await watching.evaluate(() => window.stays), "by itself");
  await page.context().close();
});

test("a tenant is suspended and resumed", async () => {
  const page = await logIn(await open());
  await page.goto(`${base}/tenants/alan@acme.example`);
  await page.click("text=Suspend…");
  await page.click("text=Cancel");
  await page.click("text=Suspend…");
  await page.click("main button");
  await page.locator(".state.suspended").waitFor();
  assert.match(readFileSync(`${host}/tenants.toml`, "utf8"), /alan@acme\.example"\ntier = "team"\nsuspended = true/);
  await page.click("text=Resume…");
  await page.click("main button");
  await page.locator(".state.ready").waitFor();
  await page.context().close();
});

test("an instance that dies again and again is in trouble, and an alert says so", async () => {
  const page = await logIn(await open());
  await page.goto(`${base}/alerts`);
  const id = "tim@orchard.example";
  let died = 0;
  await eventually(
    "it died five times and that is told",
    async () => {
      const { pid, state } = tenant(id);
      if (state === "ready" && pid && died < 6) {
        process.kill(pid, "SIGKILL");
        died += 1;
      }
      return (await page.locator(".alerts li", { hasText: id }).count()) > 0;
    },
    90,
  );
  await page.locator("nav .pill.critical").waitFor();
  await page.goto(`${base}/`);
  await page.locator(".alerts li", { hasText: id }).waitFor();
  await page.context().close();
});

if (screenshot) {
  test("the picture", async () => {
    // A day of the host, which a test cannot wait for.
    const day = `
import sqlite3, math, time
db = sqlite3.connect("${host}/state/instances.db", timeout=10)
total, used, disk, taken, instances, memory = db.execute("SELECT memory_total, memory_used, disk_total, disk_used, instances, instances_memory FROM samples ORDER BY at DESC LIMIT 1").fetchone()
now = int(time.time()) // 60 * 60
for n in range(1, 1440):
    day = (1 - math.cos(n / 1440 * 2 * math.pi)) / 2
    noise = (math.sin(n * 1.7) + math.sin(n * .37) + math.sin(n * 5.1)) / 3
    requests = int(max(0, 300 + 5600 * day + 500 * noise * (.2 + day)))
    db.execute("INSERT OR REPLACE INTO samples VALUES (60, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (now - n * 60, total, int(used + total * (.3 * day + .008 * noise * day)), disk, int(taken - disk * n * 1.6e-5), instances, memory, requests, requests // 900, int(80 + 260 * day + 60 * noise * (.3 + day))))
db.commit()`;
    execFileSync("python3", ["-c", day]);
    const page = await logIn(await open({ viewport: { width: 1160, height: 850 } }), "grace");
    await eventually("the day is drawn", async () => (await page.reload(), page.locator("#p-requests-words", { hasText: /most [4-9],/ }).count()), 30);
    await page.locator("#live", { hasText: "live" }).waitFor();
    await eventually("the processors are measured", async () => (await page.locator("[aria-labelledby=t-cpu]", { hasText: "of all" }).count()) > 0);
    await page.screenshot({ path: screenshot });
    await page.context().close();
  });
}

test("a plan that is held is seen at once, and goes through by its button", async () => {
  const page = await logIn(await open());
  const file = `${host}/tenants.toml`;
  const text = readFileSync(file, "utf8");
  writeFileSync(file, text.replaceAll(/\[\[tenants\]\]\nid = "(?:mary|niklaus|radia)@[^"]*"\ntier = "\w*"\n/g, ""));
  await page.locator("nav .pill", { hasText: "held" }).waitFor();
  await page.click("nav >> text=Plan");
  assert.equal(await page.locator(".diff tbody tr").count(), 9);
  await page.click("text=Confirm the plan…");
  await page.click("main button");
  await page.getByRole("status").filter({ hasText: "is confirmed" }).waitFor();
  await eventually("they are gone", () => status().tenants.length === 63 && !status().held);
  await page.locator("text=No plan is held.").waitFor();
  await page.context().close();
});

for (const [where, options] of [
  ["at a desk", DESK],
  ["on a phone", PHONE],
]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`nothing is in anybody's way ${where}, in the ${colorScheme} scheme`, async () => {
      const page = await open({ ...options, colorScheme, reducedMotion: "reduce" });
      const look = async (path) => {
        await page.goto(base + path);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.equal(wide, 0, `${path} is scrolled sideways`);
        await page.evaluate(axe.source);
        const { violations } = await page.evaluate(() => window.axe.run());
        if (process.env.ALL_FINDINGS) for (const { id, impact, nodes } of violations) console.log(path, impact, id, nodes[0].html.slice(0, 120));
        const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
        assert.deepEqual(grave.map(({ id, nodes }) => [path, id, nodes.slice(0, 3).map((node) => node.html)]), []);
      };
      await look("/login");
      await logIn(page);
      for (const path of PAGES) await look(path);
      await page.context().close();
    });
  }
}

test("a keyboard is enough", async () => {
  const page = await open();
  await page.goto(base);
  // The field has the focus by itself, but a moment after the page was loaded.
  await page.waitForFunction(() => document.activeElement.matches("input"));
  await page.keyboard.type(key);
  await page.keyboard.press("Enter");
  await page.waitForURL(`${base}/`);
  await page.locator("#live", { hasText: "live" }).waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  const tabTo = async (text) => {
    for (let n = 0; n < 120; n++) {
      await page.keyboard.press("Tab");
      const active = await page.evaluate(() => {
        const { activeElement } = document;
        return { text: activeElement.textContent, outline: getComputedStyle(activeElement).outlineStyle };
      });
      assert.notEqual(active.outline, "none", `one sees where one is: ${active.text}`);
      if (active.text.trim().startsWith(text)) return;
    }
    assert.fail(`${text} is out of reach`);
  };
  await page.goto(`${base}/tenants?q=ken@orchard`);
  await tabTo("ken@orchard.example");
  await page.keyboard.press("Enter");
  await page.waitForURL(/tenants\/ken/);
  await tabTo("Restart…");
  await page.keyboard.press("Enter");
  await page.waitForURL(/restart$/);
  await tabTo("Restart");
  await page.keyboard.press("Enter");
  await page.getByRole("status").filter({ hasText: "another instance answers" }).waitFor();
  await tabTo("Log out");
  await page.keyboard.press("Enter");
  await page.waitForURL(`${base}/login`);
  await page.goBack();
  await page.waitForURL(/login/);
  assert.equal(await page.locator("text=ken@orchard").count(), 0, "what was seen is not seen again");
  await page.context().close();
});

test("without a script everything is read and done all the same", async () => {
  const page = await logIn(await open({ javaScriptEnabled: false }));
  for (const path of PAGES) {
    await page.goto(base + path);
    await page.locator("h1").waitFor();
  }
  await page.goto(`${base}/tenants`);
  await page.fill("#q", "sophie");
  await page.selectOption("#sort", "memory");
  await page.click("main button >> text=Show");
  assert.equal(await page.locator("tbody tr").count(), 3);
  assert.equal(await page.locator("tbody .figure").count() >= 3, true);
  await page.click("tbody a >> text=sophie@acme");
  assert.equal(await page.locator("svg .line").count() > 0, true, "plots are drawn");
  await page.click("text=Restart…");
  await page.click("main button");
  await page.getByRole("status").filter({ hasText: "another instance answers" }).waitFor();
  await page.context().close();
});

test("the browser had nothing to complain of", () => {
  assert.deepEqual(complaints, []);
});
