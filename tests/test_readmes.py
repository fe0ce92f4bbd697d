"""The READMEs: short enough to be read, their links lead somewhere, and their code runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

import warm
from utils.flags.parser import parser as main_parser
from utils.pruning.command import parser as prune_parser

ROOT = Path(__file__).parents[1]
READMES = [p for p in ROOT.rglob("README.md") if not p.relative_to(ROOT).parts[0].startswith(".")]
CODE = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```(python|shell)\n(.*?)```", re.DOTALL)
PARSERS = {"main.py": main_parser, "utils.prune": partial(prune_parser, None)}
PARSERS |= {f"{kind}_prune.py": partial(prune_parser, kind) for kind in ("vgg", "resnet")}

each_readme = pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """Of its headings, as Markdown viewers make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_first_one_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1800


@each_readme
def test_links_lead_somewhere(readme):
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", readme.read_text()):
        name, _, anchor = link.partition("#")
        path = (readme.parent / name).resolve() if name else readme
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path / "README.md" if path.is_dir() else path), link


@each_readme
def test_commands_that_are_not_run_have_valid_flags(readme):
    found = CODE.findall(readme.read_text())
    blocks = [code for marked, language, code in found if marked and language == "shell"]
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:
            words[: words.index("--") + 1] = ["python"]
        if words[:1] == ["python"]:
            name, *argv = words[2:] if words[1] == "-m" else words[1:]
            module = "utils.bench.__main__" if name == "utils.bench" else name
            parser = PARSERS.get(name) or import_module(module).parser
            parser().parse_args(argv)


@each_readme
def test_code_runs_as_it_stands(readme, tmp_path):
    """Blocks run in their order, in a copy of the program; one that begins with the name of a file
    of the program is that file."""
    blocks = [found[1:] for found in CODE.findall(readme.read_text()) if not found[0]]
    if not blocks:
        return
    for name in ("models", "utils", "netslim"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(path, tmp_path)
    folders = [str(Path(python).parent) for python in (warm.PYTHON, sys.executable)]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for language, block in blocks:
        if place := re.match(r"# (append to )?(\S+\.py)\n", block):
            with (tmp_path / place[2]).open("a" if place[1] else "x") as file:
                file.write(block)
            assert block.count("\n") <= 25
            continue
        command = [warm.PYTHON, "-c"] if language == "python" else ["bash", "-euc"]
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([*command, block], **options)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
