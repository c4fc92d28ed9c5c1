// Shows the clip that is being sampled as a moving picture on its node, in place of ComfyUI's picture of the first frame.
// ComfyUI draws its previews on the canvas, where a WebP stands still.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isOpen, nodesOf } from "./nodes.js";

const EVENT = "cogvideox-fun.preview"; // model_loading/comfyui/previews.py sends it
const WIDGET = "$$cogvideox-fun-preview"; // the front end saves no widget whose name begins like this
const MARGIN = 30; // of a widget, on both sides together
const HIGHEST = 400;

const shown = new Map(); // node -> { widget, height: of the node before }
let running = null; // the id of the run
let ignored = null; // the run of a graph that was closed, for front ends that send no graph

function add(node) {
    const picture = document.createElement("img");
    picture.className = "cogvideox-fun-preview";
    picture.style.objectFit = "contain";
    picture.style.width = "100%";
    const height = () => {
        const full = ((node.size[0] - MARGIN) * picture.naturalHeight) / (picture.naturalWidth || 1);
        return Math.min(Math.ceil(full), HIGHEST);
    };
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    const widget = node.addDOMWidget(WIDGET, "preview", picture, options);
    widget.serialize = false;
    picture.onload = () => {
        picture.onload = null;
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
        app.canvas.setDirty(true, true);
    };
    shown.set(node, { widget, height: node.size[1] });
    return widget;
}

function removeAll() {
    for (const [node, { widget, height }] of shown) {
        if (node.removeWidget) node.removeWidget(widget);
        else node.widgets.splice(node.widgets.indexOf(widget), 1);
        widget.onRemove?.();
        widget.element.removeAttribute("src"); // the front end keeps the element as long as the node
        node.setSize([node.size[0], Math.max(height, node.computeSize()[1])]);
    }
    if (shown.size) app.canvas.setDirty(true, true);
    shown.clear();
}

// Now, and not in setup: before ComfyUI's own listener. An app shows ComfyUI's picture, and hides the canvas with ours.
api.addEventListener("b_preview_with_metadata", (event) => {
    if (shown.size && app.canvas.canvas.checkVisibility()) event.stopImmediatePropagation();
});

app.registerExtension({
    name: "CogVideoXFun.Preview",
    setup() {
        api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id));
        api.addEventListener("executing", removeAll); // the next node runs, or none
        api.addEventListener(EVENT, ({ detail: { node: id, prompt, graph, image } }) => {
            if (graph ? !isOpen(graph) : prompt === ignored) return;
            for (const [, node] of nodesOf(id)) {
                const widget = shown.get(node)?.widget ?? add(node);
                widget.element.src = `data:image/webp;base64,${image}`;
            }
        });
    },
    afterConfigureGraph() {
        removeAll();
        ignored = running;
    },
});
