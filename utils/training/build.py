"""How a run begins: its pictures, its network, the precision and the processes that train it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models import family
from netslim.graph import AnyBatchNorm
from utils.console import ONE_VALUE, InputError, note
from utils.data.batches import Batches
from utils.data.datasets import Dataset, load
from utils.data.streaming import WORKERS, batches_of
from utils.device import Execution, be_deterministic, build_execution, fastest_precision
from utils.files.init_from import InitFrom, check_not_overwriting
from utils.flags.config import Config
from utils.flags.parser import unused_flags
from utils.methods import METHODS, penalties
from utils.network import Network, empty, fresh
from utils.paper.settings import drops
from utils.training.distributed import ProcessGroup
from utils.training.step import Step
from utils.training.trainer import Trainer


def build_trainer(
    start: InitFrom,
    given: Mapping[str, Any],
    device: torch.device,
    group: ProcessGroup,
    alternate: Callable[[Step, Tensor], None],
) -> Trainer:
    """The run that ``given`` tells, from where it ``start``s; ``alternate`` makes its steps.

    Raises InputError where these flags, this file and these pictures do not go together.
    """
    settings = start.config(given)
    if idle := unused_flags(given, settings):
        note(f"note: {settings.method} training does not use {', '.join(idle)}")
    chosen = start.checkpoint.precision if start.resumes and start.checkpoint else None
    if "tf32" in (settings.precision, chosen) and device.type == "cpu":
        raise InputError("only a GPU computes in tf32: choose another --precision for a new run")
    try:
        model = empty(settings.arch, settings.depth, 1)
    except ValueError as error:
        raise InputError(str(error)) from None
    norms = [m for m in model.modules() if isinstance(m, AnyBatchNorm) and m.affine]
    if METHODS[settings.method].prunes() and not norms:
        raise InputError(
            f"{settings.arch} has no batch norm, so --method {settings.method} finds no channels:"
            " take --method sas-admm"
        )
    files = start.paths(given, settings)
    check_not_overwriting(files, start.path if start.resumes else None)

    if group.rank > 0:
        group.barrier()  # the first process downloads and decodes for all
    data = load(settings.to_dict(), start.norm(settings))
    if group.rank == 0:
        group.barrier()
    torch.manual_seed(settings.seed)
    be_deterministic(settings.deterministic)
    if start.checkpoint is None or start.path is None:
        network = build_network(settings, data)
    else:
        network = start.checkpoint.network
        if network.coupled != (coupled := penalties.grouped(settings.options)):
            network = replace(network, coupled=coupled)
        begins = settings.init is not None and not start.resumes
        if begins and not start.checkpoint.has_classes(data.classes):
            count = network.num_classes
            network = network.with_classes(len(data.classes))
            note(f"note: the last layer, of {count} classes, is a fresh one of {len(data.classes)}")
        else:
            start.checkpoint.check_classes(data, start.path)
    workers = given.get("workers", WORKERS)
    batches = batches_of(
        data, "train", settings.batch_size, device, settings.seed, workers, group.local_part
    )
    graphs = device.type == "cuda" and group.size == 1 and "no_graph" not in given
    if graphs and settings.stream:  # a graph takes its pictures from the device
        note("note: pictures that are streamed are trained on without CUDA graphs")
        graphs = False
    execution = choose_execution(start, settings, network, batches, group, graphs)
    group.barrier()  # all have loaded, and are on time from here on
    group = group.with_timeout()
    found = start.checkpoint if start.resumes else None
    how = execution, group, alternate, graphs, found, settings.start_epoch, start.init_checksum()
    try:
        run = Trainer(settings, files, network, data, batches, *how)
    except ValueError as error:
        what = f"{start.path} cannot be resumed" if found else settings.arch
        raise InputError(f"{what}: {error}") from None
    check_smallest_batch(run)
    for line in (*data.describe(), *start.notes(data)):
        note(line)
    if run.step.method.prunes():
        for line in notes(network):
            note(line)
    if found is None:
        if line := of_short_schedule(settings):
            note(line)
        trained = settings.arch, settings.depth, run.step.optimizer
        for line in run.step.method.warnings(run.schedule(), *trained):
            note(line)
    elif start.path is not None and start.path.resolve() != files.checkpoint.resolve():
        run.snapshot()  # its own checkpoint is elsewhere or damaged, and there may be no epoch left
    return run


def choose_execution(
    start: InitFrom,
    settings: Config,
    network: Network,
    batches: Batches,
    group: ProcessGroup,
    graphs: bool,
) -> Execution:
    """Precision and memory format: as the run that is resumed, else as told, or measured."""
    device = batches.labels.device
    before = start.checkpoint if start.resumes else None
    if before is not None and before.precision is not None:
        if settings.precision not in ("auto", before.precision):
            raise InputError(f"this run was started with --precision {before.precision}")
        return Execution(device, before.precision, before.channels_last)
    precision = settings.precision
    if precision == "auto":
        first = batches.get_batch(group.local_part(batches.epoch_indices(0)[0]))
        precision = group.broadcast_object(
            lambda: fastest_precision(network, *first, device, graphs)
        )
        note(f"fastest here: {precision}")
    return build_execution(network, precision, device)


def build_network(settings: Config, data: Dataset) -> Network:
    """The network of ``settings``, with its initial values."""
    s = settings
    network = fresh(s.arch, s.depth, len(data.classes), s.size, penalties.grouped(s.options))
    METHODS[s.method].initialise(network.model)
    return network


def check_smallest_batch(run: Trainer) -> None:
    """Raise InputError where a process's part of a batch is one image that batch norm cannot take.

    That is where its map of the image is one pixel: a variance takes two values or more.
    """
    size, images = run.config.batch_size, len(run.data.train)
    batches = {size} if run.step.method.steps(0) else {min(size, images), images % size or size}
    processes = run.group.size
    if all((count if count < processes else count // processes) > 1 for count in batches):
        return
    model = copy.deepcopy(run.step.model).to("meta").float().train()
    image = torch.empty(1, 3, run.config.size, run.config.size, device="meta")
    try:
        model(image)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
    else:
        return
    shared = f" over {processes} processes" if processes > 1 else ""
    raise InputError(
        f"a batch of one image cannot be normalised where batch norm sees one pixel of it, and"
        f" --batch-size {size} leaves one of {images:,} images{shared}: choose another"
        " --batch-size, or a larger --size"
    )


def of_short_schedule(settings: Config) -> str:
    """What to say before a training too short for the paper's drops of the learning rate, or ''."""
    s, usual = settings, (settings.epochs // 2, 3 * settings.epochs // 4)
    found = drops(s.epochs, s.warmup)
    if "lr" in METHODS[s.method].unused_flags or s.schedule != "step" or found == usual:
        return ""
    after = [f"after epoch {epoch}" for epoch in found if epoch < s.epochs]
    behind = f" behind --warmup {s.warmup}" if s.warmup else ""
    return (
        f"warning: --epochs {s.epochs} is too short to drop the learning rate after half and after"
        f" three quarters{behind}: it drops {' and '.join(after) or 'never'}"
    )


def notes(network: Network) -> Iterator[str]:
    """What to say before a training of what of ``network`` cannot be removed, or not at once."""
    channels, every = sum(network.widths), network.all_channels
    if channels < every and not family(network.arch):  # of the paper's networks it is known
        yield (
            f"note: {channels} of {every} channels of batch norms can go, and are penalised; of the"
            " others, the prune command says why they stay"
        )
    if kept := [name for name in network.norms if name in network.graph.drawn_for]:
        yield (
            f"note: no channel of {', '.join(kept)} is cut while training: dropout behind it would"
            " draw other numbers"
        )
