"""Names that only this project understood do not come back."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Replaced by the field's terms: trainer, config, checkpoint, mask, dependency graph, metrics, ...
REPLACED = set(
    "Stays wiring Wiring whereabouts put_back still_read emitted narrowed widened never_cut"
    " Slimmable Positions Chains goes_through asks_size adopt Named Run Moment on_host take_up"
    " worth_cutting cut_dead Reading Score Tally retake alternate after_the_cut way_on said_again"
    " PROCESS said_by OWN KEPT BEGINS of_cells Start known_of newest check_free unresumable"
    " zeroed figures forget idle remedy optimised halted steep Lost Stopped Diverged alone is_held"
    " early refuse on_time first_says take_from_first uncut in_order Listing as_imagenet centred"
    " THINNEST told settle Agenda begun_with Told refining untrusted layouts account given said"
    " maker gone picture pictures slim".split()
)


def identifiers(path: Path) -> set[str]:
    """The names that the code of a module defines or uses, and the module's own."""
    names = {path.stem}
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "name", "arg"):
            if isinstance(name := getattr(node, field, None), str):
                names.add(name.strip("_"))
    return names


def test_no_name_of_the_program_is_one_of_those_that_were_replaced() -> None:
    programs = [*ROOT.glob("*.py")]
    for folder in ("models", "netslim", "utils"):
        programs += (ROOT / folder).rglob("*.py")
    found = {path.name: names for path in programs if (names := identifiers(path) & REPLACED)}
    assert len(programs) > 80 and not found
