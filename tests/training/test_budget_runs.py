"""``main.py -sr --target-...``: what a budget in place of λ does to a run."""

import re
import signal
from pathlib import Path

import pytest

import main
import resnet_prune
from runs import assert_same_run, command, rows, train
from utils.console import Interrupted
from utils.methods.slimming import ProximalSlimming

BUDGET = ["-sr", "--arch", "resnet", "--depth", "11", "--lr", "0.02"]


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, pictures, *BUDGET, "--target-flops", "40") == 0
    return folder


@pytest.mark.parametrize("stopped", [2, 7])  # before the budget is met, and after channels were cut
def test_a_stopped_run_goes_on_with_the_same_bits(
    whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    flags, left, end_epoch = [*BUDGET, "--target-flops", "40"], stopped, ProximalSlimming.end_epoch

    def end(method: ProximalSlimming, lr: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted(signal.SIGTERM)
        end_epoch(method, lr)

    monkeypatch.setattr(ProximalSlimming, "end_epoch", end)
    assert train(tmp_path, pictures, *flags) != 0
    monkeypatch.undo()
    assert train(tmp_path, pictures, *flags, "--resume", "auto") == 0
    assert_same_run(whole, tmp_path)


def test_the_budget_is_met_and_pruned_without_loss(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = rows(next(whole.glob("*log.csv")))
    assert int(log[-1]["channels"]) < int(log[0]["channels"])  # they are cut while training
    (path,) = whole.glob("*checkpoint.pth.tar")
    assert command(resnet_prune, "--model", path, "--no-cuda") == 0
    row = rows(whole / "pruned_record.csv")[-1]
    assert row["accuracy_before"] == row["accuracy_slim"] and row["percent"] == "0.0"
    assert (row["constant"], row["alive"]) == ("0", "0")
    removed = re.findall(r"flops.*, ([\d.]+) % pruned", capsys.readouterr().out)[-1]
    assert 40 <= float(removed) < 42
    assert row["s"] == row["beta"] == "" and row["budget_flops"] == "40.0"


def test_what_contradicts_a_budget_is_refused(
    whole: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "--target-flops 30 --s 0.1": "finds λ and β of the ℓ1 penalty: leave out --s",
        "--target-params 30 --beta 1 --penalty mcp": "leave out --beta, --penalty",
        "--target-flops 30 --target-channels 30": "exclude one another",
        "--target-channels 99": "99 % of the channels cannot be removed: the channels that can go",
        "--target-flops 0.3": "not a percentage from 1 to 99: of a half, 50",
    }
    for flags, said in cases.items():
        data = "--dataset", "folder", "--data", pictures, "--save", tmp_path, "--no-cuda"
        assert command(main, *BUDGET, *data, *flags.split()) == 2
        assert said in capsys.readouterr().err
    (path,) = whole.glob("*checkpoint.pth.tar")
    for flags in (["--target-flops", "30"], ["--s", "0.1"]):
        assert command(main, "--resume", path, "--data", pictures, *flags) == 2
    assert not list(tmp_path.iterdir())
