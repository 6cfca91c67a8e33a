// Lines over steps, of the heads that a branch's steps led to.

const CHARTS = [
  {
    title: "Reward (mean of the step's samples)",
    lines: [
      ["reward", "--blue", (head) => head.metrics.evidence?.reward_mean],
      ["vanilla", "--grey", (head) => head.metrics.evidence?.vanilla_mean],
    ],
  },
  {
    title: "Loss",
    lines: [
      ["BT", "--blue", (head) => head.metrics.loss?.bt],
      ["GRE", "--amber", (head) => head.metrics.loss?.gre],
      ["KL", "--red", (head) => head.metrics.loss?.kl],
    ],
  },
  {
    title: "Drift from version 0",
    lines: [
      ["spread ratio", "--blue", (head) => head.metrics.evidence?.spread_ratio],
      ["rank correlation", "--green", (head) => head.metrics.evidence?.rank_correlation],
    ],
  },
  {
    title: "ω, the group's σ, feedback gain",
    lines: [
      ["ω", "--grey", (head) => head.omega],
      ["σ", "--blue", (head) => head.metrics.sigma],
      ["gain", "--green", (head) => head.metrics.evidence?.feedback_gain],
    ],
  },
  {
    title: "Accuracy on new labels, live less each control",
    lines: [
      ["shuffled", "--blue", (head) => ahead(head, "shuffled")],
      ["backbone", "--green", (head) => ahead(head, "backbone")],
      ["none", "--amber", (head) => ahead(head, "none")],
    ],
    optional: true,
  },
];

// How far the live line is ahead of a control, on all labels so far.
function ahead(head, control) {
  return head.metrics.controls?.arms.find((arm) => arm.control === control)?.total.difference;
}

const drawn = new Map();
let shown = "";

// Draw the heads of the path to the live one, and of the rejected beside it.
export function draw(place, run, heads) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (shown !== `${run}/${dark}`) {
    place.replaceChildren();
    for (const chart of drawn.values()) chart.destroy();
    drawn.clear();
    shown = `${run}/${dark}`;
  }
  const steps = heads.map((head) => head.step);
  for (const { title, lines, optional } of CHARTS) {
    const values = lines.map(([, , value]) => heads.map((head) => value(head) ?? null));
    const data = [steps, ...values];
    const has = values.some((line) => line.some((one) => one !== null));
    if (drawn.has(title)) {
      drawn.get(title).setData(data);
      continue;
    }
    if (optional && !has) continue;
    let card = [...place.children].find((one) => one.dataset.title === title);
    if (!card) {
      card = document.createElement("div");
      card.className = "chart";
      card.dataset.title = title;
      const name = document.createElement("h3");
      name.textContent = title;
      const empty = document.createElement("div");
      empty.className = "empty";
      card.append(name, empty);
      place.append(card);
    }
    const empty = card.querySelector(".empty");
    if (empty) empty.textContent = steps.length ? "not measured" : "no step yet";
    if (!has) continue;
    empty?.remove();
    drawn.set(title, chart(card, lines, data));
  }
}

function chart(card, lines, data) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: colour("--quiet"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
  };
  const made = new uPlot(
    {
      width: card.clientWidth - 24,
      height: 170,
      scales: { x: { time: false } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] }, axis],
      series: [
        { label: "step" },
        ...lines.map(([label, name]) => ({
          label,
          stroke: colour(name),
          width: 2,
          spanGaps: true,
          points: { show: data[0].length < 60, size: 5 },
          value: (_, value) => (value === null ? "–" : Number(value.toPrecision(4)).toString()),
        })),
      ],
    },
    data,
    card,
  );
  new ResizeObserver(() => made.setSize({ width: card.clientWidth - 24, height: 170 })).observe(card);
  return made;
}
