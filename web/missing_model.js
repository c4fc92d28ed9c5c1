// Names the models that a workflow needs and that are not there, as soon as the workflow is shown.

import { app } from "../../scripts/app.js";

const NODES = /^CogVideoXFun.*Loader$/;
const SHOWN_MS = 60000;
const TEXTS = {
    en: {
        title: (names) => `Missing: ${names.join(", ")}`,
        detail: (address, folder) => `Put ${address} into ${folder}.`,
        end: "Then press R. To try without a download, open a template with (nano) in its name.",
    },
    zh: {
        title: (names) => `缺少：${names.join("、")}`,
        detail: (address, folder) => `请把 ${address} 放进 ${folder}。`,
        end: "然后按 R。不想下载时，请打开名称带有 (nano) 的模板。",
    },
};
let hide = () => {}; // takes the notice away that is shown

// All nodes, each with the subgraph's node that it is in.
function* allNodes(graph, parent) {
    for (const node of graph.nodes) {
        yield [node, parent];
        if (node.subgraph) yield* allNodes(node.subgraph, node);
    }
}

// The missing models: name -> its address and its folder. Of a folder of files, the address is that of the repository.
function missingModels() {
    const missing = new Map();
    for (const [node, parent] of allNodes(app.graph.rootGraph ?? app.graph, null)) {
        const widget = NODES.test(node.type) && node.widgets?.[0];
        if (!widget?.options?.values) continue;
        const chosen = parent?.widgets?.find((one) => one.name === widget.name)?.value ?? widget.value;
        if (widget.options.values.includes(chosen)) continue;
        for (const { name, url, directory } of node.properties?.models ?? []) {
            const repository = url.split("/resolve/")[0];
            if (name === chosen) missing.set(chosen, [url, `models/${directory}`]);
            else if (repository.endsWith(`/${chosen}`) && !directory.includes(`${chosen}/`))
                missing.set(chosen, [repository, `models/${directory}`]);
        }
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
    const notice = { severity: "warn", summary, detail, life: SHOWN_MS };
    toast.add(notice);
    return () => toast.remove(notice);
}

app.registerExtension({
    name: "CogVideoXFun.MissingModel",
    afterConfigureGraph() {
        hide();
        hide = () => {};
        const missing = missingModels();
        if (!missing.size) return;
        const text = TEXTS[app.ui.settings.getSettingValue("Comfy.Locale")?.startsWith("zh") ? "zh" : "en"];
        const details = [...missing.values()].map((one) => text.detail(...one));
        hide = show(text.title([...missing.keys()]), [...details, text.end].join(" "));
    },
});
