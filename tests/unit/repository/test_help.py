"""The help pages and the translations, without ComfyUI; tests/host/test_help.py compares them with the schemas."""

import json
import re

import pack
import pytest

DOCS = pack.ROOT / "web" / "docs"
IDS = sorted(re.findall(r'node_id="(\w+)"', "".join(p.read_text() for p in (pack.ROOT / "nodes").glob("*.py"))))
SECTIONS = {
    "en": ["Inputs", "Outputs", "Example", "Errors and warnings"],
    "zh": ["输入", "输出", "示例", "错误与警告"],
}
TEMPLATES = {
    path.stem: {node["class_type"] for node in json.loads(path.read_text()).values()}
    for path in (pack.ROOT / "tests" / "data" / "api").glob("CogVideoX-Fun *.json")
}
TRANSLATIONS = (pack.ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def page(node_id: str, language: str) -> str:
    path = DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"
    return path.read_text(encoding="utf-8")


def sections(node_id: str, language: str) -> dict[str, str]:
    """The sections that every page has, in the page's order."""
    found = re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", page(node_id, language), re.MULTILINE)
    return {title: text for title, text in found if title in SECTIONS[language]}


def test_every_node_has_its_pages_and_no_page_is_left_over():
    assert {path.stem for path in DOCS.glob("*.md")} == set(IDS)
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == set(IDS)


@pytest.mark.parametrize("language", SECTIONS)
@pytest.mark.parametrize("node_id", IDS)
def test_a_page(node_id, language):
    """Its sections, its language, its pictures, and an example that names a template with the node."""
    text, found = page(node_id, language), sections(node_id, language)
    assert list(found) == SECTIONS[language]
    assert len(CHINESE.findall(text)) > 150 if language == "zh" else not CHINESE.search(text)
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):  # the front end looks in docs/ in every language
        assert re.fullmatch(r"[\w-]+\.png", picture) and (DOCS / picture).is_file(), picture
    named = set(re.findall(r"`([^`]+)`", found[SECTIONS[language][2]])) & set(TEMPLATES)
    using = {name for name, nodes in TEMPLATES.items() if node_id in nodes}
    assert not using or (named and named <= using), f"{named}, expected one of {using}"


@pytest.mark.parametrize("node_id", IDS)
def test_both_languages_quote_the_same_messages(node_id):
    """A message is code with a space in it."""
    english, chinese = (
        re.findall(r"`([^`]+)`", " ".join(sections(node_id, lang)[names[3]].split()))
        for lang, names in SECTIONS.items()
    )
    english, chinese = (sorted(quote for quote in quotes if " " in quote) for quotes in (english, chinese))
    assert english == chinese and english


def test_the_translations_hold_every_node_and_nothing_that_the_front_end_would_read_as_syntax():
    """Messages of vue-i18n: braces interpolate, @ links, | separates plurals."""
    titles = {node_id: page(node_id, "zh").splitlines()[0] for node_id in IDS}
    translated = json.loads(TRANSLATIONS)
    assert titles == {node_id: f"# {node['display_name']}" for node_id, node in translated.items()}
    assert not [text for text in re.findall(r'"((?:[^"\\]|\\.)*)"', TRANSLATIONS) if set(text) & set("{}@|")]
