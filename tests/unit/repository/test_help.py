"""The help pages and the translations, without ComfyUI; tests/host/test_help.py compares them with the schemas."""

import json
import re

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
