// Keeps the preset and the numbers of a budget node in step: a named preset shows its numbers, and a number
// edited by hand makes the preset `custom`. Execution depends on neither.

import { app } from "../../scripts/app.js";
import { CUSTOM, PRESETS } from "./presets.js";

const NODE = "DitAccelBudget";

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

  const showNumbers = () => {
    const numbers = PRESETS[preset.value];
    if (!numbers) return;
    for (const name of names) widgets[name].value = numbers[name];
    node.setDirtyCanvas(true, true);
  };
  const becomeCustom = () => {
    // A click into a field without a change is no edit.
    const numbers = PRESETS[preset.value];
    if (!numbers || names.every((name) => widgets[name].value === numbers[name])) return;
    preset.value = CUSTOM;
    node.setDirtyCanvas(true, true);
  };

  onEdit(preset, showNumbers);
  for (const name of names) onEdit(widgets[name], becomeCustom);
  // A new node shows the numbers of its default preset; a loaded one gets its saved values right after this.
  showNumbers();
}

app.registerExtension({
  name: "DiTAccel.Budget",
  nodeCreated(node) {
    if (node.comfyClass === NODE) connect(node);
  },
});
