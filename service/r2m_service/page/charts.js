// Lines over steps, of the heads that a branch's steps led to, and the gate's bounds.

import { $, element } from "./dom.js";

// A candidate that was not accepted never was live: its drift is a point beside the line of those
// that were. Where version 0 is the reference, the two lines would be one.
const drift = (key) => [
  ["went live, to version 0", "--grey", ({ accepted, reference, metrics }) => (accepted && reference ? metrics.evidence?.[key] : null)],
  ["went live", "--blue", ({ accepted, metrics }) => (accepted ? metrics.drift?.[key] : null)],
  ["not accepted", "--red", ({ accepted, metrics }) => (accepted ? null : metrics.drift?.[key]), "dots"],
];

// How far the live line is ahead of a control, on all labels so far.
const ahead = (control) => (head) =>
  head.metrics.controls?.arms.find((arm) => arm.control === control)?.total.difference;

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
    title: "Spread ratio to the reference",
    lines: drift("spread_ratio"),
    bounds: [["≥", "spread_min"], ["≤", "spread_max"]],
  },
  {
    title: "Rank correlation with the reference",
    lines: drift("rank_correlation"),
    bounds: [["≥", "rank_correlation_min"]],
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
      ["shuffled", "--blue", ahead("shuffled")],
      ["backbone", "--green", ahead("backbone")],
      ["none", "--amber", ahead("none")],
    ],
    optional: true,
  },
];

let drawn = [];
let shown = "";

export function draw(run, heads) {
  const place = $("charts");
  const charts = CHARTS.map(({ title, lines, bounds = [], optional }) => {
    const measured = lines
      .map(([label, colour, value, dots]) => ({ label, colour, dots, values: heads.map((head) => value(head) ?? null) }))
      .filter(({ values }) => values.some((value) => value !== null));
    const limits = bounds.map(([sign, name]) => [sign, run.method.gate[name]]).filter(([, limit]) => limit != null);
    const data = [heads.map((head) => head.step), ...measured.map(({ values }) => values)];
    return { title, lines: measured, limits, optional, data };
  }).filter(({ lines, optional }) => lines.length || !optional);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = JSON.stringify([
    run.run, dark, heads.length > 0, charts.map(({ lines, limits }) => [limits, lines.map(({ label }) => label)]),
  ]);
  if (now === shown) return charts.forEach(({ data }, number) => drawn[number]?.setData(data));
  shown = now;
  for (const chart of drawn) chart?.destroy();
  place.replaceChildren();
  drawn = charts.map((chart) => {
    const card = element("div", undefined, "chart");
    card.append(element("h3", chart.title));
    if (chart.limits.length) card.firstChild.append(` (gate: ${chart.limits.map((limit) => limit.join(" ")).join(", ")})`);
    place.append(card);
    if (chart.lines.length) return plot(card, chart);
    card.append(element("div", heads.length ? "not measured" : "no step yet", "empty"));
  });
}

function plot(card, { lines, limits, data }) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: colour("--quiet"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
  };
  const size = () => ({ width: card.clientWidth - 24, height: 170 });
  const bounds = limits.map(([, limit]) => {
    const line = element("div", "", "bound");
    line.dataset.limit = limit;
    return line;
  });
  const made = new uPlot(
    {
      ...size(),
      scales: { x: { time: false }, y: { range: (_, low, high) => range(low, high, limits) } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] }, axis],
      series: [
        { label: "step" },
        ...lines.map(({ label, colour: name, dots }) => ({
          label,
          stroke: colour(name),
          width: 2,
          spanGaps: true,
          points: { show: data[0].length < 60, size: 5, fill: colour("--card") },
          value: (_, value) => (value === null ? "–" : Number(value.toPrecision(4)).toString()),
          ...(dots && { paths: () => null, points: { size: 7, fill: colour("--card") } }),
        })),
      ],
      hooks: {
        ready: [(chart) => chart.over.append(...bounds)],
        draw: [(chart) => bounds.forEach((line) => (line.style.top = `${chart.valToPos(Number(line.dataset.limit), "y")}px`))],
        destroy: [() => observer.disconnect()],
      },
    },
    data,
    card,
  );
  const observer = new ResizeObserver(() => made.setSize(size()));
  observer.observe(card);
  return made;
}

// The values and the bounds, with some room.
function range(low, high, limits) {
  const all = [low, high, ...limits.map(([, limit]) => limit)].filter((value) => value !== null);
  return all.length ? uPlot.rangeNum(Math.min(...all), Math.max(...all), 0.1, true) : [null, null];
}
