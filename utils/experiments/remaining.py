"""What experiments still lack in a folder, and what that should cost."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.console import InputError, clock
from utils.experiments.jobs import Experiment, Job
from utils.reports import results

SPENT = ("train_seconds", "test_seconds")


class Agenda:
    """The ``jobs`` that ``experiments`` lack in ``folder`` for each of ``seeds``, in order.

    ``flags`` of main.py go to trainings, those among them that a pruning takes to prunings.

    Raises InputError where a run has the name of another with other settings, or where the records
    cannot be read.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        seeds: Iterable[int],
        folder: Path,
        flags: Sequence[str],
        prune_flags: Sequence[str],
    ) -> None:
        self.folder = folder
        self.flags = {"train": tuple(flags), "refine": tuple(flags), "prune": tuple(prune_flags)}
        found = results.load(folder) if folder.is_dir() else []
        self.results = {result.train["run"]: result for result in found}
        # Seed by seed: the first whole rows of a table come early.
        runs = [(e, seed) for seed in seeds for e in experiments]
        self.seconds = self._measured(runs)
        self.jobs: list[Job] = []
        self.lines = [["run", "train", "prune", "fine-tune", "left"]]
        for e, seed in runs:
            self._add(e, seed)

    def _measured(self, runs: Sequence[tuple[Experiment, int]]) -> dict[tuple, list[float]]:
        """Seconds that epochs took, by run and by network, data and flags; and by stage."""
        seconds = defaultdict(list)

        def add(value: float, run: str, group: tuple, stage: str) -> None:
            *network, _, flags = group  # whatever the epochs
            seconds[run, stage].append(value)
            seconds[*network, flags, stage].append(value)

        for run, result in self.results.items():
            add(result.value("train_seconds"), run, result.group, "train")
            if result.refine:
                add(float(result.refine["seconds_per_epoch"]), run, result.group, "refine")
        for e, seed in runs:
            for stage in ("train", "refine"):
                log = self._log(e.run(seed), stage)
                if log and (e.run(seed), stage) not in seconds:
                    # The latest epoch's: a network gets cheaper while it trains.
                    spent = sum(float(log[-1][column]) for column in SPENT)
                    add(spent, e.run(seed), e.group, stage)
        return seconds

    def _log(self, run: str, stage: str) -> list[results.Row]:
        """The epochs so far of a training that has a checkpoint to go on from."""
        run = run if stage == "train" else f"{run}_refine"
        if not (self.folder / f"{run}checkpoint.pth.tar").exists():
            return []
        return results.read(self.folder / f"{run}log.csv", SPENT)

    def _seconds_per_epoch(self, e: Experiment, run: str, stage: str) -> float | None:
        """As in this run, else in others of its network; a slim one takes no more than a full."""
        network = (e.arch, e.depth, e.dataset, e.flags)
        for key in ((run, stage), (*network, stage), (*network, "train")):
            if spent := self.seconds.get(key):
                return sum(spent) / len(spent)
        return None

    def _add(self, e: Experiment, seed: int) -> None:
        """What is left of a run, as jobs and as a line of the overview."""
        run = e.run(seed)
        result = self.results.get(run)
        if result is not None:
            self._check_same(e, run, result)
        refined = result is not None and result.refine is not None
        # A slim network that was fine-tuned may be gone.
        slim = refined or (self.folder / f"{run}_pruned.pth.tar").exists()
        pruned = slim and result is not None and result.pruning(e.share) is not None
        cells, left = [], []
        for stage, epochs, needed, done in (
            ("train", e.epochs, True, result is not None),
            ("prune", 0, e.prunes, pruned),
            ("refine", e.refine_epochs, e.refine_epochs > 0, refined),
        ):
            if not needed or done:
                cells.append("done" if needed else "-")
                continue
            each = self._seconds_per_epoch(e, run, stage) if epochs else 0
            epochs_left = max(epochs - len(self._log(run, stage)), 0)
            seconds = None if each is None else each * epochs_left
            left.append(Job(e, seed, stage, self.folder, self.flags[stage], seconds))
            of = "" if epochs_left == epochs else f"{epochs_left} of "
            cells.append(f"{of}{epochs} epochs" if epochs else "to do")
        self.jobs += left
        self.lines.append([run, *cells, _cost(left) if left else "-"])

    def _check_same(self, e: Experiment, run: str, result: results.Result) -> None:
        names = ("arch", "depth", "dataset", "epochs", "flags", "method", "λ", "β", "alternation")
        terms = zip(names, (*result.group, *result.setting), (*e.group, *e.setting), strict=True)
        self._refuse_other("train_record.csv", run, terms)
        if e.refine_epochs and result.refine:
            flags = e.flags if result.refine_flags is None else result.refine_flags
            has = int(result.refine["epochs"]), flags, result.refine["method"]
            takes = e.refine_epochs, e.flags, "baseline"
            terms = zip(("epochs", "flags", "method"), has, takes, strict=True)
            self._refuse_other("refine_record.csv", f"{run}_refine", terms)

    def _refuse_other(self, record: str, run: str, terms: Iterable[tuple[str, Any, Any]]) -> None:
        for name, before, now in terms:
            known = name != "flags" or results.UNKNOWN not in before
            if before != now and known:
                raise InputError(
                    f"{self.folder}/{record} has {run} with {name} {before or 'as usual'}, not"
                    f" {now or 'as usual'}: choose another --save"
                )

    def overview(self, gpus: int) -> str:
        """What is done and what is left, run by run, and the whole cost."""
        count = {stage: sum(job.stage == stage for job in self.jobs) for stage in self.flags}
        where = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "the CPU, one at a time"
        left = (
            f"left: {count['train']} trainings, {count['prune']} prunings,"
            f" {count['refine']} fine-tunings, on {where}: {_cost(self.jobs)}"
            + (f" in all, divided by {gpus} GPUs" if gpus > 1 else "")
        )
        width = max(len(run) for run, *_ in self.lines)
        lines = [
            (f"{run:<{width}}" + "".join(f"  {cell:<15}" for cell in cells)).rstrip()
            for run, *cells in self.lines
        ]
        return "\n".join([*lines, left if self.jobs else "all is done"])


def _cost(jobs: Sequence[Job]) -> str:
    """Seconds per epoch × epochs left. Prunings take seconds each, and count for nothing."""
    known = [job.seconds for job in jobs if job.seconds is not None]
    unknown = "" if len(known) == len(jobs) else "unknown"
    return " + ".join(filter(None, [clock(sum(known)) if sum(known) else "", unknown])) or "0:00"
