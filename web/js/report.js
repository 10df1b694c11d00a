// The report on its node, from the output of its execution: drawn when the node has run and when the outputs of a
// workflow's tab come back. Nothing of it is saved.

import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { findNode } from "./nodes.js";
import { addPanel } from "./panel.js";
import { renderHint, renderReport } from "./view.js";

const NODE = "DitAccelReport";
const WIDTH = 400;
const HEIGHT = 30;

const reports = new WeakMap();

function show(node, output) {
  const content = reports.get(node);
  const payload = output?.dit_accel_report?.[0];
  if (content && payload) content.replaceChildren(renderReport(payload));
}

app.registerExtension({
  name: "DiTAccel.Report",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const content = html("div", {}, renderHint());
    reports.set(node, content);
    addPanel(node, "report", content, HEIGHT);
    node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(this, output);
    };
  },
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(findNode(id), output);
  },
});
