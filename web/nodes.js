// The graph that is open, and the nodes in it that a run's id names.

import { app } from "../../scripts/app.js";

// The workflow that is open, also while the page shows a subgraph of it.
export function openGraph() {
    return app.graph.rootGraph ?? app.graph;
}

// The id of the node on the page that an id names: nodes that a node added to the graph ("8:11.0.0") count as that node.
export function bare(id) {
    return id.split(":").map((part) => parseInt(part)).join(":");
}

// From the outside in, with the part of the id that names each: "8:19" is node 19 in the subgraph of node 8. Empty if the
// graph that is open has no such node.
export function nodesOf(id) {
    const found = [];
    let graph = openGraph();
    let prefix = "";
    for (const part of bare(id).split(":")) {
        const node = graph?.getNodeById(parseInt(part));
        if (!node) return [];
        prefix += (prefix && ":") + part;
        found.push([prefix, node]);
        graph = node.subgraph;
    }
    return found;
}

// Whether an event is about the graph that is open, by the graph's id; a run that no page queued has none.
export function isOpen(graph) {
    return !graph || graph === openGraph().id;
}
