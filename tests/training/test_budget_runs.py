"""``main.py -sr --target-...``: runs with a budget in place of λ."""

import re
import signal
from pathlib import Path

import pytest

import main
import resnet_prune
from runs import assert_same_run, command, rows, train
from utils.console import Interrupted
from utils.methods.slimming import ProximalSlimming

NETWORK = ["--arch", "resnet", "--depth", "11", "--lr", "0.02"]
BUDGET = ["-sr", *NETWORK, "--target-flops", "40"]


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, pictures, *BUDGET) == 0
    return folder


def test_a_run_that_is_stopped_twice_resumes_with_the_same_bits(
    whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the budget is met, and after a removal."""
    epochs, end_epoch = 0, ProximalSlimming.end_epoch

    def stop(method: ProximalSlimming, lr: float) -> None:
        nonlocal epochs
        epochs += 1
        if epochs in (2, 5):  # the second epoch is repeated, so that the fifth is the fourth
            raise Interrupted(signal.SIGTERM)
        end_epoch(method, lr)

    monkeypatch.setattr(ProximalSlimming, "end_epoch", stop)
    for _ in range(2):
        assert train(tmp_path, pictures, *BUDGET, "--resume", "auto") != 0
    assert train(tmp_path, pictures, *BUDGET, "--resume", "auto") == 0
    assert_same_run(whole, tmp_path)


def test_the_budget_is_met_pruned_without_loss_and_cannot_change(
    whole: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = rows(next(whole.glob("*/log.csv")))
    assert int(log[-1]["channels"]) < int(log[0]["channels"])  # removed during training
    (path,) = whole.glob("*/checkpoint.pth.tar")
    assert command(resnet_prune, "--model", path, "--no-cuda") == 0
    row = rows(whole / "pruned_record.csv")[-1]
    assert row["accuracy_before"] == row["accuracy_slim"] and row["percent"] == "0.0"
    assert (row["constant"], row["alive"]) == ("0", "0")
    removed = re.findall(r"(?i)flops.*, ([\d.]+) % pruned", capsys.readouterr().out)[-1]
    assert 40 <= float(removed) < 42
    assert row["s"] == row["beta"] == "" and row["budget_flops"] == "0.4"
    for flags in (["--target-flops", "30"], ["--s", "0.1"]):
        assert command(main, "--resume", path, "--data", pictures, *flags) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--target-flops 30 --s 0.1", "determines λ and β of the ℓ1 penalty: leave out --lambda"),
        ("--target-params 30 --beta 1 --penalty mcp", "leave out --beta, --penalty"),
        ("--target-flops 30 --target-channels 30", "exclude one another"),
        ("--target-channels 99", "cannot be removed: the channels that can go make 98.5 %"),
        ("--target-flops 0", "not a share above 0 and below 1, or a percentage"),
        ("--method subgradient --target-flops 30", "is for proximal slimming: add -sr"),
        ("", "--target-flops is for proximal slimming: add -sr"),
    ],
)
def test_an_impossible_budget_is_refused(flags, message, pictures, tmp_path, capsys) -> None:
    data = "--dataset", "folder", "--data", pictures, "--save", tmp_path, "--no-cuda"
    words = ["-sr", *flags.split()] if flags else ["--target-flops", 30]
    assert command(main, *NETWORK, *data, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
