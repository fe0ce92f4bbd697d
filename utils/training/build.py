"""Builds a trainer from flags and checkpoint: data, model, precision, processes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from models import family
from netslim.graph import AnyBatchNorm
from netslim.methods.penalties import L1
from utils.console import InputError, note
from utils.data.batches import WORKERS, Batches
from utils.data.datasets import Dataset, check_folder, load
from utils.device import Execution, be_deterministic
from utils.files.checkpoint import Checkpoint
from utils.files.init_from import InitFrom, check_not_overwriting
from utils.flags.config import Config
from utils.flags.parser import unused_flags
from utils.methods import METHODS
from utils.methods.slimming import has_group_penalty
from utils.network import Network, empty, fresh
from utils.paper.settings import drops
from utils.training.distributed import ProcessGroup
from utils.training.precision import build_execution, fastest_precision
from utils.training.trainer import Trainer


def build_trainer(
    init_from: InitFrom, args: Mapping[str, Any], device: torch.device, group: ProcessGroup
) -> Trainer:
    """Returns the trainer of the run that ``args`` describe, started or resumed.

    Raises:
        InputError: flags, checkpoint and data contradict one another.
    """
    config = init_from.config(args)
    if unused := unused_flags(args, config):
        note(f"note: {config.method} training does not use {', '.join(unused)}")
    resumed = init_from.checkpoint if init_from.resumes else None
    check_config(config, resumed.precision if resumed else None, device)
    paths = init_from.paths(args, config)
    check_folder(config.dataset, config.data)
    check_not_overwriting(paths, init_from.path if resumed else None)

    if group.rank > 0:
        group.barrier()  # rank 0 downloads and decodes first
    data = load(config.to_dict(), init_from.norm(config))
    if group.rank == 0:
        group.barrier()
    torch.manual_seed(config.seed)
    be_deterministic(config.deterministic)
    if init_from.checkpoint is None:
        network = build_network(config, data)
    else:
        network = load_network(init_from, config, data)
    workers = args.get("workers", WORKERS)
    batches = Batches(
        data, "train", config.batch_size, device, config.seed, workers, group.local_part
    )
    use_cuda_graphs = device.type == "cuda" and group.size == 1 and "no_graph" not in args
    if use_cuda_graphs and config.stream:
        note("note: training without CUDA graphs: they need the images on the device, not --stream")
        use_cuda_graphs = False
    execution = choose_execution(resumed, config, network, batches, group, use_cuda_graphs)
    group.barrier()  # everything is loaded: from here on, nobody waits long
    try:
        trainer = Trainer(
            config,
            paths,
            network,
            data,
            batches,
            execution,
            group.with_timeout(),
            use_cuda_graphs,
            resumed,
            config.start_epoch,
            init_from.init_checksum(),
        )
    except ValueError as error:
        subject = f"{init_from.path} cannot be resumed" if resumed else config.arch
        raise InputError(f"{subject}: {error}") from None
    lines = [*data.describe(), *init_from.notes(data), *notes(trainer)]
    if resumed is None:
        lines += short_schedule_warning(config)
        lines += trainer.step.method.warnings(trainer.setup())
    for line in lines:
        note(line)
    if resumed and init_from.path and init_from.path.resolve() != paths.checkpoint.resolve():
        paths.directory.mkdir(parents=True, exist_ok=True)
        trainer.save()  # its own checkpoint is elsewhere or damaged
    return trainer


def check_config(config: Config, resumed_precision: str | None, device: torch.device) -> None:
    """Raises InputError if ``device`` lacks the precision, or the architecture any batch norm."""
    if "tf32" in (config.precision, resumed_precision) and device.type == "cpu":
        raise InputError(
            "--precision tf32 needs a GPU: start a new run with --precision fp32 or bf16"
        )
    try:
        model = empty(config.arch, config.depth, 1)
    except ValueError as error:
        raise InputError(str(error)) from None
    has_norms = any(isinstance(m, AnyBatchNorm) and m.affine for m in model.modules())
    if METHODS[config.method].prunes() and not has_norms:
        raise InputError(
            f"--method {config.method} prunes channels of batch norms, and {config.arch} has none:"
            " use --method sas-admm"
        )


def build_network(config: Config, data: Dataset) -> Network:
    """Returns a new network with the method's initial values."""
    coupled = has_group_penalty(config.options)
    network = fresh(config.arch, config.depth, len(data.classes), config.size, coupled)
    METHODS[config.method].initialise(network.model)
    return network


