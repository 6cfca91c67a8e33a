// One head's numbers, and what can be done with it.

import { $, button, element, number, replace, short } from "./dom.js";

export function draw(run, head, { rollBack, promote }) {
  if (!head) return replace($("head"), element("p", "Choose a head to see it.", "quiet"));
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
  row("aliases", head.aliases.join(", "));
  row("loss", Object.entries(loss).map(([name, value]) => `${name} ${number(value)}`).join(", "));
  row("groups", groups && `${groups.used} used (${groups.labelled} with outside labels), ${groups.skipped} left out`);
  row("drift", drift && `spread ratio ${number(drift.spread_ratio)}, rank correlation ${number(drift.rank_correlation)} against head ${drift.reference}`);
  row("ω", number(head.omega));
  row("file", head.pruned ? "let go" : `${short(head.bytes)}B, sha256 ${head.sha256}`);
  const buttons = element("div", undefined, "buttons");
  if (!head.pruned && !run.archived) {
    // An update goes on from the optimizer's state, which only the newest heads keep.
    const resumable = head.accepted && (head.t === 0 || head.optimizer_bytes !== undefined);
    if (resumable && head.head !== run.head) buttons.append(button("Roll back to it…", () => rollBack(head)));
    buttons.append(button("Point an alias at it…", () => promote(head)));
  }
  replace($("head"), element("h3", `Head ${head.head}`), table, buttons);
}
