// The audit trail: what was changed beside aligns, when, by whom and why. Newest first.

import { $, element, replace } from "./dom.js";

const MOST = 50;

const DETAIL = {
  created: () => [],
  updated: (detail) => Object.entries(detail).flatMap(([name, [before, after]]) => moved(name, before, after)),
  alias: ({ alias, head }) => [`${alias} → head ${head}`],
  rollback: ({ head, step, branch, from_head }) => [`head ${from_head} → head ${head} (step ${step}), new branch ${branch}`],
  anchors: ({ pairs }) => [`${pairs} pairs`],
};

export function draw(changes) {
  const rows = changes.slice(-MOST).reverse().map((change) => {
    const row = element("tr");
    const time = element("time", new Date(change.at).toLocaleString());
    time.dateTime = change.at;
    const when = element("td");
    when.append(time);
    const what = element("td", change.what);
    const detail = (DETAIL[change.what] ?? named)(change.detail).join(", ");
    if (detail) what.append(" ", element("span", detail, "quiet"));
    row.append(when, what, element("td", change.caller ?? ""), element("td", change.reason ?? ""));
    return row;
  });
  replace($("changes"), ...rows);
  $("more-changes").hidden = changes.length <= MOST;
  replace($("more-changes"), `The last ${MOST} of ${changes.length} changes.`);
}

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const named = (detail) => Object.entries(detail).map(([name, value]) => `${name} ${text(value)}`);

// What of a setting was changed, each of its parts by itself.
function moved(name, before, after) {
  if (text(before) === text(after)) return [];
  const parts = [before, after].every((value) => value && typeof value === "object" && !Array.isArray(value));
  if (!parts) return [`${name} ${text(before)} → ${text(after)}`];
  return Object.keys(after).flatMap((key) => moved(`${name}.${key}`, before[key], after[key]));
}
