"""The last part of a template's note: the same in Chinese, in short. Groups and inputs keep their English names."""

from .notes import FOLDER, RAFT, SAM3, SAM3_FILE

FRAME = "要把这一帧存成图片：“加载视频”->“片段转帧”（`length` 设为 1，其余与此模板相同）->“保存图像”。"

# title of the task -> what to do
ADVICE = {
    "Text to Video": "写好提示词，然后点击运行。",
    "Image to Video": "选择起始图像，写出接下来发生的事。宽高比不同的图像会居中裁剪。",
    "Start and End Image to Video": "选择起始图像和结束图像，写出两者之间发生的事。宽高比不同的图像会居中裁剪。",
    "Video to Video": (
        "选择视频，写出它应变成的样子：请描述整个结果，而不是只写改动。`denoise` 决定替换的程度：0.5 保留形状和动作，"
        "0.9 只保留大致布局。结果保持原来的速度和声音。"
    ),
    "Region Inpaint": (
        f"选择视频；再选它的一帧作为图像。{FRAME}在图像上点击右键，打开遮罩编辑器，涂出要重新生成的区域"
        "（白色重新生成，黑色保留），请涂得比物体大一些；遮罩用于所有帧。请在提示词中描述整个画面。"
        "`grow` 是区域四周一并替换的像素数，柔和的边缘从那里开始。结果保持原来的速度和声音。"
    ),
    "Region That Follows": (
        f"选择视频；再选所取部分的第一帧作为图像。{FRAME}在图像上点击右键，打开遮罩编辑器，涂出物体"
        "（白色重新生成，黑色保留）。遮罩借助光流跟随物体，打开节点，可在“传播遮罩”下方的图片中查看结果。"
        f"把 [RAFT]({RAFT})（21 MB）放入 `models/optical_flow` 效果更好；"
        "没有它时使用较简单的光流，不需要文件，但可能跟丢快速运动的物体。请在提示词中描述整个画面。"
        "`grow` 是区域向物体外延伸的像素数。结果保持原来的速度和声音。"
    ),
    "Region by a Word": (
        "选择视频，在 `word` 中用英文写出要替换的物体，例如 `car`。此模板需要带有 SAM3 节点的 ComfyUI（0.33 或更新），"
        f"以及 SAM3 的文件：把 [{SAM3_FILE}]({SAM3}/{SAM3_FILE}) 放入 `models/checkpoints`，然后按 R。"
        "没有 SAM3 时，请用模板 `CogVideoX-Fun Region That Follows`。请在提示词中描述整个画面。"
        "`grow` 是区域向物体外延伸的像素数。看不到物体的帧保持原样。结果保持原来的速度和声音。"
    ),
    "Control": (
        "选择提供边缘的视频，写出新视频的内容。`strength` 小于 1 时，新视频不那么严格地跟随边缘。"
        "结果保持原来的速度和声音。"
    ),
    "Extend a Clip": (
        "选择视频，写出它如何继续，并再次写明视频里有什么、运动有多快。从 `start_seconds` 起，"
        "按每秒 8 帧取 `length` 帧，再接着其中的最后一帧生成，新增的帧数是 `length` 减去 `overlap`。"
        "要从较长视频的结尾继续，请把 `start_seconds` 设为视频的总秒数减去 `length` / 8（49 帧时减去 6.1）。"
        "`start_seconds` 之前的部分不在结果中；新增的部分没有声音。"
        "`overlap` 是模型看到的最后几帧，新旧两部分在这几帧上混合。"
    ),
    "Long Video": (
        "选择起始图像，提示词每行对应一轮，最后一行用于其余各轮；每行都请写成完整的提示词。每轮 `round_length` 帧，"
        "其中 `overlap` 帧是上一轮的结尾：209 帧分 5 轮生成，每轮 49 帧，用时是单段视频的 5 倍。"
        "已完成的轮次会保留：中断、加大 `length` 或改写最后一行之后，再点击运行，只生成其余的部分。"
        "换一个 `seed` 则全部重新生成。"
        "如果场景的光线会变化，请打开节点，把 `match_colors` 设为 0。"
        "V1.5 请把 `round_length` 设为 45 或 53。"
    ),
    "LoRA": "选择 LoRA，写好提示词。作者的 LoRA 请放入 `models/loras`，与文件名中所写的模型一起使用，强度约为 0.7。",
    "Few Steps": (
        "选择 LoRA、起始图像和结束图像，写出两者之间发生的事。LoRA 须是为 4 步、用同一个模型训练的，"
        "换一个模型就需要另一个。**目前还没有人发布**：训练命令见本节点包的 `docs/beyond.md`（Few steps 一节），"
        "还没有用真正的模型试过，估计要用 8 块 H100 训练 8 小时。"
        "把得到的 `lora.safetensors` 复制为 `models/loras/fun_2b_few_steps.safetensors`，然后按 R。"
        "没有它时，请用模板 `CogVideoX-Fun Start and End Image to Video`。"
        "请保持 `steps` 为 4、`cfg` 为 1；此时不读取负面提示词。"
        "要在其他模板中使用它，请把“加载 CogVideoX-Fun LoRA”接在模型加载节点之后，并把 `steps` 设为 4、`cfg` 设为 1、"
        "采样器的 `spacing` 设为 trailing。"
    ),
}
FIXED = "颜色、形状和背景来自图像；要换别的，请用模板 `CogVideoX-Fun Text to Video (nano)`。"
# a further point of the nano edition
NANO = {
    "LoRA": "LoRA 用圆环训练而成，模型本身不认识圆环：请在提示词中保留 `ring`。约一半的片段会出现圆环。",
    "Image to Video": FIXED,
    "Start and End Image to Video": FIXED,
    "Few Steps": f"{FIXED}LoRA 由节点包附带。Transformer 只需运行 4 次，而 "
    "`CogVideoX-Fun Start and End Image to Video (nano)` 需要 40 次。模型太小，不用 LoRA 时看上去也差不多。",
}
PROMPT = (
    "**提示词**：请用英文写完整的句子：有谁或什么，在做什么，在哪里，光线如何，镜头怎样移动。"
    "只写几个词，画面几乎不动。"
)
MEMORY = (
    "**显存**（720 x 480）：2B 需要 6 GB，5B 需要 16 GB，用 fp8 时 8 GB：点击节点右上角的图标（Nodes 2.0：进入子图），"
    "在第 1 组把 `weight_dtype` 设为 fp8_e4m3fn。显存更少时，ComfyUI 把模型的一部分留在内存中，速度较慢。"
)
GROUPS = {
    "Model": "模型",
    "Prompt": "提示词",
    "Size": "尺寸",
    "Pictures": "图像",
    "Source clip": "源视频",
    "Latent": "视频的 Latent",
    "Region": "区域",
    "Edges": "边缘",
    "Its last frames": "最后几帧",
    "Known part": "已知部分",
    "Control": "控制",
    "Rounds": "轮次",
    "Sample": "采样",
    "Video": "视频",
}