def load_network(init_from: InitFrom, config: Config, data: Dataset) -> Network:
    """Returns the network of the checkpoint; for --init, with a new head if classes differ."""
    assert init_from.checkpoint is not None and init_from.path is not None
    coupled = has_group_penalty(config.options)
    network = replace(init_from.checkpoint.network, coupled=coupled)
    is_init = config.init is not None and not init_from.resumes
    if not is_init or init_from.checkpoint.has_classes(data.classes):
        init_from.checkpoint.check_classes(data, init_from.path)
        return network
    before, after = network.num_classes, len(data.classes)
    note(f"note: the last layer, of {before} classes, is replaced by a new one of {after}")
    return network.with_classes(after)


def choose_execution(
    resumed: Checkpoint | None,
    config: Config,
    network: Network,
    batches: Batches,
    group: ProcessGroup,
    use_cuda_graphs: bool,
) -> Execution:
    """Returns precision and memory format: of the resumed run, else as configured or measured."""
    device, precision = batches.labels.device, config.precision
    if resumed and resumed.precision:
        if precision not in ("auto", resumed.precision):
            raise InputError(f"this run was started with --precision {resumed.precision}")
        return Execution(device, resumed.precision, resumed.channels_last)
    if precision == "auto":
        batch = batches.get_batch(group.local_part(batches.epoch_indices(0)[0]))
        precision = group.broadcast_object(
            lambda: fastest_precision(network, *batch, device, use_cuda_graphs)
        )
        note(f"fastest here: --precision {precision}")
    return build_execution(network, precision, device)


def short_schedule_warning(config: Config) -> Iterator[str]:
    """Yields a warning if the training is too short for the paper's learning-rate drops."""
    epochs, warmup = config.epochs, config.warmup
    actual = drops(epochs, warmup)
    uses_lr = "lr" not in METHODS[config.method].unused_flags
    if uses_lr and config.schedule == "step" and actual != (epochs // 2, 3 * epochs // 4):
        after = [f"after epoch {epoch}" for epoch in actual if epoch < epochs]
        change = f"drops {' and '.join(after)}" if after else "never drops"
        behind = f" with --warmup {warmup}" if warmup else ""
        yield (
            f"warning: --epochs {epochs} is too short to drop the learning rate at half and at"
            f" three quarters{behind}: it {change}"
        )


def notes(trainer: Trainer) -> Iterator[str]:
    """Yields a penalty other than ℓ1, and which channels training or pruning cannot remove."""
    network, config, options = trainer.network, trainer.config, trainer.config.options
    if config.refine is not None and config.prune_ratio is None and network.is_full:
        yield f"note: {config.refine} is not pruned: it has all of its channels"
    if not trainer.step.method.prunes():
        return
    if (penalty := options.get("penalty", L1.name)) != L1.name:
        of_streams = ", which makes channels of residual streams 0 in all layers that write them"
        yield f"note: the penalty is {penalty}{of_streams * has_group_penalty(options)}"
    channels, total = sum(network.widths), network.all_channels
    if channels < total and not family(network.arch):  # documented for the paper's architectures
        yield (
            f"note: {channels} of {total} batch-norm channels can be removed and are penalised; the"
            " prune command lists the reasons for the others"
        )
    if fixed := [name for name in network.norms if name in network.graph.drawn_for]:
        yield (
            f"note: no channel of {', '.join(fixed)} is removed during training: dropout behind it"
            " would draw other numbers"
        )
