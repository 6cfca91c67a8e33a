// The run at a glance: a tile each for the live head, learning, drift, outside labels and controls.

import { $, element, number, replace } from "./dom.js";

export function draw(run, heads) {
  const live = heads.find((head) => head.head === run.head);
  const path = heads.filter((head) => head.step > 0 && head.branch === run.branch);
  const made = [liveHead(run, live), learning(run, path), drift(run, live, path.at(-1)), labels(run)];
  const arms = live?.metrics.controls?.arms ?? [];
  if (arms.length) made.push(controls(arms));
  replace($("tiles"), ...made);
}

function tile(title, tone, word, ...lines) {
  const made = element("div", undefined, `tile ${tone}`);
  made.append(element("h3", title), element("b", word));
  made.append(...lines.filter(Boolean).map((line) => element("p", line)));
  return made;
}

function liveHead(run, live) {
  const place = live && `${live.verdict}, step ${live.step} of ${run.step} on ${run.branch}`;
  return tile("Live head", "", `head ${run.head}`, place, live?.reason);
}

function learning(run, path) {
  const recent = path.slice(-20);
  const accepted = recent.filter((head) => head.accepted).length;
  const rejections = run.rejections ? `${run.rejections} rejected in a row` : "";
  if (run.frozen) return tile("Learning", "warn", "frozen", run.frozen, rejections);
  if (!recent.length) return tile("Learning", "", `no step yet on ${run.branch}`);
  const last = `last: ${path.at(-1).verdict}, ${path.at(-1).reason}`;
  return tile("Learning", accepted ? "good" : "bad", `${accepted} of ${recent.length} accepted`, last, rejections);
}

// The live head's numbers are those of the step that made it. The last candidate has its own.
function drift(run, live, last) {
  const { spread_ratio: ratio, rank_correlation: rank, feedback_gain: gain } = live?.metrics.evidence ?? {};
  const { spread_min: min, spread_max: max, rank_correlation_min: least } = run.method.gate;
  const outside = ratio < min || ratio > (max ?? Infinity) || rank < (least ?? -1);
  const { spread_ratio, rank_correlation, reference } = last?.metrics.drift ?? {};
  return tile(
    "Drift of the live head",
    ratio === undefined ? "" : outside ? "warn" : "good",
    ratio === undefined ? "not measured" : `spread ${number(ratio)} × version 0`,
    rank !== undefined && `rank correlation ${number(rank)} with version 0`,
    gain !== undefined && `feedback gain ${number(gain)}`,
    last && !last.accepted && spread_ratio !== undefined &&
      `${last.verdict} candidate, head ${last.head}: spread ${number(spread_ratio)} × head ${reference}, ` +
        `rank correlation ${number(rank_correlation)}`,
  );
}

function labels({ advice, audit }) {
  const judged = audit?.judged;
  const tone = advice === "stop" ? "bad" : advice === "warn" ? "warn" : judged ? "good" : "";
  return tile(
    "Outside labels",
    tone,
    tone ? `advice: ${advice}` : "none yet",
    judged && `gap ${number(audit.gap)}, CUSUM ${number(audit.cusum)}, ${judged} judged`,
    audit?.waiting && `${audit.waiting} wait for a label`,
  );
}

function controls(arms) {
  const verdicts = arms.map((arm) => arm.verdict);
  const better = verdicts.includes("control_is_better");
  const all = verdicts.every((verdict) => verdict === "feedback_pays" || verdict === "not_available");
  const pays = all && verdicts.includes("feedback_pays");
  return tile(
    "Does feedback pay?",
    `wide ${better ? "warn" : pays ? "good" : ""}`,
    better ? "a control is better" : pays ? "it pays" : "not shown yet",
    ...arms.map(controlLine),
  );
}

function controlLine({ control, verdict, total, note }) {
  const said = verdict.replaceAll("_", " ");
  if (total.difference === undefined) return `${control}: ${note || said}`;
  const points = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)}`;
  return `less ${control}: ${points(total.difference)} points (${points(total.low)} to ${points(total.high)}) on ${total.pairs} labels, ${said}`;
}
