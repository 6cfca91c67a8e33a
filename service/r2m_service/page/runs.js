// The list of runs: newest first, those that the search finds, archived ones apart.

import { $, button, element, replace } from "./dom.js";

export function draw(runs, chosen, choose) {
  const wanted = $("search").value.trim().toLowerCase();
  const found = runs.filter(({ run }) => run.toLowerCase().includes(wanted)).reverse();
  const rows = (archived) =>
    found.filter((run) => run.archived === archived).map((run) => row(run, run.run === chosen, choose));
  const open = rows(false);
  const archived = rows(true);
  replace($("runs"), ...open);
  replace($("archived-runs"), ...archived);
  replace($("archived-count"), `Archived (${archived.length})`);
  $("archived").hidden = !archived.length;
  $("search").hidden = !runs.length;
  $("unfound").hidden = !runs.length || found.length > 0;
  $("none").hidden = runs.length > 0;
}

function row(run, chosen, choose) {
  const made = button(run.run, () => choose(run.run));
  made.id = `run-${run.run}`;
  const state = run.frozen ? "frozen" : run.advice === "ok" ? "" : run.advice;
  made.append(element("small", `step ${run.step} · head ${run.head}${state && ` · ${state}`}`));
  if (chosen) made.setAttribute("aria-current", "true");
  return made;
}
