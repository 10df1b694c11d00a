// The style sheet of our panels. Text, lines and backgrounds are the theme's.

import { html } from "./dom.js";

const SHEET = `
.dit-accel { overflow: hidden; border-radius: 6px; background: var(--comfy-input-bg); color: var(--input-text);
  font: 12px/1.4 system-ui, sans-serif; text-align: left; user-select: none; }
.dit-accel > div { box-sizing: border-box; padding: 6px 8px; overflow-wrap: anywhere; }
.dit-accel svg { display: block; width: 100%; }
.dit-accel .quiet { color: var(--descrip-text); }
.dit-accel .ends { display: flex; justify-content: space-between; font-size: 10px; }

.dit-accel .schedule { height: 44px; border-bottom: 1px solid var(--border-color); }
.dit-accel .schedule .dense { fill: #d55e00; fill-opacity: 0.3; }
.dit-accel .schedule .kept { fill: none; stroke: #2f8fd0; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.dit-accel .meaning { min-height: 2.8em; text-wrap: pretty; }
.dit-accel .meaning.wrong { color: var(--error-text); }

.dit-accel .badge { display: flex; align-items: center; gap: 8px; padding: 2px 8px; white-space: nowrap; }
.dit-accel .badge span { overflow: hidden; text-overflow: ellipsis; }
.dit-accel .badge::before { content: ""; flex: none; width: 8px; height: 8px; border-radius: 50%;
  background: var(--dit-accel-state); }
.dit-accel .badge { --dit-accel-state: #8c8c8c; }
.dit-accel .badge[data-state="running"] { --dit-accel-state: #56b4e9; }
.dit-accel .badge[data-state="done"] { --dit-accel-state: #009e73; }
.dit-accel .badge[data-state="inactive"] { --dit-accel-state: #e69f00; }

.dit-accel .report { display: flex; flex-direction: column; gap: 10px; }
.dit-accel .run { display: flex; flex-direction: column; gap: 6px; }
.dit-accel .head { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; justify-content: space-between; }
.dit-accel .title { font-weight: 600; }
.dit-accel .measures { display: flex; }
.dit-accel .measures button { padding: 1px 8px; border: 1px solid var(--border-color); background: none;
  color: inherit; font: inherit; cursor: pointer; }
.dit-accel .measures button[aria-pressed="true"] { background: color-mix(in srgb, currentColor 20%, transparent); }
.dit-accel .map { display: grid; grid-template-columns: auto 1fr; gap: 2px 6px; font-size: 10px; }
.dit-accel .map svg { border: 1px solid var(--border-color); box-sizing: border-box;
  background: repeating-linear-gradient(45deg, transparent 0 4px, var(--border-color) 4px 5px); }
.dit-accel .map rect { stroke: var(--comfy-input-bg); vector-effect: non-scaling-stroke; shape-rendering: crispEdges; }
.dit-accel .map .blank { fill: transparent; stroke: none; pointer-events: all; }
.dit-accel .map rect:hover { stroke: var(--fg-color); stroke-width: 2px; }
.dit-accel .layers { display: flex; flex-direction: column; justify-content: space-between; text-align: right; }
.dit-accel .legend { display: grid; grid-template-columns: auto 1fr auto; gap: 6px; align-items: center;
  font-size: 10px; }
.dit-accel .gradient { height: 6px; border-radius: 3px; }
.dit-accel .cell { min-height: 2.8em; }
.dit-accel .bar { display: flex; height: 14px; overflow: hidden; border-radius: 3px; }
.dit-accel .bar div { flex-basis: 0; min-width: 1px; }
.dit-accel .times { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 11px; }
.dit-accel .swatch { display: inline-block; width: 8px; height: 8px; margin-right: 4px; }
.dit-accel ul { margin: 0; padding-left: 16px; list-style: disc; }
`;

/** Adds the sheet to the page, once. */
export function addStyle() {
  if (document.getElementById("dit-accel-style")) return;
  document.head.append(html("style", { id: "dit-accel-style" }, SHEET));
}
