"""The checkpoint that a command starts from, and what it already knows of network and data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models import Network, restore
from utils.console import InputError, note
from utils.data.datasets import Dataset
from utils.files import checkpoint
from utils.flags.settings import Settings, parser, resolve
from utils.methods.slimming import Baseline
from utils.training.run import Files


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run goes on with (``resumes``) or starts from, if there is one."""

    path: str | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    network: Network | None = None
    resumes: bool = False

    @classmethod
    def load(cls, path: str, resumes: bool = False) -> "Source":
        return cls(path, *checkpoint.load(Path(path), restore), resumes)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Source":
        """What ``--resume``, ``--refine`` or ``--evaluate`` say."""
        resume = given.get("resume")
        if resume not in (None, "auto"):
            source = cls.load(resume, resumes=True)
            if "epoch" not in source.content:
                raise InputError(
                    f"{resume} cannot be resumed: no training is in it; fine-tune by --refine"
                )
            return source
        path = given.get("refine", given.get("evaluate"))
        start = cls() if path is None else cls.load(path)
        if resume == "auto" and "seeds" not in given:
            files = start.files(given, start.settings(given))
            if newest := files.newest():
                note(f"going on with {newest[0]}")
                return cls(str(newest[0]), *newest[1:], resumes=True)
        return start

    def known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What need not be said again. Raises InputError where ``given`` contradicts it."""
        if self.network is None:
            return {}
        known = inherit(self.content, self.network, self.path)
        check_said(given, known, self.path)
        return known

    def settings(self, given: Mapping[str, Any]) -> Settings:
        stored = stored_settings(self.content, self.path) if self.resumes else {}
        return resolve(given, stored, self.known(given))

    def files(self, given: Mapping[str, Any], settings: Settings) -> Files:
        folder = "logs" if self.path is None else Path(self.path).parent
        return Files(Path(given.get("save", folder)), settings.run)


def stored_settings(content: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The settings in the checkpoint read from ``path``, {} in one of an earlier program.

    Raises InputError unless they could have been given as flags.
    """
    stored = content.get("settings", {})
    flags = []
    for name in (f.name for f in fields(Settings)):
        value = stored.get(name)
        flag = "--" + name.replace("_", "-")
        if name == "method" and value != Baseline.name:
            flags += [] if value is None else ["-sr", f"{flag}={value}"]
        elif name == "nesterov":
            flags += ["--no-nesterov"] if value is False else []
        elif name in ("deterministic", "keep_dead"):
            flags += ["--" + name.replace("_", "-")] if value is True else []
        elif value is not None and name not in ("method", "xi_init"):
            flags.append(f"{flag}={value}")

    def refuse(message: str) -> None:
        raise InputError(f"{path} cannot be resumed or pruned: its settings are damaged: {message}")

    strict = parser()
    strict.error = refuse
    unsaid = {"method": Baseline.name, "nesterov": True, "deterministic": False, "keep_dead": False}
    said = unsaid | vars(strict.parse_args(flags))
    if xi_init := stored.get("xi_init"):  # argparse takes -1e-05 for a flag
        bounds = all(isinstance(x, float) and abs(x) <= 1e30 for x in xi_init)
        if not bounds or len(xi_init) != 2:
            refuse(f"xi_init is {xi_init!r}")
        said["xi_init"] = xi_init
    for key, value in stored.items():
        if value is not None and said.get(key) != value:
            refuse(f"{key} is {value!r}")
    return dict(stored)


def inherit(content: Mapping[str, Any], network: Network, path: str) -> dict[str, Any]:
    """What need not be said again of a network and its data, from its checkpoint at ``path``."""
    kept = ("name", "dataset", "data", "subset", "test_subset", "seed")
    source = stored_settings(content, path)
    known = {key: source[key] for key in kept if source.get(key) is not None}
    return {**known, "arch": network.arch, "depth": network.depth}


def check_said(given: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    """Raise InputError where a flag contradicts what the checkpoint at ``path`` knows."""
    for key in ("arch", "depth", "dataset"):
        said, is_ = given.get(key), known.get(key)
        if None not in (said, is_) and said != is_:
            raise InputError(f"{path} has {key} {is_}, not {said}")


def check_classes(content: Mapping[str, Any], network: Network, data: Dataset, path: str) -> None:
    """Raise InputError where the network at ``path`` knows other classes than ``data`` has."""
    classes = content.get("classes") or list(data.classes)
    if network.num_classes != len(data.classes) or list(classes) != list(data.classes):
        raise InputError(
            f"{path} tells {network.num_classes} classes apart ({', '.join(classes[:3])}, ...),"
            f" but {data.name} has {len(data.classes)} ({', '.join(data.classes[:3])}, ...)"
        )
