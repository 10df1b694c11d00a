// The report of a run: what every layer did in every step, where the time went, and what to do about it. Pure: nothing
// here knows ComfyUI.

import { SCALES, TIMES, css, gradient } from "./colours.js";
import { html } from "./dom.js";
import { MEASURES, renderHeatmap } from "./heatmap.js";

const TIME_LABELS = {
  planning: "planning",
  kernel: "kernel",
  dense: "dense calls",
  other: "other layers",
  dense_steps: "dense steps",
  guard: "guard",
  recording: "recording",
};

/** A payload of the report node as a div; see accel/report/payload.py for what is in it. */
export function renderReport({ runs, advice, text }) {
  const parts = runs.length ? runs.map(renderRun) : [html("div", {}, text)];
  if (advice.length) parts.push(list("advice", "Advice", advice));
  return html("div", { class: "report" }, ...parts);
}

/** What stands there before there is a report. */
export function renderHint() {
  return html("div", { class: "quiet" }, "The report appears here after a run.");
}

function renderRun(run) {
  const title = html("span", { class: "title" }, run.title);
  const section = html("section", { class: "run" }, ...(run.layers ? renderCells(run, title) : [title]));
  section.append(...renderTimes(run.times));
  const counts = Object.entries(run.dense).sort(([, one], [, other]) => other - one);
  if (counts.length) section.append(list("reasons", "Dense calls", counts.map(([why, count]) => `${why}: ${count}`)));
  if (run.guard.length) section.append(list("guard", "Guard", run.guard));
  return section;
}

/** The heatmap with what belongs to it: the title and the switch above it, its scale and the cell pointed at below. */
function renderCells(run, title) {
  const map = html("div");
  const legend = html("div", { class: "legend quiet" });
  const cell = html("div", { class: "cell quiet" });
  const buttons = Object.keys(MEASURES).map((measure) => {
    const button = html("button", { type: "button", "data-measure": measure }, measure);
    button.addEventListener("click", () => show(measure));
    return button;
  });
  const point = (layer, step) => {
    cell.textContent = layer === undefined ? "Point at a cell to see its numbers." : describeCell(run, layer, step);
  };
  const show = (measure) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.measure === measure);
    map.replaceChildren(renderHeatmap(run, measure, point));
    const bar = html("div", { class: "gradient", style: `background: ${gradient(SCALES[measure])}` });
    const scale = [`${measure} 0`, bar, short(MEASURES[measure](run[measure]))];
    const measured = run[measure].flat().some((value) => value !== null);
    legend.replaceChildren(...(measured ? scale : [`no ${measure} was measured`]));
  };
  show("density");
  point();
  const measures = html("div", { class: "measures", role: "group" }, ...buttons);
  return [html("div", { class: "head" }, title, measures), map, legend, cell];
}

function describeCell(run, layer, step) {
  const { number, sigma, seconds, dense } = run.steps[step];
  const value = (name, measured) => `${name} ${measured === null ? "not measured" : short(measured)}`;
  return [
    `layer ${layer}, step ${number} (sigma ${short(sigma)}, ${short(seconds)} s)`,
    value("density", run.density[layer][step]),
    value("error", run.error[layer][step]),
    dense && `dense: ${dense}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The bar of where the time went and its labels; nothing without times. */
function renderTimes(times) {
  const spent = Object.keys(TIME_LABELS).filter((name) => times[name] > 0);
  const total = spent.reduce((sum, name) => sum + times[name], 0);
  if (!total) return [];
  const share = (name) => (100 * times[name]) / total;
  const words = (name) => `${TIME_LABELS[name]} ${short(times[name])} s (${Math.round(share(name)) || "under 1"} %)`;
  const colour = (name) => `background: ${css(TIMES[name])}`;
  // Shares in percent: what grows by less than 1 in all would not fill the bar.
  const piece = (name) =>
    html("div", { "data-time": name, title: words(name), style: `flex-grow: ${share(name)}; ${colour(name)}` });
  const label = (name) =>
    html("span", { "data-time": name }, html("span", { class: "swatch", style: colour(name) }), words(name));
  return [
    html("div", { class: "bar" }, ...spent.map(piece)),
    html("div", { class: "times" }, ...spent.map(label)),
  ];
}

function list(name, title, sentences) {
  const items = sentences.map((sentence) => html("li", {}, sentence));
  return html("div", { class: name }, html("div", { class: "title" }, title), html("ul", {}, ...items));
}

/** Three significant digits at most, without an exponent where it can be avoided. */
function short(number) {
  return String(Number(number.toPrecision(3)));
}
