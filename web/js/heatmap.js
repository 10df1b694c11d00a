// A grid of cells, layer by step. Pure: nothing here knows ComfyUI.

import { SCALES, colourOf, roundTop } from "./colours.js";
import { html, svg } from "./dom.js";

// Pixels: few layers get high cells, many share what there is.
const LEAST_HEIGHT = 72;
const LAYER_HEIGHT = 6;
const MOST_HEIGHT = 240;
// A line between the cells, where they are high enough for one.
const LEAST_LINED = 9;

/** What the cells can show, and the value of the last colour. */
export const MEASURES = { density: () => 1, error: roundTop };

/**
 * The heatmap of a run as a div; `point` is called with (layer, column) when the pointer comes to a cell, and with
 * nothing when it leaves. A cell without a value is there, but has no colour:
 * the hatched ground shows through.
 */
export function renderHeatmap(run, measure, point) {
  const { steps, layers } = run;
  const height = Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, LAYER_HEIGHT * layers));
  const top = MEASURES[measure](run[measure]);
  const line = height / layers < LEAST_LINED ? 0 : 1;
  const cells = svg("svg", {
    class: "cells",
    viewBox: `0 0 ${steps.length} ${layers}`,
    preserveAspectRatio: "none",
    style: `height: ${height}px; stroke-width: ${line}px`,
  });
  for (let layer = 0; layer < layers; layer++) {
    for (let step = 0; step < steps.length; step++) cells.append(cell(run, measure, top, layer, step));
  }
  cells.addEventListener("pointerover", ({ target }) => {
    if (target.dataset.column) point(Number(target.dataset.layer), Number(target.dataset.column));
  });
  cells.addEventListener("pointerleave", () => point());
  return html(
    "div",
    { class: "map quiet" },
    html("div", { class: "layers" }, ...ends(0, layers - 1, "layer")),
    cells,
    html("div"),
    html("div", { class: "ends" }, ...ends(steps[0].number, steps.at(-1).number, "step")),
  );
}

function cell(run, measure, top, layer, step) {
  const value = run[measure][layer][step];
  return svg("rect", {
    x: step,
    y: layer,
    width: 1,
    height: 1,
    class: value === null ? "blank" : null,
    fill: value === null ? null : colourOf(SCALES[measure], value / top),
    "data-layer": layer,
    "data-column": step,
    "data-step": run.steps[step].number,
    "data-density": run.density[layer][step] ?? "",
    "data-error": run.error[layer][step] ?? "",
  });
}

/** Labels of an axis: its first number, what it counts, and its last number. */
function ends(first, last, what) {
  return [first, what, last].map((text) => html("span", {}, String(text)));
}
