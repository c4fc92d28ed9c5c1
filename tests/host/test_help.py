"""The help pages and the translations against the schemas that ComfyUI sends."""

import json
import re
import urllib.request
from decimal import Decimal

import pack
import pytest

DOCS = pack.ROOT / "web" / "docs"
HEADINGS = {"en": ("Inputs", "Outputs"), "zh": ("输入", "输出")}
SOCKETS = {"en": ("required", "optional"), "zh": ("必需", "可选")}
SWITCH = {"en": ("off", "on"), "zh": ("关", "开")}
FILES = {"en": "the first one found", "zh": "找到的第一个"}
BRANDS = {"CLIP", "VAE", "CFG", "Sigmas", "Latent"}  # are not translated
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def info(lab):
    return {name: node for name, node in lab.server.get("/object_info").items() if name.startswith("CogVideoXFun")}


@pytest.fixture(scope="module")
def translated(lab):
    return lab.server.get("/i18n")["zh"]["nodeDefs"]


def inputs_of(node: dict) -> dict[str, tuple]:
    """name -> (kind, options, optional); the choices of a combo in the options, in either form of them."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in node["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found[name] = kind, options, group == "optional"
    return found


def served(lab, path: str) -> str:
    with urllib.request.urlopen(f"{lab.server.url}/extensions/cogvideox-fun/docs/{path}", timeout=30) as answer:
        return answer.read().decode("utf-8")


def page(node_id: str, language: str) -> str:
    path = DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"
    return path.read_text(encoding="utf-8")


def entries(text: str, heading: str) -> dict[str, str]:
    """What stands in the brackets behind each name of a section's list."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    return dict(re.findall(r"^- \*\*([^*]+)\*\*\s*[(（]([^)）]*)[)）]", section, re.MULTILINE))


def check_input(name: str, stated: str, kind: str, options: dict, optional: bool, language: str) -> None:
    where = f"{name} ({stated})"
    if kind in ("INT", "FLOAT"):
        expected = [options[key] for key in ("default", "min", "max")]
        expected += [options["step"]] if options.get("step") not in (None, 1) else []
        assert stated.startswith(kind), where
        assert [Decimal(n) for n in NUMBER.findall(stated)] == [Decimal(str(n)) for n in expected], where
    elif kind == "BOOLEAN":
        assert re.split(r"[,，]\s*", stated)[1] == SWITCH[language][options["default"]], where
    elif kind == "COMBO":
        listed = re.findall(r"`([^`]+)`", stated)
        if options.get("default") is None:
            assert FILES[language] in stated, where
        else:
            assert listed[0] == options["default"], where
            assert len(options["options"]) > 12 or set(listed) == set(options["options"]), where
    else:
        assert kind in stated and SOCKETS[language][optional] in stated, where


@pytest.mark.parametrize("language", HEADINGS)
def test_pages_name_every_input_and_output_with_range_and_default(info, language):
    problems = []
    for node_id, node in info.items():
        text = page(node_id, language)
        stated, made = (entries(text, heading) for heading in HEADINGS[language])
        inputs = inputs_of(node)
        if list(stated) != list(inputs):
            problems.append(f"{node_id}: the page has {list(stated)}, the schema {list(inputs)}")
            continue
        outputs = dict(zip(node["output_name"], node["output"], strict=True))
        if list(made) != list(outputs) or not all(kind in made[name] for name, kind in outputs.items()):
            problems.append(f"{node_id}: the page has {made}, the schema {outputs}")
        for name, (kind, options, optional) in inputs.items():
            try:
                check_input(name, stated[name], kind, options, optional, language)
            except AssertionError as error:
                problems.append(f"{node_id}: {str(error).splitlines()[0]}")
    assert not problems, "\n".join(problems)


def test_comfyui_serves_the_pages_and_the_translations(lab, info, translated):
    for node_id, node in info.items():
        text = served(lab, f"{node_id}.md")
        assert text == (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
        assert text.splitlines()[0] == f"# {node['display_name']}"
    assert served(lab, "CogVideoXFunSampler/zh.md") == (DOCS / "CogVideoXFunSampler" / "zh.md").read_text("utf-8")
    own = json.loads((pack.ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {name: node for name, node in translated.items() if name.startswith("CogVideoXFun")} == own


def english_of(node: dict) -> dict:
    """What the schema says, in the shape of a translation."""
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {name: {"name": name, "tooltip": o["tooltip"]} for name, (_, o, _) in inputs_of(node).items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def strings(english, chinese, path: str):
    """(where, Chinese) of every string; asserts that neither language has an entry that the other lacks."""
    if isinstance(english, str):
        yield path, chinese
        return
    assert list(chinese) == list(english), f"{path}: {list(chinese)}, expected {list(english)}"
    for key, value in english.items():
        yield from strings(value, chinese[key], f"{path}.{key}")


def test_every_node_input_and_output_is_translated(translated, info):
    found = [pair for name, node in info.items() for pair in strings(english_of(node), translated[name], name)]
    left = {path: text for path, text in found if not CHINESE.search(text) and text not in BRANDS}
    assert not left


def test_search_aliases(info):
    """0.3.64 has no such field."""
    aliases = {node_id: node.get("search_aliases") for node_id, node in info.items()}
    if not any(aliases.values()):
        pytest.skip("this ComfyUI has no search aliases")
    for typed, name in {"i2v": "InpaintConditioning", "riflex": "PositionInterpolation"}.items():
        assert typed in aliases[f"CogVideoXFun{name}"], typed
