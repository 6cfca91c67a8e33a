// The tree of heads: a column a step, a row a branch.

const SVG = "http://www.w3.org/2000/svg";
const X = 26, Y = 34, LEFT = 70, MOST = 400;

export const kind = (head) =>
  head.accepted ? "accepted" : head.verdict === "rejected" ? "rejected" : "other";

export function draw(place, run, heads, chosen, choose) {
  const all = heads;
  heads = heads.slice(-MOST);
  const rows = run.branches.map((one) => one.branch);
  const first = Math.min(...heads.map((head) => head.step));
  const last = Math.max(...heads.map((head) => head.step));
  const x = (head) => LEFT + (head.step - first) * X;
  const y = (head) => 22 + Math.max(0, rows.indexOf(head.branch)) * Y;
  const svg = make("svg", { width: LEFT + (last - first + 1) * X, height: 22 + rows.length * Y });
  rows.forEach((name, row) => add(svg, "text", { x: 8, y: 26 + row * Y }, name));
  const byNumber = new Map(heads.map((head) => [head.head, head]));
  for (const head of heads) {
    const parent = byNumber.get(head.parent);
    if (parent) add(svg, "line", { x1: x(parent), y1: y(parent), x2: x(head), y2: y(head) });
  }
  for (const head of heads) {
    const live = head.head === run.head;
    const classes = [kind(head), live && "live", head.pruned && "pruned", head.head === chosen && "chosen"];
    const dot = add(svg, "circle", {
      cx: x(head), cy: y(head), r: live ? 8 : 6, class: classes.filter(Boolean).join(" "),
      tabindex: 0, role: "button", "aria-label": `head ${head.head}, ${head.verdict}`, "data-head": head.head,
    });
    add(dot, "title", {}, `head ${head.head} · step ${head.step} · ${head.verdict}\n${head.reason}`);
    dot.addEventListener("click", () => choose(head.head));
    dot.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") choose(head.head);
    });
  }
  const end = place.scrollLeft + place.clientWidth >= place.scrollWidth - 8;
  place.replaceChildren(svg);
  if (all.length > MOST) {
    const note = document.createElement("p");
    note.className = "quiet";
    note.textContent = `The last ${MOST} of ${all.length} heads.`;
    place.append(note);
  }
  if (end) place.scrollLeft = place.scrollWidth;
}

function make(name, attributes) {
  const one = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  return one;
}

function add(parent, name, attributes, text) {
  const one = make(name, attributes);
  if (text !== undefined) one.textContent = text;
  parent.append(one);
  return one;
}
