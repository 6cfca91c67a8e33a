// The tree of heads: a column a step, a row a branch. The branches' names stay where they are while
// the heads scroll.

import { $, element, replace } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const X = 26, Y = 34, EDGE = 17, MOST = 400;

const kind = (head) => (head.accepted ? "accepted" : head.verdict === "rejected" ? "rejected" : "other");

// The heads that the current branch's steps led to, by step: its own, and those of each branch that
// it comes from, up to the step where it left.
export function path(run, heads) {
  const branches = new Map(run.branches.map((branch) => [branch.branch, branch]));
  const found = [];
  let last = Infinity;
  for (let branch = branches.get(run.branch); branch; branch = branches.get(branch.origin_branch)) {
    found.push(...heads.filter((head) => head.branch === branch.branch && head.step > 0 && head.step <= last));
    last = Math.min(last, branch.origin_step ?? 0);
  }
  return found.sort((a, b) => a.step - b.step);
}

export function draw(run, all, chosen, choose) {
  const place = $("lineage");
  const heads = all.slice(-MOST);
  const rows = run.branches.map(({ branch }) => branch);
  const steps = heads.map(({ step }) => step);
  const first = Math.min(...steps);
  const x = (head) => EDGE + (head.step - first) * X;
  const y = (head) => EDGE + Math.max(0, rows.indexOf(head.branch)) * Y;
  const svg = make("svg", { width: 2 * EDGE + (Math.max(...steps) - first) * X, height: rows.length * Y });
  const byNumber = new Map(heads.map((head) => [head.head, head]));
  for (const head of heads) {
    const parent = byNumber.get(head.parent);
    if (parent) svg.append(make("line", { x1: x(parent), y1: y(parent), x2: x(head), y2: y(head) }));
  }
  for (const head of heads) {
    const live = head.head === run.head;
    const classes = [kind(head), live && "live", head.pruned && "pruned", head.head === chosen && "chosen"];
    const dot = make("circle", {
      cx: x(head), cy: y(head), r: live ? 8 : 6, class: classes.filter(Boolean).join(" "), id: `head-${head.head}`,
      tabindex: 0, role: "button", "aria-label": `head ${head.head}, ${head.verdict}`, "data-head": head.head,
    });
    const title = make("title", {});
    title.textContent = `head ${head.head} · step ${head.step} · ${head.verdict}\n${head.reason}`;
    dot.append(title);
    dot.addEventListener("click", () => choose(head.head));
    dot.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(head.head);
    });
    svg.append(dot);
  }
  const names = element("div", undefined, "branches");
  names.append(...rows.map((name) => element("span", name)));
  const end = place.scrollLeft + place.clientWidth >= place.scrollWidth - 8;
  replace(place, names, svg);
  if (end) place.scrollLeft = place.scrollWidth;
  $("more-heads").hidden = all.length <= MOST;
  replace($("more-heads"), `The last ${MOST} of ${all.length} heads.`);
}

function make(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
