// Keeps the preset and the numbers of a budget node in step and shows what they mean: a named preset shows its numbers,
// and a number edited by hand makes the preset `custom`. Execution depends on none of this.

import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { renderMeaning } from "./meaning.js";
import { addPanel } from "./panel.js";
import { CUSTOM, PRESETS } from "./presets.js";

const NODE = "DitAccelBudget";
const HEIGHT = 105;

/** Calls `react` after a person has changed the widget; loading a workflow is not such a change. */
function onEdit(widget, react) {
  const callback = widget.callback;
  widget.callback = function (...args) {
    const result = callback?.apply(this, args);
    if (!app.configuringGraph) react();
    return result;
  };
}

function connect(node) {
  const widgets = Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget]));
  const preset = widgets.preset;
  const names = Object.keys(PRESETS.auto);
  const content = html("div");

  const showMeaning = () => {
    const values = Object.fromEntries(["preset", ...names].map((name) => [name, widgets[name].value]));
    const profile = node.inputs.some((input) => input.name === "profile" && input.link !== null);
    content.replaceChildren(renderMeaning({ ...values, profile }));
    node.setDirtyCanvas(true, true);
  };
  const showNumbers = () => {
    const numbers = PRESETS[preset.value];
    if (numbers) for (const name of names) widgets[name].value = numbers[name];
    showMeaning();
  };
  const becomeCustom = () => {
    // A click into a field without a change is no edit.
    const numbers = PRESETS[preset.value];
    if (numbers && names.some((name) => widgets[name].value !== numbers[name])) preset.value = CUSTOM;
    showMeaning();
  };

  onEdit(preset, showNumbers);
  for (const name of names) onEdit(widgets[name], becomeCustom);
  for (const change of ["onConfigure", "onConnectionsChange"]) {
    const before = node[change];
    node[change] = function (...args) {
      before?.apply(this, args);
      showMeaning();
    };
  }
  addPanel(node, "meaning", content, HEIGHT);
  // A new node shows the numbers of its default preset; a loaded one gets its saved values right after this.
  showNumbers();
}

app.registerExtension({
  name: "DiTAccel.Budget",
  nodeCreated(node) {
    if (node.comfyClass === NODE) connect(node);
  },
});
