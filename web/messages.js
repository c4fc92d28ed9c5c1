// Shows what a run reports under the node that it is about: lengths that were rounded, a prompt that was cut, a mask that
// keeps everything, tiles after an out-of-memory. The text stays until the node runs again, also while another workflow
// is open.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";
import { bare, isOpen, nodesOf, openGraph } from "./nodes.js";

const EVENT = "cogvideox-fun.said"; // nodes/messages.py sends it
// The front end saves no widget whose name begins like this; 1.35 lists it at a subgraph's node, and ignores it later.
const WIDGET = "$$cogvideox-fun-said";
const HEIGHT = 74; // three lines

const said = new Map(); // id of a graph -> id of a node that ran -> { prompt, lines }
const ignored = new Set(); // runs of graphs that were closed, for front ends that send no graph
let running = null; // the id of the run

function addWidget(node) {
    const { widget } = ComfyWidgets.STRING(node, WIDGET, ["STRING", { multiline: true }], app);
    widget.label = "ⓘ";
    widget.serialize = false;
    Object.assign(widget.options, { serialize: false, read_only: true });
    widget.options.getMinHeight = widget.options.getMaxHeight = () => HEIGHT;
    const element = widget.element ?? widget.inputEl;
    if (element) element.readOnly = true;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    return widget;
}

// What was said in a graph.
function saidIn(graph) {
    if (!said.has(graph)) said.set(graph, new Map());
    return said.get(graph);
}

// Write under each node that an id names what was said of it and of the nodes inside it, each text once.
function refresh(id) {
    for (const [prefix, node] of nodesOf(id)) {
        const inside = [...saidIn(openGraph().id)].filter(([one]) => one === prefix || one.startsWith(`${prefix}:`));
        const text = [...new Set(inside.flatMap(([, entry]) => entry.lines))].join("\n");
        const present = node.widgets?.find((widget) => widget.name === WIDGET);
        if (present || text) (present ?? addWidget(node)).value = text;
    }
    app.canvas.setDirty(true, true);
}

app.registerExtension({
    name: "CogVideoXFun.Said",
    setup() {
        api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id));
        api.addEventListener("executing", ({ detail }) => {
            const id = detail?.node ?? detail; // older front ends send the id alone; null at the end of a run
            if (id === null || ignored.has(running)) return;
            const here = saidIn(openGraph().id);
            if (running && here.has(id) && here.get(id).prompt !== running && here.delete(id)) refresh(id);
        });
        api.addEventListener(EVENT, ({ detail: { node, prompt, graph, text } }) => {
            running = prompt; // also after the page was opened in the middle of a run
            if (!graph && ignored.has(prompt)) return;
            const here = saidIn(graph || openGraph().id);
            const id = bare(node);
            const before = here.get(id);
            here.set(id, { prompt, lines: before?.prompt === prompt ? [...before.lines, text] : [text] });
            if (isOpen(graph)) refresh(id);
        });
    },
    afterConfigureGraph() {
        if (running) ignored.add(running);
        for (const id of saidIn(openGraph().id).keys()) refresh(id);
    },
});
