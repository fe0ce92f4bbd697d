"""The paper's models: costs, names, initial values, and reading them from state dicts."""

import math

import pytest
import torch
from torch import nn

from models import build_model
from netslim import ChannelSelection
from released import batch_norms
from utils.cost import Cost, cost
from utils.network import fresh, restore

SMALL = [("vgg", 11), ("resnet", 11), ("densenet", 10), ("resnet-basic", 8)]
COSTS = {
    # (arch, depth): prunable channels; parameters and FLOPs by torch, and as the paper counts
    ("vgg", 19): (5504, Cost(20_035_018, 796_272_640, 20_035_018, 797_304_842)),
    ("densenet", 40): (9360, Cost(1_059_298, 565_834_656, 1_068_658, 573_052_330)),
    ("resnet", 110): (8080, Cost(1_146_842, 334_861_312, 1_152_234, 341_230_602)),
    ("resnet", 164): (12112, Cost(1_703_258, 495_293_440, 1_711_338, 504_759_306)),
    ("resnet-basic", 20): (336, (269_722, 81_102_080)),
    ("resnet-basic", 32): (560, (464_154, 137_725_184)),
    ("resnet-basic", 44): (784, (658_586, 194_348_288)),
    ("resnet-basic", 56): (1008, (853_018, 250_971_392)),
    ("resnet-basic", 110): (2016, (1_727_962, 505_775_360)),
}


@pytest.mark.parametrize(("name", "numbers"), COSTS.items())
def test_the_papers_models_have_the_published_costs(name, numbers):
    model = build_model(*name, num_classes=10)
    channels, expected = numbers
    assert sum(bn.num_features for bn in batch_norms(model)) == channels
    costs = cost(model, arch=name[0])
    assert expected in (costs, (costs.parameters, costs.flops))


@torch.no_grad()
def test_a_basic_shortcut_subsamples_and_pads_the_channels_with_zeros():
    """Option A of He et al."""
    block = build_model("resnet-basic", 8, 10).layer2[0].eval()
    block.bn2.weight.zero_()
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_the_paper_counts_the_full_batch_norm_before_a_selection():
    """One channel of bn1 less: the paper saves conv1's input only."""
    network = fresh("resnet", 11, 10, 32)
    masks = [torch.ones(width, dtype=torch.bool) for width in network.widths]
    masks[0][3] = False
    small = network.remove(network.plan(masks, streams=False))
    full, pruned = (cost(each.model, arch="resnet") for each in (network, small))
    pixels, conv1_out = 32 * 32, 16
    assert full.parameters - pruned.parameters == conv1_out + 2
    assert full.paper_parameters - pruned.paper_parameters == conv1_out
    # the ReLU after the selection is saved
    assert full.paper_flops - pruned.paper_flops == 2 * conv1_out * pixels + pixels


DEPTHS = {"vgg": (11, 13, 16), "resnet": (11, 20), "densenet": (7, 22), "resnet-basic": (8,)}


@pytest.mark.parametrize("arch", DEPTHS)
def test_every_depth_maps_images_to_logits(arch):
    with torch.device("meta"):
        for depth in DEPTHS[arch]:
            model = build_model(arch, depth, num_classes=7).eval()
            assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "depth"),
    [("vgg", 12), ("vgg", 0), ("resnet", 2), ("resnet", 18), ("densenet", 4), ("densenet", 41),
     ("resnet-basic", 18), ("mlp", 3)],
)  # fmt: skip
def test_depths_that_do_not_exist_are_refused(arch, depth):
    with pytest.raises(ValueError, match="choose"):
        build_model(arch, depth, 10)


@pytest.mark.parametrize(("arch", "depth"), SMALL)
def test_initial_values_are_those_of_section_5_1(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10)
    for bn in batch_norms(model):
        assert (bn.weight == 0.5).all()
        assert (bn.bias == 0).all()
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        assert conv.bias is None
        k = conv.kernel_size[0]
        std = math.sqrt(2 / (k * k * conv.out_channels))
        # six standard errors of a standard deviation estimated from so many values
        assert conv.weight.std().item() == pytest.approx(
            std, rel=6 / math.sqrt(2 * conv.weight.numel())
        )
    if arch == "vgg":
        assert (model.classifier.bias == 0).all()
        assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)


NAMES = {
    ("vgg", 11): "feature.0.weight feature.1.running_var feature.26.bias classifier.bias",
    ("resnet", 20): "conv1.weight layer3.1.bn3.weight layer2.0.downsample.0.weight bn.bias fc.bias",
    ("resnet-basic", 20): "conv1.weight bn1.bias layer3.2.bn2.running_mean layer1.0.conv2.weight"
    " linear.weight linear.bias",
    ("densenet", 10): "conv1.weight dense3.1.bn1.bias dense1.0.conv1.weight trans2.conv1.weight"
    " bn.bias fc.weight",
}


@pytest.mark.parametrize(("network", "names"), NAMES.items())
def test_names_are_those_of_the_released_program(network, names):
    assert set(names.split()) <= set(build_model(*network, 10).state_dict())


@pytest.mark.parametrize(("arch", "depth"), SMALL)
def test_restore_rebuilds_a_pruned_model_from_its_state_dict(arch, depth):
    full = fresh(arch, depth, 4, 32)
    cfg = [w if w == "M" else max(1, w // 3) for w in full.cfg]
    masks = [torch.arange(width) < max(1, width // 3) for width in full.widths]
    model = full.remove(full.plan(masks)).model.eval()
    network = restore(model.state_dict())
    assert (network.arch, network.depth) == (arch, depth)
    assert (network.num_classes, network.cfg) == (4, cfg)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.model.eval()(x), model(x))


def test_restored_models_are_float32():
    state = build_model("resnet-basic", 8, 4).state_dict()
    state["bn1.weight"] = state["bn1.weight"].bfloat16()
    model = restore(state).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(("arch", "depth"), SMALL)
def test_restore_names_what_does_not_fit(arch, depth):
    state = build_model(arch, depth, 4).state_dict()
    for key, value in [*state.items()][::11]:
        if value.dim() > 0:
            with pytest.raises(ValueError, match=r"in the full model|not fit"):
                restore({**state, key: torch.cat((value, value), value.dim() - 1)})
        if not key.endswith("num_batches_tracked"):
            with pytest.raises(
                ValueError, match=r"missing|not expected|full model|no layer|no depth|not fit"
            ):
                restore({k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match="extra"):
        restore({**state, "extra": torch.zeros(1)})


@pytest.mark.parametrize("size", [1, 4])
def test_a_selection_is_the_same_in_both_memory_formats(size):
    select = ChannelSelection(torch.tensor([0, 3, 4]))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.arange(6.0 * 2 * size**2).reshape(2, 6, size, size)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        y = select(x)
        assert torch.equal(y, x[:, [0, 3, 4]])
        assert y.is_contiguous(memory_format=memory_format)
        (y**2).sum().backward()
        results.append((y, x.grad))
    assert torch.equal(*(y for y, _ in results))
    assert torch.equal(*(grad for _, grad in results))
