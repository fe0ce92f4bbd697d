"""The READMEs: short enough to be read, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [p for p in ROOT.rglob("README.md") if not p.relative_to(ROOT).parts[0].startswith(".")]


def anchors(path: Path) -> set[str]:
    """Of its headings, as Markdown viewers make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_first_one_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 2500


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme):
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", readme.read_text()):
        name, _, anchor = link.partition("#")
        path = (readme.parent / name).resolve() if name else readme
        assert path.exists(), link
        if anchor:
            text = path / "README.md" if path.is_dir() else path
            assert anchor in anchors(text), link
