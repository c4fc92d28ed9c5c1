// Names the models and the pictures and clips that a workflow needs and that are not there, as soon as it is shown.

import { app } from "../../scripts/app.js";
import { openGraph } from "./nodes.js";

const NODES = /^CogVideoXFun.*Loader$/;
const SOURCES = ["LoadImage", "LoadVideo"];
const UNLISTED = /[/\\]|\[\w+\]$/; // in a subfolder, as painted masks, or in output: ComfyUI lists neither
const SUBGRAPH_INPUT = -10; // the node in a subgraph that gives what comes from outside
const SHOWN_MS = 60000;
const CLASS = "cogvideox-fun-missing";
// 1.49 shows notices where its own note on errors and its panel are: ours goes below the note, and to
// the middle, as the panel may be on either side.
const STYLE = `
    body:has([data-testid=error-overlay]) .p-toast:has(.${CLASS}) { transform: translateY(8.5rem); }
    body:has([data-testid=properties-panel]) .p-toast:has(.${CLASS}) { right: auto !important; left: 50%; translate: -50%; }
    .${CLASS} .p-toast-detail { white-space: pre-line; }
`;
const TEXTS = {
    en: {
        title: (names) => `Missing: ${names.join(", ")}`,
        detail: (address, folder) => `Put ${address} into ${folder}.`,
        unpublished: (file, folder) => `Put ${file} into ${folder}, or choose another file.`,
        choose: (node, file) => `Choose a file in ${node}: ${file} is not in ComfyUI's input folder.`,
        end: "Then press R. To try without a download, open a template with (nano) in its name.",
    },
    zh: {
        title: (names) => `缺少：${names.join("、")}`,
        detail: (address, folder) => `请把 ${address} 放进 ${folder}。`,
        unpublished: (file, folder) => `请把 ${file} 放进 ${folder}，或选择其他文件。`,
        choose: (node, file) => `请在 ${node} 中选择文件：ComfyUI 的 input 文件夹里没有 ${file}。`,
        end: "然后按 R。不想下载时，请打开名称带有 (nano) 的模板。",
    },
};
let hide = () => {}; // takes the notice away that is shown
let shown = ""; // the graph that it is about, and its text

// All nodes that are neither muted (mode 2) nor bypassed (4), each with the subgraphs' nodes that it is in, the nearest first.
function* allNodes(graph, parents = []) {
    for (const node of graph.nodes) {
        if (node.mode === 2 || node.mode === 4) continue;
        yield [node, parents];
        if (node.subgraph) yield* allNodes(node.subgraph, [node, ...parents]);
    }
}

// What a node's widget is set to, which may be at a subgraph's node that it is in; null if another node gives it.
function valueOf(node, parents, widget) {
    const slot = node.inputs?.find((one) => one.widget?.name === widget.name);
    if (slot?.link == null) return widget.value;
    const [parent, ...further] = parents;
    const link = parent?.subgraph.getLink(slot.link);
    if (Number(link?.origin_id) !== SUBGRAPH_INPUT) return null; // 1.49 has it as a text
    const name = parent.inputs[link.origin_slot]?.widget?.name;
    const outer = parent.widgets?.find((one) => one.name === name);
    return outer ? valueOf(parent, further, outer) : widget.value;
}

// The missing models: name -> its address and its folder. Of a folder of files, the address is that of the repository;
// a LoRA may have none.
function missingModels() {
    const missing = new Map();
    for (const [node, parents] of allNodes(openGraph())) {
        const widget = NODES.test(node.type) && node.widgets?.[0];
        if (!widget?.options?.values) continue;
        const chosen = valueOf(node, parents, widget);
        if (chosen === null || widget.options.values.includes(chosen)) continue;
        for (const { name, url, directory } of node.properties?.models ?? []) {
            const repository = url.split("/resolve/")[0];
            if (name === chosen) missing.set(chosen, [url, `models/${directory}`]);
            else if (repository.endsWith(`/${chosen}`) && !directory.includes(`${chosen}/`))
                missing.set(chosen, [repository, `models/${directory}`]);
        }
        if (widget.name === "lora_name" && !missing.has(chosen)) missing.set(chosen, ["", "models/loras"]);
    }
    return missing;
}

// The missing pictures and clips of a workflow with nodes of ours, each as the title of its node and its file.
function missingSources() {
    const nodes = [...allNodes(openGraph())];
    if (!nodes.some(([node]) => node.type.startsWith("CogVideoXFun"))) return [];
    const missing = [];
    for (const [node, parents] of nodes.filter(([one]) => SOURCES.includes(one.type))) {
        const widget = node.widgets?.[0];
        if (!widget?.options?.values?.includes) continue;
        const chosen = valueOf(node, parents, widget);
        if (chosen === null || UNLISTED.test(chosen) || widget.options.values.includes(chosen)) continue;
        missing.push([node.title, chosen]);
    }
    return missing;
}

// Show a notice; returns what takes it away.
function show(summary, detail) {
    const { toast } = app.extensionManager;
    if (toast.dismiss) { // 1.58: its `add` gives nothing to take the notice away by
        const id = toast.warning(summary, { description: detail, duration: SHOWN_MS, closable: true });
        return () => toast.dismiss(id);
    }
    const notice = { severity: "warn", summary, detail, life: SHOWN_MS, styleClass: CLASS };
    toast.add(notice);
    return () => toast.remove(notice);
}

// Say what is missing, in place of what was said before.
function check({ again }) {
    const missing = missingModels();
    const sources = missingSources();
    const text = TEXTS[app.ui.settings.getSettingValue("Comfy.Locale")?.startsWith("zh") ? "zh" : "en"];
    const details = [...missing].map(([name, [address, folder]]) =>
        address ? text.detail(address, folder) : text.unpublished(name, folder),
    );
    if (missing.size) details.push(text.end);
    details.push(...sources.map((one) => text.choose(...one)));
    const now = [openGraph().id, ...details].join("\n");
    if (now === shown && !again) return; // an undo opens the graph again: the notice may have been closed
    hide();
    hide = () => {};
    shown = now;
    if (!details.length) return;
    const names = new Set([...missing.keys(), ...sources.map(([, file]) => file)]);
    hide = show(text.title([...names]), details.join("\n"));
}

app.registerExtension({
    name: "CogVideoXFun.Missing",
    setup() {
        document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    },
    afterConfigureGraph: () => check({ again: false }),
    refreshComboInNodes: () => check({ again: true }), // after R, when the widgets have their new lists
});
