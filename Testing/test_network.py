"""The networks against their definitions: Dense U-Net, inter-slice attention, SAU-Net."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from SAUNetLib.network import ConvBNReLU, DenseBlock, DenseUNet, InterSliceAttention, SAUNet

WIDTHS = (4, 6, 8, 8, 10)


def small(**options: object) -> SAUNet:
    torch.manual_seed(0)
    return SAUNet(**{"widths": WIDTHS, **options}).eval()


def test_dense_unet_has_four_downs_a_bottom_and_four_ups():
    network = DenseUNet(widths=WIDTHS)
    assert (len(network.down), len(network.up), len(network.deconvolution)) == (4, 4, 4)
    assert network(torch.randn(2, 1, 32, 48)).shape == (2, network.out_channels, 32, 48)


@pytest.mark.parametrize("shape", [(1, 1, 30, 32), (1, 1, 32, 31), (1, 32, 32)])
def test_sizes_that_cannot_be_halved_four_times_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 16"):
        DenseUNet(widths=WIDTHS)(torch.zeros(shape))


def test_reading_add_carries_the_input_to_both_sums():
    torch.manual_seed(1)
    block = DenseBlock(3, 5, "add").eval()
    x = torch.randn(2, 3, 8, 8)
    carried = block.carry(x)
    torch.testing.assert_close(block(x), block.second(block.first(x) + carried) + carried)
    assert block.out_channels == 5


def test_reading_concat_carries_the_input_to_both_concatenations():
    torch.manual_seed(1)
    block = DenseBlock(3, 5, "concat").eval()
    x = torch.randn(2, 3, 8, 8)
    result = block(x)
    assert result.shape[1] == block.out_channels == 8
    torch.testing.assert_close(result[:, :3], x)
    torch.testing.assert_close(result[:, 3:], block.second(torch.cat((x, block.first(x)), 1)))


@pytest.mark.parametrize(
    "options",
    [{"reading": "sum"}, {"attention": "always"}, {"widths": (4, 8)}, {"widths": (4, 0, 8, 8, 8)}, {"reach": 0}],
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError):
        small(**options)


def by_the_formula(network: SAUNet, slices: torch.Tensor) -> torch.Tensor:
    """F_i + sum of A_j * F_i over the neighbours j, written out slice by slice; scores of one stack (S, 1, H, W)."""
    features = network.encoder.encode(slices) if network.attention == "skips" else [network.encoder(slices)]
    if network.attention == "scores":
        features = [network.head(features[0])]
    attentions = list(network.isa) if network.attention == "skips" else [network.isa]
    refined = list(features)
    for place, isa in enumerate(attentions, len(features) - len(attentions)):
        rough = features[place]
        refined[place] = rough.clone()
        for i in range(len(slices)):
            for j in range(max(0, i - network.reach), min(len(slices), i + network.reach + 1)):
                if j != i:
                    refined[place][i] += isa(rough[j][None])[abs(i - j) - 1][0] * rough[i]
    if network.attention == "skips":
        return network.head(network.encoder.decode(refined))
    return refined[0] if network.attention == "scores" else network.head(refined[0])


@pytest.mark.parametrize("attention", ["skips", "features", "scores"])
@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize("slices", [1, 2, 3, 7])
def test_attention_equals_the_formula_slice_by_slice(attention, reach, slices):
    network = small(attention=attention, reach=reach)
    stacks = torch.randn(2, slices, 1, 32, 32)
    with torch.inference_mode():
        fast = network(stacks)
        for stack, scores in zip(stacks, fast, strict=True):
            torch.testing.assert_close(scores, by_the_formula(network, stack), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["skips", "features", "scores"])
def test_a_single_slice_meets_no_mask(attention):
    """There is no padding: at the ends of a stack, and in a stack of one slice, branches are pruned."""
    network = small(attention=attention, reach=2)
    slices = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(slices[None])[0], network.scores(network.rough(slices)))


def test_masks_are_between_zero_and_one():
    near, far = InterSliceAttention(3, reach=2).eval()(torch.randn(4, 3, 16, 16) * 10)
    assert near.shape == far.shape == (4, 3, 16, 16) and not torch.equal(near, far)
    for masks in (near, far):
        assert masks.min() >= 0 and masks.max() <= 1 and masks.std() > 0


def test_binary_scores_keep_their_sign_through_attention():
    """The docstring's claim: on one sigmoid channel the written form cannot move a voxel across 0.5."""
    network = small(attention="scores", classes=1)
    slices = torch.randn(5, 1, 32, 32)
    with torch.inference_mode():
        before, after = network.rough(slices)[0], network(slices[None])[0]
    assert torch.equal(after > 0, before > 0) and not torch.equal(after, before)


