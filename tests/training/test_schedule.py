"""Learning rates and smoothed labels, as a run has them."""

import math

import pytest
import torch
import torch.nn.functional as F

from runs import rows, train
from steps import make_step
from utils.methods.slimming import ProximalSlimming
from utils.paper.settings import learning_rate


def rates(epochs: int, **how: object) -> list[float]:
    return [learning_rate(epoch, epochs, 0.1, **how) for epoch in range(epochs)]


def test_steps_are_the_papers_and_what_warms_up_rises_in_equal_steps():
    assert rates(8) == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert rates(8, warmup=3) == pytest.approx([0.025, 0.05, 0.075, *rates(8)[3:]])


def test_where_the_drops_do_not_fit_each_rate_has_its_epoch_from_the_highest_on():
    assert rates(1) == [0.1]
    assert rates(2) == pytest.approx([0.1, 0.01])
    assert rates(3) == pytest.approx([0.1, 0.01, 0.001])
    assert rates(4, warmup=3) == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates(5, warmup=2)[2:] == pytest.approx([0.1, 0.01, 0.001])
    for epochs in range(1, 40):
        for shape in ("step", "cosine"):
            for warmup in range(epochs):
                found = rates(epochs, shape=shape, warmup=warmup)
                assert max(found) == found[warmup] == 0.1
                assert found[: warmup + 1] == sorted({*found[: warmup + 1]})
        if epochs > 2:  # as the paper has it
            drops = [(e >= epochs // 2) + (e >= 3 * epochs // 4) for e in range(epochs)]
            assert rates(epochs) == [0.1 / 10**drop for drop in drops]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", 1], "never"),
        (["--epochs", 2], "after epoch 1"),
        (["--epochs", 4, "--warmup", 2], "after epoch 3"),
        (["--epochs", 5, "--warmup", 2], "after epoch 3 and after epoch 4"),
        (["--epochs", 3], None),
        (["--epochs", 2, "--schedule", "cosine"], None),
    ],
)
def test_drops_that_do_not_fit_are_said_before_the_first_epoch(
    flags, said, tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, "--arch", "resnet", "--depth", 11, *flags) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "too short to drop" in line]
    assert len(lines) == (said is not None)
    assert said is None or lines[0].endswith(f"it drops {said}")


def test_half_a_cosine_behind_the_warmup():
    found = rates(105, shape="cosine", warmup=5)
    assert found[:5] == pytest.approx([0.1 * (i + 1) / 6 for i in range(5)])
    assert found[5] == 0.1 and found[55] == pytest.approx(0.05)
    assert found[5:] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    )
    assert 0 < found[-1] < 1e-4


def test_a_run_follows_and_records_it_and_death_is_judged_by_the_highest_rate_to_come(
    tmp_path, pictures, monkeypatch
):
    judged = []

    def dead(self, optimizer, lr):
        judged.append(lr)
        return super(ProximalSlimming, self).dead(optimizer, lr)

    monkeypatch.setattr(ProximalSlimming, "dead", dead)
    how = ["--schedule", "cosine", "--warmup", 2, "--label-smoothing", 0.1, "--epochs", 5]
    network = ["-sr", "--arch", "resnet", "--depth", 11]
    assert train(tmp_path, pictures, *network, *how) == 0
    (log,) = tmp_path.glob("*log.csv")
    expected = rates(5, shape="cosine", warmup=2)
    assert [float(row["lr"]) for row in rows(log)] == pytest.approx(expected, rel=1e-5)
    assert judged == pytest.approx([0.1, 0.1, 0.1, *expected[3:]])
    (row,) = rows(tmp_path / "train_record.csv")
    told = row["schedule"], row["warmup"], row["label_smoothing"]
    assert told == ("cosine", "2", "0.1")


def test_labels_are_smoothed_in_training():
    step = make_step()
    where = step.batches.epoch_indices(0)[0]
    images, labels = step.batches.get_batch(where)
    step.label_smoothing = 0.3
    state = {name: x.clone() for name, x in step.model.state_dict().items()}
    loss = step.loss(where)
    step.model.load_state_dict(state)
    logits = step.model(images)
    spread = F.one_hot(labels, 10) * 0.7 + 0.03
    torch.testing.assert_close(loss, -(spread * logits.log_softmax(1)).sum(1).mean())
    assert not torch.isclose(loss, F.cross_entropy(logits, labels))
