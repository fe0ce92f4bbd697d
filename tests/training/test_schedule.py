"""Learning-rate schedules and label smoothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from runs import rows, train
from steps import make_step
from utils.flags.config import Config
from utils.methods.slimming import ProximalSlimming
from utils.paper.settings import learning_rate
from utils.training.build import short_schedule_warning


def rates(epochs: int, **options: object) -> list[float]:
    return [learning_rate(epoch, epochs, 0.1, **options) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("flags", "expected", "drops"),
    [
        ({"epochs": 8}, [0.1] * 4 + [0.01] * 2 + [0.001] * 2, None),
        ({"epochs": 7}, [0.1] * 3 + [0.01] * 2 + [0.001] * 2, None),
        # Too short for the paper's drops: each rate has an epoch, from the highest on.
        ({"epochs": 1}, [0.1], "never drops"),
        ({"epochs": 2}, [0.1, 0.01], "drops after epoch 1"),
        ({"epochs": 2, "schedule": "cosine"}, [0.1, 0.05], None),
        ({"epochs": 3}, [0.1, 0.01, 0.001], None),
        (
            {"epochs": 5, "warmup": 2},
            [0.1 / 3, 0.2 / 3, 0.1, 0.01, 0.001],
            "drops after epoch 3 and after epoch 4",
        ),
        (
            {"epochs": 6, "warmup": 2, "schedule": "cosine"},
            [0.1 / 3, 0.2 / 3] + [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)],
            None,
        ),
    ],
)
def test_the_schedule_and_the_warning_of_a_short_training(flags, expected, drops):
    shape, warmup = flags.get("schedule", "step"), flags.get("warmup", 0)
    assert rates(flags["epochs"], shape=shape, warmup=warmup) == pytest.approx(expected)
    lines = list(short_schedule_warning(Config.from_dict(flags)))
    assert len(lines) == (drops is not None)
    assert drops is None or lines[0].endswith(f"it {drops}")


def test_the_schedule_is_used_and_death_is_judged_at_the_highest_rate_to_come(
    tmp_path, pictures, monkeypatch
):
    judged = []

    def dead(self, optimizer, lr):
        judged.append(lr)
        return super(ProximalSlimming, self).dead(optimizer, lr)

    monkeypatch.setattr(ProximalSlimming, "dead", dead)
    flags = ["--schedule", "cosine", "--warmup", 2, "--label-smoothing", 0.1, "--epochs", 4]
    assert train(tmp_path, pictures, "-sr", "--arch", "resnet", "--depth", 11, *flags) == 0
    (log,) = tmp_path.glob("*/log.csv")
    expected = rates(4, shape="cosine", warmup=2)
    assert [float(row["lr"]) for row in rows(log)] == pytest.approx(expected, rel=1e-5)
    assert judged == pytest.approx([0.1, 0.1, 0.1, expected[3]])
    (row,) = rows(tmp_path / "train_record.csv")
    assert (row["schedule"], row["warmup"], row["label_smoothing"]) == ("cosine", "2", "0.1")


def test_labels_are_smoothed_in_training():
    step = make_step()
    batch_index = step.batches.epoch_indices(0)[0]
    images, labels = step.batches.get_batch(batch_index)
    step.label_smoothing = 0.3
    state = {name: x.clone() for name, x in step.model.state_dict().items()}
    loss = step.loss(batch_index)
    step.model.load_state_dict(state)
    logits = step.model(images)
    smooth = F.one_hot(labels, 10) * 0.7 + 0.03
    torch.testing.assert_close(loss, -(smooth * logits.log_softmax(1)).sum(1).mean())
    assert not torch.isclose(loss, F.cross_entropy(logits, labels))
