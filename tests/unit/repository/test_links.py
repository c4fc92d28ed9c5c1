"""Every link and picture of the pages in Markdown leads to a file of the repository."""

import re

import pytest
from pack import ROOT
from sources import name_of

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "training" / "README.md"]
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (found[1] or found[2]).split("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
