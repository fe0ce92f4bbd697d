"""The figures: what stands in them, that labels keep apart, and what cannot be drawn."""

import csv
import itertools
import sys
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


def run(
    folder: Path,
    name: str,
    arch: str,
    depth: int,
    epochs: int,
    xi: bool = True,
    change: bool = True,
) -> Network:
    """A run's log and checkpoint; in every batch norm every third γ is zero, one is tiny."""
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    with torch.no_grad():
        for bn in network.norms.values():
            bn.weight.uniform_(0.01, 1)
            bn.weight[::3] = 0
            bn.weight[1] = 1e-20
    content = {"epoch": epochs, "state_dict": to_released(network), "best_prec1": torch.tensor(0.5)}
    folder.mkdir(exist_ok=True)
    torch.save(content, RunPaths(folder, name).checkpoint)
    with RunPaths(folder, name).log.open("w", newline="") as file:
        columns = [c for c in LOG if change or c != "change"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for epoch in range(epochs):
            lr = 0.1 / 10 ** ((epoch >= epochs // 2) + (epoch >= 3 * epochs // 4))
            row = dict.fromkeys(columns, 1 / (epoch + 1))
            row |= {"epoch": epoch + 1, "lr": lr, "gamma_zeros": epoch, "xi_zeros": 2 * epoch}
            row |= {} if xi else {"objective": "", "xi_zeros": ""}
            writer.writerow(row | ({"change": 1000 / (epoch + 1)} if change else {}))
    return network


def titles(figure) -> dict[str, object]:
    return {axis.get_title("left"): axis for axis in figure.axes}


def panel(figure, title: str):
    (axis,) = [axis for name, axis in titles(figure).items() if title in name]
    return axis


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of texts on ``figure`` that lie over one another."""
    figure.draw_without_rendering()
    texts = []
    for axis in figure.axes:
        ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
        low, high = axis.get_window_extent().expanded(1.001, 1.001).get_points()
        own = [*axis.texts, axis.xaxis.label, axis.yaxis.label, axis._left_title]
        for tick in ticks:  # those out of range are not drawn
            x, y = tick.get_transform().transform(tick.get_position())
            if low[0] <= x <= high[0] or low[1] <= y <= high[1]:
                own.append(tick)
        texts += [text for text in own if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2)
        if one.shrunk(0.9, 0.9).overlaps(two.shrunk(0.9, 0.9))
    ]  # fmt: skip


RUNS = [("vgg", 19, 160), ("resnet", 56, 160), ("densenet", 40, 160), ("resnet", 20, 20)]


@pytest.mark.parametrize(("arch", "depth", "epochs"), RUNS)
def test_a_runs_figure_shows_its_log_and_its_channels(arch, depth, epochs, tmp_path):
    network = run(tmp_path, "a", arch, depth, epochs)
    figure = plots.draw_run(tmp_path, "a")
    loss = {line.get_label(): line for line in panel(figure, "Loss").lines}
    assert {"training loss", "test loss", "F, eq. (5)"} <= loss.keys()
    assert list(loss["training loss"].get_ydata()) == [1 / (e + 1) for e in range(epochs)]
    for title in ("Loss", "accuracy", "zero", "change", "trained", "Seconds"):
        lines = panel(figure, title).lines
        drops = sorted(line.get_xdata()[0] for line in lines if line.get_linestyle() == ":")
        assert drops == [epochs // 2 + 0.5, 3 * epochs // 4 + 0.5]
    zeros = {line.get_label(): list(line.get_ydata()) for line in panel(figure, "zero").lines}
    assert zeros["γ = 0"] == list(range(epochs))
    assert zeros["ξ = 0"] == list(range(0, 2 * epochs, 2))
    trained = {line.get_label(): list(line.get_ydata()) for line in panel(figure, "trained").lines}
    assert trained["channels"] == pytest.approx([100 / (e + 1) for e in range(epochs)])
    rest = sum(1 / (e + 1) for e in range(epochs)) / epochs
    assert f"FLOPs, {1 - rest:.0%} saved" in trained
    norms = network.norms.values()
    removed, kept = panel(figure, "channels kept").containers
    assert [bar.get_height() for bar in removed] == [bn.num_features for bn in norms]
    alive = [int((bn.weight != 0).sum()) for bn in norms]
    assert [bar.get_height() for bar in kept] == alive
    sizes = panel(figure, "|γ|")
    channels = sum(bn.num_features for bn in norms)
    assert sum(bar.get_height() for bars in sizes.containers for bar in bars) == channels
    assert {text.get_text() for text in sizes.texts} == {
        f"{channels - sum(alive):,}", str(len(norms))
    }  # fmt: skip
    assert overlapping(figure) == []


def test_what_was_pruned_is_shown_once_it_is(tmp_path):
    network = run(tmp_path, "a", "vgg", 11, 4)
    widths = [8, 16, 32, 32, 64, 64, 64, 64]
    masks = [torch.arange(w) < k for w, k in zip(network.widths, widths, strict=True)]
    small = network.remove(network.plan(masks))
    slim = {"cfg": small.cfg, "state_dict": small.model.state_dict()}
    files = RunPaths(tmp_path, "a")
    torch.save(slim, files.pruned())
    row = {"model": files.pruned().name, "checksum": checkpoint.checksum(files.checkpoint)}
    recorded.append(tmp_path / PRUNED, row)
    _, kept = panel(plots.draw_run(tmp_path, "a"), "channels kept").containers
    assert [bar.get_height() for bar in kept] == widths


def test_logs_without_xi_or_change(tmp_path):
    run(tmp_path, "a", "resnet", 11, 1, xi=False, change=False)
    figure = plots.draw_run(tmp_path, "a")
    labels = [line.get_label() for line in panel(figure, "Loss").lines]
    assert "objective, eq. (2)" in labels
    assert not panel(figure, "change").lines
    assert [line.get_label() for line in panel(figure, "zero").lines] == ["γ = 0"]
    assert overlapping(figure) == []


def test_both_figures_are_files(tmp_path, capsys):
    name = recorded.run(tmp_path, "resnet", 20, "proximal", 1, epochs=8, percent=0.0)
    run(tmp_path, name, "resnet", 20, 8)
    assert console.run(plots.main, ["--save", str(tmp_path), "--run", name]) == 0
    assert console.run(plots.main, ["--save", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    for stem in (f"{name}plot", "tradeoff"):
        with Image.open(tmp_path / f"{stem}.png") as image:
            assert image.width == 1660
        assert "<svg" in (tmp_path / f"{stem}.svg").read_text()


def marks(axis) -> list[tuple[float, float]]:
    """Where the points of a panel are."""
    lines = [line for line in axis.lines if line.get_marker() not in ("None", "_")]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_the_papers_points_are_all_there_and_their_labels_keep_apart():
    figure = tradeoff.draw([])
    flops, parameters = figure.axes[:2]
    rows = [row for name in ("table2a", "table3") for row in TABLES[name].rows]
    assert len(marks(flops)) == len(rows) - 1  # DenseNet-40 by proximal NS is in both
    low = flops.get_ylim()[0]
    for row in TABLES["table2a"].rows:
        accuracy = numbers(row[-1])[0]
        spot = (numbers(row[5])[0] or 0, accuracy)
        if accuracy > 90:
            assert spot in marks(flops)
            assert (numbers(row[4])[0] or 0, accuracy) in marks(parameters)
        else:  # a number at the lower edge
            assert any(x == spot[0] and low < y < 93 for x, y in marks(flops))
            assert any(f": {accuracy:.1f} %" in text.get_text() for text in flops.texts)
    assert "cifar100, 160 epochs" in titles(figure)
    assert overlapping(figure) == []


def test_our_runs_stand_where_they_are_comparable(tmp_path):
    paper = {"s": 0.0045, "beta": 100.0}
    for seed, slim in ((1, 93.0), (2, 94.0)):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **paper, percent=0.0, slim=slim)
    small = {"epochs": 20, "subset": 10000}
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, **small, percent=0.0, slim=61.5, tuned=62)
    recorded.run(tmp_path, "vgg", 11, "proximal", 2, **small)  # not pruned yet
    recorded.run(tmp_path, "vgg", 11, "baseline", 1, **small, accuracy=70.5)
    figure = tradeoff.draw(results.load(tmp_path))
    assert (70.0, 93.5) in marks(figure.axes[0])  # the mean
    assert (60.0, 93.5) in marks(figure.axes[1])
    ours = titles(figure)["cifar10, 20 epochs, --subset 10000"]
    assert sorted(marks(ours)) == [(0, 70.5), (70.0, 61.5)]
    assert not ours.texts  # all are to scale
    shapes = {key.get_label(): key.get_marker() for key in figure.legends[0].get_lines()}
    assert {line.get_marker() for line in ours.lines} - {"_", "None"} == {shapes["VGG-11"]}
    assert "cifar100, 160 epochs" not in titles(figure)  # no panel without a run of ours
    assert all(map(marks, figure.axes))


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.lines"):  # what was imported before is found without it
        monkeypatch.setitem(sys.modules, name, None)
    assert console.run(plots.main, ["--save", str(tmp_path)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_network_without_batch_norms_has_nothing_to_draw(tmp_path, monkeypatch, capsys):
    run(tmp_path, "a", "resnet", 20, 2)
    monkeypatch.setattr(Network, "norms", {})  # an AlexNet is 200 MB
    assert console.run(plots.main, ["--save", str(tmp_path), "--run", "a"]) == 2
    assert "a has no batch norm" in capsys.readouterr().err


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    run(tmp_path, "a", "resnet", 11, 2)
    for name in ("b", "c", "d"):
        run(tmp_path, name, "resnet", 11, 2)
    (tmp_path / "blog.csv").write_text("x,y\n1,2\n")
    path = tmp_path / "clog.csv"
    path.write_text(path.read_text().replace("0.5", "half"))
    (tmp_path / "dcheckpoint.pth.tar").write_bytes(b"nothing")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / TRAINED).write_text("x,y\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    for flags, said in (
        (["--save", tmp_path / "nowhere"], "there is no folder"),
        (["--save", tmp_path / "nowhere", "--run", "a"], "no log and checkpoint of a run 'a'"),
        (["--save", tmp_path, "--run", "z"], "runs there: a, b, c, d"),
        (["--save", tmp_path, "--run", "b"], "has no column epoch"),
        (["--save", tmp_path, "--run", "c"], "is 'half'"),
        (["--save", tmp_path, "--run", "d"], "is not a whole checkpoint"),
        (["--save", tmp_path / "e"], "has no column run"),
    ):
        assert console.run(plots.main, list(map(str, flags))) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err
    assert sorted(tmp_path.rglob("*")) == before
