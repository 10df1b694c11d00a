// Something to look at on a node: a DOM widget, since Vue nodes show nothing that is painted on the canvas. It has no
// value, takes no part in saving, and is as high as its content.

import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { addStyle } from "./style.js";

const MARGIN = 6;

/**
 * Puts `content`, a div, at the end of the node's widgets. height: in pixels, until the content has been laid out; a
 * good guess keeps the node from growing when a saved workflow is opened.
 */
export function addPanel(node, name, content, height) {
  addStyle();
  const panel = html("div", { class: "dit-accel" }, content);
  const getHeight = () => height + 2 * MARGIN;
  const options = { serialize: false, hideInPanel: true, margin: MARGIN };
  const widget = node.addDOMWidget(name, "dit_accel_panel", panel, {
    ...options,
    getMinHeight: getHeight,
    getMaxHeight: getHeight,
  });
  // The option keeps it out of a prompt, this out of a saved workflow.
  widget.serialize = false;
  new ResizeObserver(() => {
    // Off the screen it has no height.
    if (!content.offsetHeight) return;
    height = content.offsetHeight;
    // Before the drawing, which else shows the node at its old size for one frame more. Vue nodes grow by themselves.
    node.arrange();
    node.setDirtyCanvas(true, true);
  }).observe(content);
  leaveToCanvas(panel);
}

/** The wheel and the middle button move the canvas here as everywhere else; Vue nodes see to that themselves. */
function leaveToCanvas(panel) {
  const pass = (name, handle, when) =>
    panel.addEventListener(name, (event) => {
      if (LiteGraph.vueNodesMode || !when(event)) return;
      event.preventDefault();
      app.canvas[handle](event);
    });
  pass("wheel", "processMouseWheel", () => true);
  pass("pointerdown", "processMouseDown", (event) => event.button === 1);
  pass("pointermove", "processMouseMove", (event) => event.buttons & 4);
  pass("pointerup", "processMouseUp", (event) => event.button === 1);
}
