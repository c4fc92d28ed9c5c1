// Makes new nodes wide enough for their titles: the front end cuts the title of a node that has no widget.

import { app } from "../../scripts/app.js";

const WIDTH = 210;

app.registerExtension({
    name: "CogVideoXFun.Width",
    nodeCreated(node) {
        if (node.comfyClass?.startsWith("CogVideoXFun") && node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
    },
});
