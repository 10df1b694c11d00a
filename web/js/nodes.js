// Finding the node that a message or an output belongs to.

import { app } from "../../scripts/app.js";

/**
 * The node of an id, or undefined: "12:3" is node 3 inside the subgraph node 12; in restored outputs the part before
 * the last colon is the id of the subgraph itself.
 */
export function findNode(id) {
  const path = String(id).split(":");
  const last = path.pop();
  let graph = app.rootGraph;
  for (const part of path) graph = app.rootGraph.subgraphs.get(part) ?? graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(last) ?? undefined;
}
