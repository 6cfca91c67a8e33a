// What an operator wants to know at a glance: is it healthy, is it learning, is it drifting, which
// head is live and why. Asks the server every few seconds; nothing is kept.

import { ask, key, run as at } from "./api.js";
import * as charts from "./charts.js";
import * as lineage from "./lineage.js";

const EVERY = 2000;
const $ = (id) => document.getElementById(id);
const state = { runs: [], run: null, heads: [], seen: "", chosen: null, used: null, acting: null };

// ------------------------------------------------------------------------------- what is shown

function show(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Number(value.toPrecision(digits)).toLocaleString("en");
}

function short(value) {
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) (value /= 1000), (unit += 1);
  return number(value) + units[unit];
}

function element(name, text, className) {
  const one = document.createElement(name);
  if (text !== undefined) one.textContent = text;
  if (className) one.className = className;
  return one;
}

function trouble(error) {
  $("trouble").hidden = !error;
  show("trouble", error ? error.message : "");
}

async function health() {
  const pill = $("health");
  let ready = { limits: {} };
  try {
    ready = await ask("readyz");
    show("health", "ready");
    pill.className = "pill good";
  } catch (error) {
    // Probes may have an address of their own (--ops): then this much is known, that it answers.
    const elsewhere = error.code === "not_found";
    const said = error.code === "not_ready" ? "not ready" : "no answer";
    show("health", elsewhere ? "up" : said);
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

function runList() {
  const nav = $("runs");
  nav.replaceChildren(
    ...state.runs.map((one) => {
      const button = element("button", one.run);
      button.type = "button";
      const word = one.archived ? "archived" : one.frozen ? "frozen" : one.advice && one.advice !== "ok" ? one.advice : "";
      button.append(element("small", `step ${one.step} · head ${one.head}${word && ` · ${word}`}`));
      if (one.run === state.run?.run) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => choose(one.run));
      return button;
    }),
  );
  $("none").hidden = state.runs.length > 0;
}

function tiles() {
  const { run, heads } = state;
  const live = heads.find((one) => one.head === run.head);
  const path = heads.filter((one) => one.step > 0 && one.branch === run.branch);
  const last = path.at(-1);
  const recent = path.slice(-20);
  const accepted = recent.filter((one) => one.accepted).length;
  const evidence = live?.metrics.evidence ?? {};
  const stopped = run.advice === "stop" || run.advice === "warn";
  const made = [];
  const tile = (title, tone, word, ...lines) => {
    const card = element("div", undefined, `tile ${tone}`);
    card.append(element("h3", title), element("b", word), ...lines.filter(Boolean).map((line) => element("p", line)));
    made.push(card);
  };
  tile(
    "Live head",
    "",
    `head ${run.head}`,
    live && `${live.verdict}, step ${live.step} of ${run.step} on ${run.branch}`,
    live?.reason,
  );
  tile(
    "Learning",
    run.frozen ? "warn" : recent.length && !accepted ? "bad" : recent.length ? "good" : "",
    run.frozen ? "frozen" : recent.length ? `${accepted} of ${recent.length} accepted` : `no step yet on ${run.branch}`,
    run.frozen || (last && `last: ${last.verdict}, ${last.reason}`),
    run.rejections ? `${run.rejections} rejected in a row` : "",
  );
  const ratio = evidence.spread_ratio;
  tile(
    "Drifting",
    ratio === undefined ? "" : ratio > 2 || ratio < 0.5 ? "bad" : ratio > 1.5 ? "warn" : "good",
    ratio === undefined ? "not measured" : `spread ${number(ratio)} × version 0`,
    evidence.rank_correlation === undefined ? "" : `rank correlation ${number(evidence.rank_correlation)}`,
    evidence.feedback_gain === undefined ? "" : `feedback gain ${number(evidence.feedback_gain)}`,
  );
  const audit = run.audit;
  tile(
    "Outside labels",
    run.advice === "stop" ? "bad" : stopped ? "warn" : audit?.judged ? "good" : "",
    stopped ? `advice: ${run.advice}` : audit?.judged ? "advice: ok" : "none yet",
    audit?.judged ? `gap ${number(audit.gap)}, CUSUM ${number(audit.cusum)}, ${audit.judged} judged` : "",
    audit?.waiting ? `${audit.waiting} wait for a label` : "",
  );
  const arms = live?.metrics.controls?.arms ?? [];
  if (arms.length) {
    const verdicts = arms.map((one) => one.verdict);
    const better = verdicts.includes("control_is_better");
    const all = verdicts.every((one) => one === "feedback_pays" || one === "not_available");
    const paid = all && verdicts.includes("feedback_pays");
    tile(
      "Does feedback pay?",
      `wide ${better ? "warn" : paid ? "good" : ""}`,
      better ? "a control is better" : paid ? "it pays" : "not shown yet",
      ...arms.map((one) => controlLine(one)),
    );
  }
  $("tiles").replaceChildren(...made);
}

function controlLine({ control, verdict, total, note }) {
  const said = verdict.replaceAll("_", " ");
  if (total.difference === undefined) return `${control}: ${note || said}`;
  const points = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)}`;
  return `less ${control}: ${points(total.difference)} points (${points(total.low)} to ${points(total.high)}) on ${total.pairs} labels, ${said}`;
}

function headCard() {
  const place = $("head");
  const head = state.heads.find((one) => one.head === state.chosen);
  if (!head) return place.replaceChildren(element("p", "Choose a head to see it.", "quiet"));
  const table = element("table");
  const row = (name, value) => {
    if (value === undefined || value === null || value === "") return;
    const line = element("tr");
    line.append(element("th", name), element("td", String(value)));
    table.append(line);
  };
  const { loss = {}, drift, groups } = head.metrics;
  row("verdict", `${head.verdict}: ${head.reason}`);
  row("made", `step ${head.step} of ${head.branch}, from head ${head.parent ?? "–"}, ${head.created_at}`);
  row("aliases", head.aliases?.join(", "));
  row("loss", Object.entries(loss).map(([name, value]) => `${name} ${number(value)}`).join(", "));
  row("groups", groups && `${groups.used} used (${groups.labelled} with outside labels), ${groups.skipped} left out`);
  row("drift", drift && `spread ratio ${number(drift.spread_ratio)}, rank correlation ${number(drift.rank_correlation)} against head ${drift.reference}`);
  row("ω", number(head.omega));
  row("file", head.pruned ? "let go" : `${short(head.bytes)}B, sha256 ${head.sha256}`);
  const buttons = element("div", undefined, "buttons");
  const button = (text, work) => {
    const one = element("button", text);
    one.type = "button";
    one.addEventListener("click", work);
    buttons.append(one);
  };
  if (!head.pruned && !state.run.archived) {
    // An update goes on from the optimizer's state, which only the newest heads keep.
    const resumable = head.t === 0 || head.optimizer_bytes !== undefined;
    if (resumable && head.head !== state.run.head) button("Roll back to it…", () => rollBack(head));
    button("Point an alias at it…", () => promote(head));
  }
  place.replaceChildren(element("h3", `Head ${head.head}`), table, buttons);
}

function render() {
  const { run } = state;
  $("run").hidden = !run;
  if (!run) return;
  show("name", run.run + (run.archived ? " (archived)" : ""));
  tiles();
  show("freeze", run.frozen ? "Lift the freeze…" : "Freeze…");
  $("freeze").hidden = run.archived;
}

// The heads change with a step or an alias: then they are drawn anew.
function renderHeads() {
  const { run, heads } = state;
  const steps = new Map();
  for (const one of heads) if (one.branch === run.branch || one.step <= origin(run)) steps.set(one.step, one);
  charts.draw($("charts"), run.run, [...steps.values()].filter((one) => one.step > 0).sort((a, b) => a.step - b.step));
  lineage.draw($("lineage"), run, heads, state.chosen, pick);
  headCard();
}

function origin(run) {
  return run.branches.find((one) => one.branch === run.branch)?.origin_step ?? 0;
}

// ------------------------------------------------------------------------------- what is done

function pick(head) {
  state.chosen = head;
  renderHeads();
}

// Asks before it acts; resolves to the field's text, or null.
function confirmed(title, text, yes, field = "Why (kept in the audit trail)", value = "") {
  const dialog = $("ask");
  show("ask-title", title);
  show("ask-text", text);
  show("ask-name", field);
  show("ask-yes", yes);
  $("ask-input").value = value;
  $("ask-input").type = field.startsWith("API key") ? "password" : "text";
  dialog.returnValue = "no";
  dialog.showModal();
  $("ask-input").focus();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes" ? $("ask-input").value : null), { once: true });
  });
}

async function act(path, method, body) {
  try {
    await ask(path, { method, body });
    state.acting = null;
    state.seen = "";
  } catch (error) {
    state.acting = error;
  }
  await refresh();
}

async function rollBack(head) {
  const why = await confirmed(
    `Back to head ${head.head}?`,
    `A new branch begins at head ${head.head} (step ${head.step}) and becomes the current one: scores by “live” change at once. Nothing is lost.`,
    "Roll back",
  );
  if (why !== null) await act(at(state.run.run, "/rollback"), "POST", { to: head.head, ...(why && { reason: why }) });
}

async function promote(head) {
  const alias = await confirmed(
    `Point an alias at head ${head.head}`,
    "Whoever scores by this alias gets this head from now on. “live” moves by rollback alone.",
    "Point it there",
    "Alias",
    "champion",
  );
  if (alias) await act(at(state.run.run, `/aliases/${encodeURIComponent(alias)}`), "PUT", { head: head.head });
}

$("freeze").addEventListener("click", async () => {
  const frozen = Boolean(state.run.frozen);
  const why = await confirmed(
    frozen ? "Lift the freeze?" : "Freeze this run?",
    frozen ? `Frozen: ${state.run.frozen}. Aligns change the head again.` : "Scores go on; aligns are answered and change nothing, until the freeze is lifted.",
    frozen ? "Lift it" : "Freeze",
  );
  if (why !== null) await act(at(state.run.run), "PATCH", { frozen: !frozen, ...(why && { reason: why }) });
});

$("key").addEventListener("click", async () => {
  const given = await confirmed("API key", "Kept in this tab until it is closed.", "Use it", "API key (empty: none)", key.get());
  if (given !== null) {
    key.set(given.trim());
    state.seen = "";
    await refresh();
  }
});

async function choose(name) {
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  state.run = null;
  state.chosen = null;
  state.seen = "";
  await refresh();
}

// ------------------------------------------------------------------------------- the clock

async function refresh() {
  await health();
  try {
    state.runs = (await ask("v1/runs")).runs;
    rates(state.runs);
    const named = decodeURIComponent(location.hash.slice(1));
    const chosen = state.runs.find((one) => one.run === named) ?? state.runs.at(-1);
    state.run = chosen ? await ask(at(chosen.run)) : null;
    runList();
    render();
    if (state.run) {
      const { run } = state;
      const seen = JSON.stringify([run.run, run.step, run.head, run.branch, run.aliases]);
      if (seen !== state.seen) {
        state.heads = (await ask(at(run.run, "/heads"))).heads;
        state.seen = seen;
        render();
        renderHeads();
      }
    }
    trouble(state.acting);
  } catch (error) {
    trouble(error);
  }
}

let going = null;
async function tick() {
  if (!document.hidden && !going) going = refresh().finally(() => (going = null));
  await going;
  setTimeout(tick, EVERY);
}

ask("v1/server")
  .then((server) => show("model", `${server.model} on ${server.device}, ${server.dtype}`))
  .catch(() => {});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.run && renderHeads());
tick();
