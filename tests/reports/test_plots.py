"""The figures: contents, overlapping labels and errors."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import recorded
from utils import console
from utils.files import checkpoint
from utils.files.legacy_formats import to_released
from utils.files.paths import PRUNED, TRAINED, RunPaths
from utils.network import Network, fresh
from utils.paper.published import TABLES, numbers
from utils.reports import plots, results, tradeoff

pytest.importorskip("matplotlib")
LOG = (
    "epoch lr alpha train_loss objective ns_objective gamma_zeros xi_zeros channels flops"
    " test_loss test_accuracy train_seconds test_seconds change"
).split()


def write_run(folder: Path, name: str, arch: str, depth: int, epochs: int, **cells: str) -> Network:
    """A log and a checkpoint; in every batch norm every third γ is zero and one is tiny.

    ``cells`` replace the values in all rows of the log.
    """
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    with torch.no_grad():
        for bn in network.norms.values():
            bn.weight.uniform_(0.01, 1)
            bn.weight[::3] = 0
            bn.weight[1] = 1e-20
    content = {"epoch": epochs, "state_dict": to_released(network), "best_prec1": torch.tensor(0.5)}
    RunPaths(folder, name).directory.mkdir()
    torch.save(content, RunPaths(folder, name).checkpoint)
    with RunPaths(folder, name).log.open("w", newline="") as file:
        writer = csv.DictWriter(file, LOG)
        writer.writeheader()
        for epoch in range(epochs):
            lr = 0.1 / 10 ** ((epoch >= epochs // 2) + (epoch >= 3 * epochs // 4))
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
    epochs = 20
    network = write_run(tmp_path, "a", "resnet", 20, epochs)
    figure = plots.draw_run(tmp_path, "a")
    losses = curves(panel(figure, "Loss"))
    assert {"training loss", "test loss", "F, eq. (5)"} <= losses.keys()
    assert losses["training loss"] == [1 / (e + 1) for e in range(epochs)]
    for title in ("Loss", "accuracy", "zero", "change", "size", "Seconds"):
        lines = panel(figure, title).lines
        drops = sorted(line.get_xdata()[0] for line in lines if line.get_linestyle() == ":")
        assert drops == [epochs // 2 + 0.5, 3 * epochs // 4 + 0.5]
    zeros = curves(panel(figure, "zero"))
    assert zeros["γ = 0"] == list(range(epochs))
    assert zeros["ξ = 0"] == list(range(0, 2 * epochs, 2))
    sizes = curves(panel(figure, "size"))
    assert sizes["channels"] == pytest.approx([100 / (e + 1) for e in range(epochs)])
    rest = sum(1 / (e + 1) for e in range(epochs)) / epochs
    assert f"FLOPs, {1 - rest:.0%} saved" in sizes
    norms = network.norms.values()
    removed, kept = panel(figure, "channels kept").containers
    assert heights(removed) == [bn.num_features for bn in norms]
    alive = [int((bn.weight != 0).sum()) for bn in norms]
    assert heights(kept) == alive
    gamma, channels = panel(figure, "|γ|"), sum(bn.num_features for bn in norms)
    assert sum(height for bars in gamma.containers for height in heights(bars)) == channels
    zero, tiny = f"{channels - sum(alive):,}", str(len(norms))
    assert {text.get_text() for text in gamma.texts} == {zero, tiny}


def test_a_pruned_model_is_drawn_as_pruned(tmp_path):
    network = write_run(tmp_path, "a", "vgg", 11, 4)
    widths = [8, 16, 32, 32, 64, 64, 64, 64]
    masks = [torch.arange(w) < k for w, k in zip(network.widths, widths, strict=True)]
    pruned, files = network.remove(network.plan(masks)), RunPaths(tmp_path, "a")
    torch.save({"cfg": pruned.cfg, "state_dict": pruned.model.state_dict()}, files.pruned())
    row = {"model": "a/pruned.pth.tar", "checksum": checkpoint.checksum(files.checkpoint)}
    recorded.append(tmp_path / PRUNED, row)
    _, kept = panel(plots.draw_run(tmp_path, "a"), "As pruned").containers
    assert heights(kept) == widths
    recorded.append(tmp_path / PRUNED, {**row, "checksum": "of an earlier checkpoint"})
    assert panel(plots.draw_run(tmp_path, "a"), "At percent 0")


def test_logs_of_other_methods_are_drawn(tmp_path):
    write_run(tmp_path, "a", "resnet", 11, 1, objective="", xi_zeros="", change="")
    figure = plots.draw_run(tmp_path, "a")
    assert "objective, eq. (2)" in curves(panel(figure, "Loss"))
    assert not panel(figure, "change").lines
    assert curves(panel(figure, "zero")).keys() == {"γ = 0"}


def test_figures_are_written_as_png_and_svg(tmp_path, capsys):
    name = recorded.run(tmp_path, "resnet", 20, "proximal", 1, epochs=8, percent=0.0)
    write_run(tmp_path, name, "resnet", 20, 8)
    assert console.run(plots.main, ["--save", str(tmp_path), "--run", name]) == 0
    assert console.run(plots.main, ["--save", str(tmp_path)]) == 0
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
        accuracy = numbers(row[-1])[0]
        point = (numbers(row[5])[0] or 0, accuracy)
        if accuracy > 90:
            assert point in points(flops)
            assert (numbers(row[4])[0] or 0, accuracy) in points(parameters)
        else:  # as a number at the lower edge
            assert any(x == point[0] and bottom < y < 93 for x, y in points(flops))
            assert any(f": {accuracy:.1f} %" in text.get_text() for text in flops.texts)
    assert "cifar100, 160 epochs" in panel_titles(figure)


def panel_titles(figure) -> dict[str, object]:
    return {axis.get_title("left"): axis for axis in figure.axes}


def test_recorded_runs_share_a_row_with_comparable_ones(tmp_path):
    paper = {"s": 0.0045, "beta": 100.0}
    for seed, pruned in ((1, 93.0), (2, 94.0)):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **paper, percent=0.0, pruned=pruned)
    small = {"epochs": 20, "subset": 10000}
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, **small, percent=0.0, pruned=61.5, tuned=62)
    recorded.run(tmp_path, "vgg", 11, "proximal", 2, **small)  # not pruned yet
    recorded.run(tmp_path, "vgg", 11, "baseline", 1, **small, accuracy=70.5)
    figure = tradeoff.draw(results.load(tmp_path))
    assert (70.0, 93.5) in points(figure.axes[0])  # the mean
    assert (60.0, 93.5) in points(figure.axes[1])
    titles = panel_titles(figure)
    ours = titles["cifar10, 20 epochs, --subset 10000"]
    assert sorted(points(ours)) == [(0, 70.5), (70.0, 61.5)]
    assert not ours.texts  # all accuracies are on the axis
    shapes = {key.get_label(): key.get_marker() for key in figure.legends[0].get_lines()}
    assert {line.get_marker() for line in ours.lines} - {"_", "None"} == {shapes["VGG-11"]}
    assert "cifar100, 160 epochs" not in titles  # no row without a recorded run


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert console.run(plots.main, ["--save", str(tmp_path)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_bad_input_is_rejected_with_one_line(tmp_path, capsys):
    for name in ("a", "b", "c", "d"):
        write_run(tmp_path, name, "resnet", 11, 2)
    (tmp_path / "b/log.csv").write_text("x,y\n1,2\n")
    path = tmp_path / "c/log.csv"
    path.write_text(path.read_text().replace("0.5", "half"))
    (tmp_path / "d/checkpoint.pth.tar").write_bytes(b"nothing")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / TRAINED).write_text("x,y\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    for flags, message in (
        (["--save", tmp_path / "nowhere"], "there is no folder"),
        (["--save", tmp_path / "nowhere", "--run", "a"], "no log and checkpoint of a run 'a'"),
        (["--save", tmp_path, "--run", "z"], "its runs: a, b, c, d"),
        (["--save", tmp_path, "--run", "b"], "has no column epoch"),
        (["--save", tmp_path, "--run", "c"], "is 'half'"),
        (["--save", tmp_path, "--run", "d"], "is not a PyTorch file"),
        (["--save", tmp_path / "e"], "has no column run"),
    ):
        assert console.run(plots.main, list(map(str, flags))) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.rglob("*")) == before
