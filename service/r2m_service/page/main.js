// What an operator wants to know at a glance: is it healthy, is it learning, is it drifting, which
// head is live and why. Asks the server every few seconds; nothing is kept.

import * as actions from "./actions.js";
import { ask, key, run as at } from "./api.js";
import * as charts from "./charts.js";
import { $, number, short, show } from "./dom.js";
import * as headCard from "./head.js";
import * as lineage from "./lineage.js";
import * as runList from "./runs.js";
import * as summary from "./summary.js";
import * as trail from "./trail.js";

const EVERY = 2000;
const state = { runs: [], run: null, heads: [], seen: "", chosen: null, used: null, refused: null };

// ------------------------------------------------------------------------------- the server

async function health() {
  const pill = $("health");
  let ready = { limits: {} };
  try {
    ready = await ask("readyz");
    show("health", "ready");
    pill.className = "pill good";
    pill.title = "";
  } catch (error) {
    // Probes may have an address of their own (--ops): then this much is known, that it answers.
    const elsewhere = error.code === "not_found";
    show("health", elsewhere ? "up" : error.code === "not_ready" ? "not ready" : "no answer");
    pill.className = elsewhere ? "pill good" : "pill bad";
    pill.title = error.message;
  }
  for (const [id, name, form] of [
    ["queue", "queue_samples", number],
    ["requests", "inflight_requests", number],
    ["bytes", "inflight_bytes", (value) => `${short(value)}B`],
  ]) {
    const limit = ready.limits[name];
    show(id, limit ? form(limit.used) : "–");
    $(`${id}-bar`).value = limit?.limit ? limit.used / limit.limit : 0;
    $(`${id}-bar`).title = limit?.limit ? `of ${form(limit.limit)}` : "";
  }
}

function rates(runs) {
  const now = { at: performance.now(), samples: 0, tokens: 0 };
  for (const { usage } of runs) {
    now.samples += usage?.samples ?? 0;
    now.tokens += usage?.tokens ?? 0;
  }
  const before = state.used;
  state.used = now;
  if (!before || now.samples < before.samples) return;
  const seconds = (now.at - before.at) / 1000;
  show("rate", number((now.samples - before.samples) / seconds));
  show("tokens", short((now.tokens - before.tokens) / seconds));
}

// Where the server wants a key, the page asks for one in place of what it cannot show.
function signIn(error) {
  $("content").hidden = Boolean(error);
  if (!error) return;
  const text = "This server takes calls with an API key alone. A key stays in this tab until the tab is closed.";
  show("sign-in-text", key.get() ? error.message : text);
  showKey();
}

function showKey() {
  if (!$("sign-in").hidden) return;
  $("sign-in").hidden = false;
  $("key").focus();
}

// ------------------------------------------------------------------------------- the run

function renderRuns() {
  runList.draw(state.runs, state.run?.run, choose);
}

function renderRun() {
  const { run } = state;
  $("run").hidden = !run;
  if (!run) return;
  show("name", run.run + (run.archived ? " (archived)" : ""));
  summary.draw(run, state.heads);
  show("freeze", run.frozen ? "Lift the freeze…" : "Freeze…");
  $("freeze").hidden = run.archived;
}

function renderCharts() {
  charts.draw(state.run, lineage.path(state.run, state.heads));
}

function renderHeads() {
  const { run, heads, chosen } = state;
  lineage.draw(run, heads, chosen, pick);
  headCard.draw(run, heads.find(({ head }) => head === chosen), {
    rollBack: (head) => actions.rollBack(run, head, act),
    promote: (head) => actions.promote(run, head, act),
  });
}

function pick(head) {
  state.chosen = head;
  renderHeads();
}

async function choose(name) {
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  state.chosen = null;
  await refresh();
}

async function act(path, method, body) {
  try {
    await ask(path, { method, body });
    state.refused = null;
  } catch (error) {
    state.refused = error;
  }
  await refresh();
}

$("freeze").addEventListener("click", () => actions.freeze(state.run, act));
$("search").addEventListener("input", () => {
  $("archived").open = $("search").value !== "";
  renderRuns();
});
$("change-key").addEventListener("click", () => {
  show("sign-in-text", "Kept in this tab until the tab is closed. Empty: none.");
  $("key").value = key.get();
  showKey();
});
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("sign-in").hidden = true;
  refresh();
});
$("sign-in").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("content").hidden) $("sign-in").hidden = true;
});

// ------------------------------------------------------------------------------- the clock

async function look() {
  await health();
  try {
    state.runs = (await ask("v1/runs")).runs;
    signIn(null);
    rates(state.runs);
    const named = decodeURIComponent(location.hash.slice(1));
    const newest = state.runs.findLast((run) => !run.archived) ?? state.runs.at(-1);
    const chosen = state.runs.find(({ run }) => run === named) ?? newest;
    state.run = chosen ? await ask(at(chosen.run)) : null;
    if (state.run) await readHistory(state.run);
    renderRuns();
    renderRun();
    trouble(state.refused);
    if (!$("model").textContent) {
      const server = await ask("v1/server");
      show("model", `${server.model} on ${server.device}, ${server.dtype}`);
    }
  } catch (error) {
    const unknown = error.code === "unauthenticated";
    if (unknown) signIn(error);
    trouble(unknown ? null : error);
  }
}

// Heads and changes are read and drawn anew where the run has moved.
async function readHistory(run) {
  const { usage, disk, audit, rejections, ...moves } = run;
  const seen = JSON.stringify(moves);
  if (seen === state.seen) return;
  const [{ heads }, { changes }] = await Promise.all([ask(at(run.run, "/heads")), ask(at(run.run, "/changes"))]);
  state.heads = heads;
  state.seen = seen;
  $("run").hidden = false; // charts are as wide as their place, which has no width while hidden
  renderCharts();
  renderHeads();
  trail.draw(changes);
}

function trouble(error) {
  $("trouble").hidden = !error;
  show("trouble", error ? error.message : "");
}

// One look after the other: an answer that is late never overwrites a newer one.
let going = Promise.resolve();
function refresh() {
  going = going.then(look);
  return going;
}

async function tick() {
  if (!document.hidden) await refresh();
  setTimeout(tick, EVERY);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.run && renderCharts());
tick();
