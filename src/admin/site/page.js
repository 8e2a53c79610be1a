// Brings an open page up to date. Every page is whole without this: it swaps pieces that the server sends, and never makes any.
"use strict";
(() => {
  const connection = document.getElementById("live");
  const news = document.getElementById("news");
  const say = (text, on) => {
    if (!connection || connection.textContent === text) return;
    connection.textContent = text;
    connection.className = "connection " + (on ? "on" : "off");
  };

  // A piece in the place of the one before. Focus and what is scrolled stay where they were.
  const swap = (name, html) => {
    const place = document.querySelector(`[data-part="${name}"]`);
    if (!place) return;
    const told = place.querySelector("[data-news]")?.textContent;
    const active = place.contains(document.activeElement) ? document.activeElement : null;
    const all = active ? [...place.querySelectorAll("a, button, [tabindex]")] : [];
    const at = all.indexOf(active);
    const log = place.querySelector(".log");
    const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    const scrolled = log?.scrollTop ?? 0;
    place.innerHTML = html;
    const log2 = place.querySelector(".log");
    if (log2) log2.scrollTop = atEnd ? log2.scrollHeight : scrolled;
    if (active) {
      const same = [...place.querySelectorAll("a, button, [tabindex]")];
      const again = same.find((one) => one.href && one.href === active.href) ?? same[at];
      again?.focus({ preventScroll: true });
    }
    // Read out is the sentence that sums a piece up, and only where that is another one.
    const now = place.querySelector("[data-news]")?.textContent;
    if (news && now && now !== told) news.textContent = now;
  };

  // Who is led to the log-in is not logged in any more.
  const again = async (address) => {
    const answer = await fetch(location.href, { method: "HEAD", credentials: "same-origin" }).catch(() => null);
    if (answer?.redirected) say("logged out: reload to log in", false);
    else listen(address);
  };
  let stream;
  const listen = (address) => {
    stream?.close();
    if (!address || !window.EventSource) return;
    stream = new EventSource(address);
    stream.onopen = () => say("live", true);
    stream.onmessage = (event) => {
      for (const [name, html] of Object.entries(JSON.parse(event.data))) swap(name, html);
    };
    stream.addEventListener("over", () => {
      stream.close();
      say("logged out: reload to log in", false);
    });
    const mine = stream;
    stream.onerror = () => {
      if (mine !== stream) return;
      say("connection lost", false);
      // Refused: by a host that is not up yet, or for want of a session.
      if (mine.readyState === EventSource.CLOSED) setTimeout(() => mine === stream && again(address), 5000);
    };
  };
  listen(document.body.dataset.live);
  addEventListener("pagehide", () => stream?.close());
  addEventListener("pageshow", (event) => event.persisted && listen(document.body.dataset.live));

  // A log is read from its end.
  for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;

  // A search shows what it finds while one types.
  const place = () => location.pathname + location.search;
  let here = place();
  let asked = 0;
  const show = async (address, keep) => {
    const mine = ++asked;
    const answer = await fetch(address, { credentials: "same-origin" });
    if (mine !== asked) return;
    if (!answer.ok || answer.redirected) return void location.assign(address);
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (mine !== asked) return;
    // The form that is typed into is no such piece, and stays.
    for (const part of found.querySelectorAll("main [data-part]")) swap(part.dataset.part, part.innerHTML);
    history[keep ? "replaceState" : "pushState"](null, "", address);
    here = place();
    document.body.dataset.live = found.body.dataset.live ?? "";
    // Not with every letter.
    stream?.close();
    setTimeout(() => mine === asked && listen(document.body.dataset.live), 800);
  };
  for (const form of document.querySelectorAll("form[data-searches]")) {
    const address = () => {
      const wish = [...new FormData(form)].filter(([, value]) => value !== "");
      const query = new URLSearchParams(wish).toString();
      return form.getAttribute("action") + (query ? "?" + query : "");
    };
    let timer;
    form.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => show(address(), true).catch(() => say("connection lost", false)), 200);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      show(address(), false).catch(() => say("connection lost", false));
    });
  }
  // Back and forth between searches; a jump within a page is none.
  addEventListener("popstate", () => place() !== here && location.reload());

  // Nothing is sent twice.
  addEventListener("submit", (event) => {
    if (event.defaultPrevented || event.target.method !== "post") return;
    const button = event.submitter;
    setTimeout(() => {
      if (!button) return;
      button.disabled = true;
      if (button.classList.contains("primary")) button.textContent = "Under way…";
    });
  });
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("button[disabled]")) button.disabled = false;
  });
})();