def section(title: str, groups: list[str], real: str = "") -> str:
    """Markdown.

    Args:
        title: of the task.
        groups: titles of the groups in the task's subgraph: "1 Model".
        real: in the nano edition, the name of the template for real models.
    """
    if real:
        parts = [
            "点击运行即可。`nano` 是节点包附带的极小模型，只认识上面列出的词语，用 128 x 128 像素、17 帧训练而成。",
            "要得到另一段视频，请更改 `seed`：什么都没改时，再次运行不会生成新内容。",
            *filter(None, [NANO.get(title)]),
            f"之后请把真正的模型放入 `models/{FOLDER}`，并打开模板 `{real}`。",
        ]
    else:
        newer = "" if title == "Control" else "；V1.5 为 5、13、21……85 帧"
        parts = [
            ADVICE[title],
            PROMPT,
            "**模型**：用上面的命令或末尾的链接把整个文件夹下载到所示位置，按 R 键，然后在 `model` 中选择。",
            f"**尺寸和长度**：宽和高须为 16 的倍数。V1.0 和 V1.1 一次最多 49 帧{newer}。",
            MEMORY,
        ]
    inside = "，".join(f"{group} {GROUPS[group.partition(' ')[2]]}" for group in groups)
    return "\n\n".join(["## 中文", *parts, f"**节点内的分组**：{inside}。"]) + "\n"
