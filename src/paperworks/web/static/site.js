// What the pages do beyond links and forms: keys, results as one types, colours, runs as they go on.
// Without this script every page still works.

const find = () => document.querySelector("#find, #find-here");

// Colours

const names = { auto: "as the system has them", light: "light", dark: "dark" };
const themeButton = document.querySelector("button.theme");

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.querySelector("[data-theme-name]").textContent = names[theme];
  themeButton.title = `Colours: ${names[theme]}`;
}

if (themeButton) {
  const order = ["auto", "light", "dark"];
  let theme = document.documentElement.dataset.theme ?? "auto";
  showTheme(theme);
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    showTheme(theme);
    try {
      if (theme === "auto") localStorage.removeItem("theme");
      else localStorage.setItem("theme", theme);
    } catch {
      // Not kept, where storage is forbidden.
    }
  });
}

// Keys

const dialog = document.querySelector("#keys");
const entries = () => [...document.querySelectorAll("main .entry")];
let current = null;

function choose(entry) {
  current?.classList.remove("current");
  current = entry;
  entry.classList.add("current");
  entry.querySelector("a").focus({ preventScroll: true });
  entry.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const all = entries();
  if (!all.length) return;
  const focused = document.activeElement?.closest?.(".entry");
  const at = all.indexOf(all.includes(focused) ? focused : current);
  choose(all[Math.min(all.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
}

function showKeys() {
  if (!dialog.open) dialog.showModal();
}

document.querySelectorAll(".for-keys").forEach((one) => (one.hidden = false));
document.querySelector("[data-keys]")?.addEventListener("click", showKeys);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches?.("input, textarea, select, [contenteditable]");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (dialog.open) return;
  const focused = document.activeElement?.closest?.(".entry") ?? current;
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "o" && focused) focused.querySelector("a").click();
  else if (event.key === "/") find()?.focus();
  else if (event.key === "?") showKeys();
  else return;
  event.preventDefault();
});

// Results as one types

function live(form) {
  const results = document.getElementById(form.dataset.live);
  let asked = 0;
  let running = null;
  let timer = 0;

  async function show() {
    const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
    const mine = ++asked;
    running?.abort();
    running = new AbortController();
    results.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`/search?${query}&fragment=1`, { signal: running.signal });
      if (!answer.ok) return;
      const text = await answer.text();
      if (mine !== asked) return;
      results.innerHTML = text;
      history.replaceState(null, "", query.size ? `/search?${query}` : "/search");
      current = null;
    } catch (error) {
      if (error.name !== "AbortError") console.warn("search", error);
    } finally {
      if (mine === asked) results.removeAttribute("aria-busy");
    }
  }

  form.addEventListener("input", (event) => {
    if (event.isComposing) return;
    clearTimeout(timer);
    timer = setTimeout(show, 200);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    show();
  });
}

document.querySelectorAll("form[data-live]").forEach(live);

// A run as it goes on

function watch(place) {
  const field = (name) => place.querySelector(`[data-field="${name}"]`);
  const bar = place.querySelector("progress");
  const source = new EventSource(place.dataset.events);

  function show(run) {
    const state = field("state");
    if (state.textContent !== run.state) {
      state.textContent = run.state;
      state.className = `state ${run.state}`;
    }
    const ready = run.state === "running" ? "getting ready" : "";
    field("counts").textContent = run.total ? `${run.done} of ${run.total} trials` : ready;
    field("message").textContent = run.message;
    bar.max = run.total || 1;
    bar.value = run.done;
    field("running").replaceChildren(
      ...run.running.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
    const verdicts = field("verdicts");
    for (const [claim, status] of Object.entries(run.verdicts)) {
      const row = document.createElement("li");
      row.dataset.claim = claim;
      row.append(place.querySelector(`template[data-badge="${status}"]`).content.cloneNode(true), " ");
      row.append(Object.assign(document.createElement("code"), { textContent: claim }));
      const before = verdicts.querySelector(`[data-claim="${CSS.escape(claim)}"]`);
      if (before) before.replaceWith(row);
      else verdicts.append(row);
    }
    if (!["waiting", "running"].includes(run.state)) {
      source.close();
      place.querySelector("form")?.remove();
    }
  }

  source.addEventListener("message", (event) => show(JSON.parse(event.data)));
}

document.querySelectorAll("[data-events]").forEach(watch);
