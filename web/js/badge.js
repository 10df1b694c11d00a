// The line on a sparse attention node that says how the run goes: what the server words in its messages, throttled
// there. It stays until the next run and is never saved.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { html } from "./dom.js";
import { findNode } from "./nodes.js";
import { addPanel } from "./panel.js";

const NODE = "DitAccelSparseAttention";
const MESSAGE = "dit_accel.run";
const HEIGHT = 22;

// A removed node takes its badge along: the one listener below then finds nothing to change.
const badges = new WeakMap();

function show(badge, state, text, title) {
  badge.dataset.state = state;
  badge.title = title;
  badge.firstChild.textContent = text;
}

app.registerExtension({
  name: "DiTAccel.Badge",
  setup() {
    api.addEventListener(MESSAGE, ({ detail }) => {
      const badge = badges.get(findNode(detail.node));
      if (!badge) return;
      const { state, reason, text, sparse, dense } = detail;
      show(badge, reason ? "inactive" : state, text, `${text} (${sparse} sparse calls, ${dense} dense)`);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const badge = html("div", { class: "badge" }, html("span"));
    show(badge, "idle", "not run yet", "What the last run did");
    badges.set(node, badge);
    addPanel(node, "badge", badge, HEIGHT);
  },
});
