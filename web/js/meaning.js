// What the numbers of a budget mean, as a curve over the schedule and in words. Pure: nothing here knows ComfyUI.

import { html, svg } from "./dom.js";

const PURPOSE = {
  auto: "few_step for up to 10 steps, else these numbers",
  faithful: "closest to the dense result",
  balanced: "between faithful and turbo",
  turbo: "most is skipped",
  few_step: "for distilled models",
  custom: "these numbers",
};

const percent = (share) => `${Math.round(1000 * share) / 10} %`;

/** The words for the values of a budget node, by widget name; profile: whether one is connected. */
export function describe({ preset, max_density, dense_first, dense_last, dense_blocks, profile }) {
  const first = preset === "few_step" ? "the first step" : `first ${percent(dense_first)}`;
  const blocks = dense_blocks.trim();
  const dense = [
    dense_first > 0 && first,
    dense_last > 0 && `last ${percent(dense_last)}`,
    blocks && `${/^\d+$/.test(blocks) ? "block" : "blocks"} ${blocks}`,
  ].filter(Boolean);
  return [
    `${preset}: ${PURPOSE[preset]}`,
    profile && "top_p and floor: the profile's",
    max_density < 1 && `at most ${percent(max_density)} of the map`,
    `dense: ${dense.join(" · ") || "nothing"}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** A div that shows the values: the attention mass kept over the schedule, its dense parts shaded, and the words. */
export function renderMeaning(values) {
  const { top_p, dense_first, dense_last } = values;
  const wrong = dense_first + dense_last > 1;
  const words = wrong ? "dense_first and dense_last: at most 1 together" : describe(values);
  return html(
    "div",
    {},
    schedule(top_p, dense_first, wrong ? 1 - dense_first : dense_last),
    html(
      "div",
      { class: "ends quiet" },
      html("span", {}, "start"),
      html("span", {}, `attention kept: ${values.profile ? "by profile" : percent(top_p)}`),
      html("span", {}, "end"),
    ),
    html("div", { class: wrong ? "meaning wrong" : "meaning" }, words),
  );
}

function schedule(level, first, last) {
  const from = 100 * first;
  const to = 100 * (1 - last);
  // 1 lies a little below the upper edge, 0 at the lower one.
  const y = (mass) => 40 - 36 * mass;
  const part = (name, x, width) =>
    svg("rect", { class: "dense", "data-part": name, x, y: 0, width, height: 40 });
  const stretches = [[0, from, 1], [from, to, level], [to, 100, 1]].filter(([left, right]) => right > left);
  const points = stretches.flatMap(([left, right, mass]) => [`${left},${y(mass)}`, `${right},${y(mass)}`]);
  return svg(
    "svg",
    { class: "schedule", viewBox: "0 0 100 40", preserveAspectRatio: "none", "data-level": level },
    part("first", 0, from),
    part("last", to, 100 - to),
    svg("polyline", { class: "kept", points: points.join(" ") }),
  );
}
