"""The figures: contents, overlapping labels and errors."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import recorded
from runs import command
from utils import console
from utils.files import checkpoint
from utils.files.legacy_formats import to_released
from utils.files.paths import PRUNED, TRAINED, RunPaths
from utils.network import Network, fresh
from utils.paper.published import TABLES, numbers
from utils.reports import plots, results, style, tradeoff

pytest.importorskip("matplotlib")
LOG = (
    "epoch lr alpha train_loss objective ns_objective gamma_zeros xi_zeros channels flops"
    " test_loss test_accuracy train_seconds test_seconds change"
).split()
EPOCHS = 8


def write_run(folder: Path, name: str, **cells: str) -> Network:
    """A log and a checkpoint; in every batch norm every third γ is zero and one is tiny.

    ``cells`` replace the values in all rows of the log.
    """
    torch.manual_seed(0)
    network, files = fresh("resnet", 11, 10, 32), RunPaths(folder, name)
    for bn in network.norms.values():
        bn.weight.data.uniform_(0.01, 1)
        bn.weight.data[::3] = 0
        bn.weight.data[1] = 1e-20
    state = to_released(network)
    files.directory.mkdir()
    content = {"epoch": EPOCHS, "state_dict": state, "best_prec1": torch.tensor(0.5)}
    torch.save(content, files.checkpoint)
    with files.log.open("w", newline="") as file:
        writer = csv.DictWriter(file, LOG)
        writer.writeheader()
        for epoch in range(EPOCHS):
            lr = 0.1 / 10 ** ((epoch >= EPOCHS // 2) + (epoch >= 3 * EPOCHS // 4))
            row = dict.fromkeys(LOG, 1 / (epoch + 1)) | {"change": 1000 / (epoch + 1)}
            row |= {"epoch": epoch + 1, "lr": lr, "gamma_zeros": epoch, "xi_zeros": 2 * epoch}
            writer.writerow(row | cells)
    return network


def panel(figure, title: str):
    (axis,) = [axis for axis in figure.axes if title in axis.get_title("left")]
    return axis


def curves(axis) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axis.lines}


def heights(bars) -> list[float]:
    return [bar.get_height() for bar in bars]


def test_a_run_is_drawn_by_epoch_and_by_layer(tmp_path):
    network = write_run(tmp_path, "a")
    figure = plots.draw_run(tmp_path, "a")
    falling = [1 / (e + 1) for e in range(EPOCHS)]
    losses, zeros, sizes = (curves(panel(figure, title)) for title in ("Loss", "zero", "size"))
    assert {"training loss", "test loss", "F, eq. (5)"} <= losses.keys()
    assert losses["training loss"] == falling
    for title in ("Loss", "accuracy", "zero", "change", "size", "Seconds"):
        lines = panel(figure, title).lines
        drops = sorted(line.get_xdata()[0] for line in lines if line.get_linestyle() == ":")
        assert drops == [EPOCHS // 2 + 0.5, 3 * EPOCHS // 4 + 0.5]
    assert zeros["γ = 0"] == list(range(EPOCHS))
    assert zeros["ξ = 0"] == list(range(0, 2 * EPOCHS, 2))
    assert sizes["channels"] == pytest.approx([100 * share for share in falling])
    assert f"FLOPs, {1 - sum(falling) / EPOCHS:.0%} saved" in sizes
    norms = network.norms.values()
    removed, kept = panel(figure, "channels kept").containers
    assert heights(removed) == [bn.num_features for bn in norms]
    alive = [int((bn.weight != 0).sum()) for bn in norms]
    assert heights(kept) == alive
    gamma, channels = panel(figure, "|γ|"), sum(bn.num_features for bn in norms)
    assert sum(height for bars in gamma.containers for height in heights(bars)) == channels
    zero, tiny = f"{channels - sum(alive):,}", str(len(norms))
    assert {text.get_text() for text in gamma.texts} == {zero, tiny}


def test_a_pruned_model_and_the_log_of_another_method_are_drawn(tmp_path):
    network = write_run(tmp_path, "a", objective="", xi_zeros="", change="")
    files = RunPaths(tmp_path, "a")
    widths = [max(1, width // 2) for width in network.widths]
    masks = [torch.arange(w) < k for w, k in zip(network.widths, widths, strict=True)]
    pruned = network.remove(network.plan(masks))
    torch.save({"cfg": pruned.cfg, "state_dict": pruned.model.state_dict()}, files.pruned())
    row = {"model": "a/pruned.pth.tar", "checksum": checkpoint.checksum(files.checkpoint)}
    recorded.append(tmp_path / PRUNED, row)
    figure = plots.draw_run(tmp_path, "a")
    assert heights(panel(figure, "As pruned").containers[1]) == widths
    assert "objective, eq. (2)" in curves(panel(figure, "Loss"))
    assert {line.get_linestyle() for line in panel(figure, "change").lines} == {":"}  # drops of lr
    assert "ξ = 0" not in curves(panel(figure, "zero"))
    recorded.append(tmp_path / PRUNED, {**row, "checksum": "of an earlier checkpoint"})
    assert panel(plots.draw_run(tmp_path, "a"), "At percent 0")


def test_figures_are_written_as_png_and_svg(tmp_path, monkeypatch, capsys):
    name = recorded.run(tmp_path, "resnet", 11, "proximal", 1, epochs=8, percent=0.0)
    write_run(tmp_path, name)
    assert command(plots, "--save", tmp_path, "--run", name) == 0
    monkeypatch.setattr(tradeoff, "draw", lambda results: style.subplots(len(results), 4)[0])
    assert command(plots, "--save", tmp_path) == 0
    assert capsys.readouterr().err == ""
    for stem in (f"{name}/plot", "tradeoff"):
        with Image.open(tmp_path / f"{stem}.png") as image:
            assert image.width == 1660
        assert "<svg" in (tmp_path / f"{stem}.svg").read_text()


def points(axis) -> list[tuple[float, float]]:
    lines = [line for line in axis.lines if line.get_marker() not in ("None", "_")]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_the_published_models_are_drawn():
    figure = tradeoff.draw([])
    flops, parameters = figure.axes[:2]
    rows = [row for name in ("table2a", "table3") for row in TABLES[name].rows]
    assert len(points(flops)) == len(rows) - 1  # DenseNet-40 by proximal NS is in both
    bottom = flops.get_ylim()[0]
    for row in TABLES["table2a"].rows:
        accuracy, removed = numbers(row[-1])[0], numbers(row[5])[0] or 0
        if accuracy > 90:
            assert (removed, accuracy) in points(flops)
            assert (numbers(row[4])[0] or 0, accuracy) in points(parameters)
        else:  # as a number at the lower edge
            assert any(x == removed and bottom < y < 93 for x, y in points(flops))
            assert any(f": {accuracy:.1f} %" in text.get_text() for text in flops.texts)
    assert panel(figure, "cifar100, 160 epochs")


def test_recorded_runs_share_a_row_with_comparable_ones(tmp_path):
    paper = {"s": 0.0045, "beta": 100.0}
    for seed, pruned in ((1, 93.0), (2, 94.0)):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **paper, percent=0.0, pruned=pruned)
    small = {"arch": "vgg", "depth": 11, "epochs": 20, "subset": 10000}
    proximal = small | {"method": "proximal"}
    recorded.run(tmp_path, **proximal, seed=1, percent=0.0, pruned=61.5, tuned=62)
    recorded.run(tmp_path, **proximal, seed=2)  # not pruned yet
    recorded.run(tmp_path, **small, method="baseline", seed=1, accuracy=70.5)
    figure = tradeoff.draw(results.load(tmp_path))
    assert (70.0, 93.5) in points(figure.axes[0])  # the mean
    assert (60.0, 93.5) in points(figure.axes[1])
    ours = next(axis for axis in figure.axes if "20 epochs, --subset" in axis.get_title("left"))
    assert sorted(points(ours)) == [(0, 70.5), (70.0, 61.5)]
    assert not ours.texts  # all accuracies are on the axis
    shapes = {key.get_label(): key.get_marker() for key in figure.legends[0].get_lines()}
    assert {line.get_marker() for line in ours.lines} - {"_", "None"} == {shapes["VGG-11"]}
    assert len(figure.axes) == 4  # no row without a recorded run


def test_bad_input_is_rejected_with_one_line(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        write_run(tmp_path, name)
    (tmp_path / "a/log.csv").write_text("x,y\n1,2\n")
    path = tmp_path / "b/log.csv"
    path.write_text(path.read_text().replace("0.5", "half"))
    (tmp_path / "c/checkpoint.pth.tar").write_bytes(b"nothing")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / TRAINED).write_text("x,y\n1,2\n")
    before = sorted(tmp_path.rglob("*"))

    def rejected(message: str, *flags: object) -> None:
        assert command(plots, *flags) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1 and message in err

    rejected("there is no folder", "--save", tmp_path / "nowhere")
    rejected("no log and checkpoint of a run 'a'", "--save", tmp_path / "nowhere", "--run", "a")
    rejected("its runs: a, b, c", "--save", tmp_path, "--run", "z")
    rejected("has no column epoch", "--save", tmp_path, "--run", "a")
    rejected("is 'half'", "--save", tmp_path, "--run", "b")
    rejected("is not a PyTorch file", "--save", tmp_path, "--run", "c")
    rejected("has no column run", "--save", tmp_path / "e")
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    rejected("pip install matplotlib", "--save", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
