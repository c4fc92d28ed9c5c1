"""The help pages and the translations, without ComfyUI; tests/host/test_help.py compares them with the schemas."""

import ast
import json
import re
from difflib import SequenceMatcher

import pack
import pytest

DOCS = pack.ROOT / "web" / "docs"
SOURCES = [path for layer in ("nodes", "model_loading", "sampling") for path in (pack.ROOT / layer).rglob("*.py")]
SOURCE = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
IDS = sorted(re.findall(r'node_id="(\w+)"', "".join(p.read_text() for p in (pack.ROOT / "nodes").glob("*.py"))))
SECTIONS = {
    "en": ["Inputs", "Outputs", "Example", "Errors and warnings"],
    "zh": ["输入", "输出", "示例", "错误与警告"],
}
COMFYUI = ("clip input is invalid", "'NoneType' object has no attribute")  # messages of ComfyUI's nodes
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def page(node_id: str, language: str) -> str:
    path = DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"
    return path.read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def quotes(text: str) -> list[str]:
    """The messages that a section quotes: code with a space in it."""
    return [" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", text) if " " in quote.strip()]


def pages():
    return [pytest.param(node_id, language, id=f"{node_id}-{language}") for node_id in IDS for language in SECTIONS]


def tokens(text: str) -> list[str]:
    """Words; what is filled in, and numbers, as …."""
    return re.findall(r"[A-Za-z_']+|…", re.sub(r"%[sd]|\d+", "…", text))


def template(node: ast.AST, constants: dict[str, str]) -> str:
    """The text of an expression that makes a string, with … for what is not written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value, constants) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, constants)
    if isinstance(node, ast.BinOp):
        return template(node.left, constants) + template(node.right, constants)
    return constants.get(node.id, "…") if isinstance(node, ast.Name) else "…"


@pytest.fixture(scope="module")
def messages() -> list[list[str]]:
    """The tokens of every string of the sources."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    constants = {
        target.id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    kinds = ast.Constant, ast.JoinedStr, ast.BinOp
    return [tokens(template(node, constants)) for node in nodes if isinstance(node, kinds)]


@pytest.fixture(scope="module")
def templates() -> dict[str, set[str]]:
    """The nodes of every template."""
    paths = (pack.ROOT / "workflows").glob("*.json")
    return {path.stem: {node["type"] for node in json.loads(path.read_text())["nodes"]} for path in paths}


def test_every_node_has_its_pages_and_no_page_is_left_over():
    assert len(IDS) == len(set(IDS))
    assert {path.stem for path in DOCS.glob("*.md")} == set(IDS)
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == set(IDS)
    assert {path.suffix for path in DOCS.rglob("*") if path.is_file()} <= {".md", ".png"}


@pytest.mark.parametrize("node_id, language", pages())
def test_the_sections_of_a_page(node_id, language):
    text = page(node_id, language)
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [title for title in titles if title in SECTIONS[language]] == SECTIONS[language]
    assert text.startswith("# ") and text.endswith("\n") and len(text.split("## ")[0].splitlines()[2]) > 15
    assert text.count("```") % 2 == 0
    assert len(CHINESE.findall(text)) > 150 if language == "zh" else not CHINESE.search(text)


@pytest.mark.parametrize("node_id, language", pages())
def test_pictures_exist_and_masks_have_one(node_id, language):
    """The front end resolves them against docs/ whatever the language, so a page below refers to them likewise."""
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page(node_id, language))
    for picture in pictures:
        assert re.fullmatch(r"[\w-]+\.png", picture) and (DOCS / picture).stat().st_size < 60_000, picture
    has_mask = "(MASK" in page(node_id, "en")
    assert ("mask.png" in pictures) == has_mask


@pytest.mark.parametrize("node_id, language", pages())
def test_the_example_names_a_template_that_has_the_node(node_id, language, templates):
    example = section(page(node_id, language), SECTIONS[language][2])
    quoted = set(re.findall(r"`(\w+)`", example))
    unknown = {name for name in quoted - set(templates) if "_" in name and f'"{name}"' not in SOURCE}
    assert not unknown, "neither a template nor an input"
    named = quoted & set(templates)
    using = {name for name, nodes in templates.items() if node_id in nodes}
    assert named <= using or not using, f"{named - using} do not have the node"
    assert named & using or not using, f"name one of {using}"
    assert "```" in example


@pytest.mark.parametrize("node_id", IDS)
def test_messages_are_those_of_the_code(node_id, messages):
    """A run of half of a message's words, without what is filled in, stands in a string of the code."""
    for quote in quotes(section(page(node_id, "en"), "Errors and warnings")):
        wanted = tokens(quote)
        least = sum(word != "…" for word in wanted) / 2
        likely = (m for m in messages if len(set(wanted) & set(m) - {"…"}) >= least)
        runs = (SequenceMatcher(None, wanted, m, autojunk=False).find_longest_match().size for m in likely)
        assert any(run >= least for run in runs) or any(own in quote for own in COMFYUI), f"no message says {quote}"


@pytest.mark.parametrize("node_id", IDS)
def test_both_languages_quote_the_same_messages(node_id):
    english, chinese = (sorted(quotes(section(page(node_id, lang), SECTIONS[lang][3]))) for lang in ("en", "zh"))
    assert english == chinese and english


def test_the_translations_hold_every_node_and_nothing_that_the_front_end_would_read_as_syntax():
    """Messages of vue-i18n: braces interpolate, @ links, | separates plurals."""
    translated = json.loads((pack.ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    titles = {node_id: page(node_id, "zh").splitlines()[0] for node_id in IDS}
    assert titles == {node_id: f"# {node['display_name']}" for node_id, node in translated.items()}

    def strings(value):
        if isinstance(value, str):
            yield value
        else:
            for inner in value.values():
                yield from strings(inner)

    assert not [string for string in strings(translated) if set(string) & set("{}@|")]


def test_the_migration_guide_names_nodes_that_exist():
    text = (pack.ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    own = {
        name
        for row in re.findall(r"^\|[^|]*\|([^|]*)\|", text, re.MULTILINE)
        for name in re.findall(r"CogVideoXFun\w+", row)
    }
    assert own <= set(IDS), own - set(IDS)