@pytest.mark.parametrize("attention", ["skips", "features", "scores", "none"])
@pytest.mark.parametrize("reach", [1, 2])
@pytest.mark.parametrize("reading", ["add", "concat"])
@pytest.mark.parametrize("classes", [1, 4])
def test_scores_and_gradients_for_every_form(attention, reach, reading, classes):
    network = small(attention=attention, reach=reach, reading=reading, classes=classes).train()
    scores = network(torch.randn(1, 3, 1, 32, 32))
    assert scores.shape == (1, 3, classes, 32, 32)
    activated = torch.sigmoid(scores) if classes == 1 else torch.softmax(scores, 2)[:, :, 1:]
    activated.square().mean().backward()
    without = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A convolution's bias ahead of batch norm would have none; there is no such bias.
    assert without == []


@pytest.mark.parametrize("attention", ["skips", "features", "scores"])
def test_every_slice_is_encoded_exactly_once(attention):
    network = small(attention=attention)
    encoded = []
    network.encoder.bottom.register_forward_hook(lambda _module, inputs, _result: encoded.append(inputs[0].shape[0]))
    network(torch.randn(2, 5, 1, 32, 32))
    assert sum(encoded) == 10


@pytest.mark.parametrize("attention", ["skips", "features", "scores", "none"])
@pytest.mark.parametrize("reach", [1, 2, 7])
@pytest.mark.parametrize("cut", [(1, 1, 1, 1, 1), (5,), (2, 3), (4, 1)], ids=str)
def test_a_stream_of_chunks_gives_what_the_whole_stack_gives(attention, reach, cut):
    network = small(attention=attention, reach=reach)
    stack = torch.randn(5, 1, 32, 48)
    with torch.inference_mode():
        whole = network(stack[None])[0]
        streamed = torch.cat(list(network.stream(stack.split(cut))))
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


def test_no_slice_streams_to_nothing():
    assert list(small().stream([])) == []


@pytest.mark.parametrize("attention", ["skips", "features", "scores"])
@pytest.mark.parametrize("reach", [1, 2])
def test_slices_within_reach_change_a_slice_and_those_further_away_do_not(attention, reach):
    network = small(attention=attention, reach=reach)
    stack = torch.randn(1, 5, 1, 32, 32)
    before = network(stack)
    stack[:, 4] += 1
    changed = (network(stack) - before).abs().flatten(2).amax(2)[0] > 0
    assert changed.tolist() == [False] * (4 - reach) + [True] * (reach + 1)


@pytest.mark.parametrize("reach", [1, 2])
def test_a_stream_holds_back_as_few_slices_as_it_can(reach):
    given = []

    def slices():
        for number in range(5):
            given.append(number)
            yield torch.randn(1, 1, 16, 16)

    with torch.inference_mode():
        waiting = [len(given) for _ in small(reach=reach).stream(slices())]
    assert waiting == [min(5, number + reach + 1) for number in range(5)]


def test_an_outline_has_the_form_and_no_weights():
    network = small(attention="scores", reach=2, reading="concat", classes=1)
    outline = network.outline()
    assert {name: value.shape for name, value in outline.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert all(weight.is_meta for weight in outline.parameters())


@pytest.mark.parametrize("attention", ["skips", "features", "scores", "none"])
@pytest.mark.parametrize("reach", [1, 2])
def test_slices_that_are_no_neighbours_go_alone_beside_stacks_whose_slices_are(attention, reach):
    network = small(attention=attention, reach=reach)
    stacks = torch.randn(2, 3, 1, 32, 32)
    with torch.inference_mode():
        mixed = network(stacks, torch.tensor([False, True]))
        alone = network(stacks[1][:, None])[:, 0]
        torch.testing.assert_close(mixed[0], network(stacks[:1])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], alone, rtol=1e-4, atol=1e-5)


def test_without_attention_slices_are_independent():
    network = small(attention="none")
    stack = torch.randn(1, 3, 1, 32, 32)
    before = network(stack)
    stack[:, 2] += 1
    assert torch.equal(network(stack)[:, :2], before[:, :2])


def test_parameters_and_flops_of_the_shipped_shape():
    network = SAUNet().eval()
    weights, operations = network.cost(64, 64)
    assert weights == sum(weight.numel() for weight in network.parameters())
    assert weights * 2 < 8e6, "float16 weights must fit into 8 MB"
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, 1, 64, 64))
    assert counter.get_total_flops() == 3 * operations > 0, "cost is linear in the slices"
    assert network.cost(128, 64)[1] == 2 * operations, "and in the pixels"
    assert operations / 64**2 < 150_000, "operations per pixel"


def test_the_unit_is_convolution_norm_relu():
    kinds = [type(layer).__name__ for layer in ConvBNReLU(1, 2)]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"]
