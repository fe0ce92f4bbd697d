"""torchvision's networks: what can go of them, and Torch-Pruning, which cuts the same."""

from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from checks import disturb, random_keep, silence
from torch import nn

from models import build_model, check_size
from models import torchvision_models as theirs
from netslim.surgery import apply_removal, plan_removal
from utils.files import checkpoint
from utils.network import Network, fresh

NAMED = {  # how many channels can go, of all that batch norms have
    "resnet18": (1_920, 4_800),
    "resnet50": (7_616, 26_560),
    "vgg16_bn": (4_224, 4_224),
    "mobilenet_v2": (15_888, 17_056),
}


def cut_by_torch_pruning(network: Network, keep: dict[str, torch.Tensor], x: torch.Tensor) -> None:
    graph = tp.DependencyGraph().build_dependency(network.model, x)
    behind = {name for tie in network.graph.ties for name in tie[1:]}
    for name, mask in keep.items():
        if name not in behind and not mask.all():
            gone, bn = (~mask).nonzero().flatten().tolist(), network.norms[name]
            graph.get_pruning_group(bn, tp.prune_batchnorm_out_channels, gone).prune()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_pruned_networks_are_masked_ones_and_what_torch_pruning_cuts(name: str) -> None:
    torch.manual_seed(0)
    network = fresh(name, theirs.DEPTHS[name], 10, 64)
    assert (sum(network.widths), network.all_channels) == NAMED[name]
    whole, x = network.model.eval(), torch.randn(2, 3, 64, 64)
    disturb(whole)
    keep = plan_removal(network.graph, random_keep(network.graph)).keep
    silence(network.graph, keep)  # Torch-Pruning folds no constants
    removal = plan_removal(network.graph, keep)
    small = apply_removal(network.graph, whole, removal)
    with torch.no_grad():
        expected = whole(x)
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    cut_by_torch_pruning(network, keep, x)  # in place
    with torch.no_grad():
        torch.testing.assert_close(whole(x), expected, rtol=1e-5, atol=1e-5)
    ours, others = small.state_dict(), whole.state_dict()
    assert ours.keys() == others.keys()
    for key, value in others.items():
        torch.testing.assert_close(ours[key], value)


@pytest.mark.parametrize("name", theirs.DEPTHS)
def test_the_smallest_images_are_those_that_a_network_takes(name: str) -> None:
    least = theirs.SMALLEST.get(name, 32)
    check_size(name, least)
    with pytest.raises(ValueError, match="pixels or more"):
        check_size(name, least - 1)
    with torch.device("meta"):
        model = build_model(name, theirs.DEPTHS[name], 10).eval()
        model(torch.empty(1, 3, least, least))
        if name.startswith(("vgg", "alex")):  # the others take images of any size
            with pytest.raises(RuntimeError):
                model(torch.empty(1, 3, least - 1, least - 1))
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (name != "alexnet")


def test_a_file_of_when_channels_could_only_go_in_front_of_a_relu_is_read(tmp_path: Path) -> None:
    network = fresh("mobilenet_v2", 53, 2, 32)
    later = [name == "features.1.conv.2" or name.endswith("17.conv.3") for name in network.norms]
    cfg = [width for width, new in zip(network.widths, later, strict=True) if not new]
    settings = {"arch": "mobilenet_v2", "depth": 53, "dataset": "folder", "size": 32}
    content = {"cfg": cfg, "settings": settings, "epoch": 1, "best_prec1": torch.tensor(0.5)}
    content |= {"method": {"xi": torch.rand(15_552) + 1}, "cut": torch.zeros(15_552).bool()}
    torch.save({**content, "state_dict": network.model.state_dict()}, tmp_path / "x.pth.tar")
    read = checkpoint.load(tmp_path / "x.pth.tar").network.model.state_dict()
    assert all(torch.equal(x, read[key]) for key, x in network.model.state_dict().items())
