"""torchvision's models: removable channels, smallest images, agreement with Torch-Pruning."""

from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from checks import disturb, random_keep, silence

from models import build_model, check_size
from models.torchvision_models import DEPTHS, SMALLEST
from netslim.surgery import apply_removal, plan_removal
from utils.files import checkpoint
from utils.network import Network, fresh

CHANNELS = {  # removable, and of all batch norms
    "resnet18": (1_920, 4_800),
    "vgg11_bn": (2_752, 2_752),
    "mobilenet_v2": (15_888, 17_056),
}


def prune_with_torch_pruning(network: Network, keep: dict[str, torch.Tensor], x: torch.Tensor):
    """Prunes in place."""
    graph = tp.DependencyGraph().build_dependency(network.model, x)
    followers = {name for tie in network.graph.ties for name in tie[1:]}
    for name, mask in keep.items():
        if name not in followers and not mask.all():
            removed, bn = (~mask).nonzero().flatten().tolist(), network.norms[name]
            graph.get_pruning_group(bn, tp.prune_batchnorm_out_channels, removed).prune()


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_pruned_models_equal_masked_ones_and_torch_prunings(name: str) -> None:
    torch.manual_seed(0)
    network = fresh(name, DEPTHS[name], 10, 64)
    assert (sum(network.widths), network.all_channels) == CHANNELS[name]
    full, x = network.model.eval(), torch.randn(2, 3, 64, 64)
    disturb(full)
    keep = plan_removal(network.graph, random_keep(network.graph)).keep
    silence(network.graph, keep)  # Torch-Pruning folds no constants
    small = apply_removal(network.graph, full, plan_removal(network.graph, keep))
    with torch.no_grad():
        expected = full(x)
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    prune_with_torch_pruning(network, keep, x)
    ours, theirs = small.state_dict(), full.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "alexnet"])
def test_the_smallest_images_that_a_model_takes(name: str) -> None:
    smallest = SMALLEST.get(name, 32)
    check_size(name, smallest)
    with pytest.raises(ValueError, match="pixels or more"):
        check_size(name, smallest - 1)
    with torch.device("meta"):
        model = build_model(name, DEPTHS[name], 10).eval()
        model(torch.empty(1, 3, smallest, smallest))
        if name.startswith(("vgg", "alex")):  # the others take images of any size
            with pytest.raises(RuntimeError):
                model(torch.empty(1, 3, smallest - 1, smallest - 1))


def test_a_checkpoint_with_fewer_removable_channels_is_read(tmp_path: Path) -> None:
    """Earlier versions removed channels in front of a ReLU only."""
    network = fresh("mobilenet_v2", 53, 2, 32)
    later = [name == "features.1.conv.2" or name.endswith("17.conv.3") for name in network.norms]
    cfg = [width for width, new in zip(network.widths, later, strict=True) if not new]
    settings = {"arch": "mobilenet_v2", "depth": 53, "dataset": "folder", "size": 32}
    content = {"cfg": cfg, "settings": settings, "epoch": 1, "best_prec1": torch.tensor(0.5)}
    content |= {"method": {"xi": torch.rand(15_552) + 1}, "cut": torch.zeros(15_552).bool()}
    torch.save({**content, "state_dict": network.model.state_dict()}, tmp_path / "x.pth.tar")
    read = checkpoint.load(tmp_path / "x.pth.tar").network.model.state_dict()
    assert all(torch.equal(x, read[key]) for key, x in network.model.state_dict().items())
