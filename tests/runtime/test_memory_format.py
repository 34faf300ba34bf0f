import copy
import pickle

import pytest
import torch
from tiny_models import tiny
from torch import nn

from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.memory_format import (
    choose_channels_last,
    compile_network,
    lay_out,
    lay_out_autoencoder,
    lay_out_optimizer_state,
    make_ready,
)
from medfusion_monai.training.handlers.ema import AveragedWeights

PUBLISHED = (256, 256, 512, 1024)
DEMO = (64, 64, 96, 128)


def make_unet():
    torch.manual_seed(0)
    network = UNet(in_channels=4, channels=(8, 8, 16), embedding_channels=32, norm_groups=4, attention=True)
    nn.init.normal_(network.conv_out.weight)
    nn.init.normal_(network.attention.to_out.weight)
    return network


def run(network):
    source = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=source)
    return network(x, torch.tensor([3, 900]), class_labels=torch.tensor([0, -1]))


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "expected"),
    [
        ("cpu", torch.bfloat16, PUBLISHED, True),
        ("cpu", torch.bfloat16, DEMO, False),
        ("cpu", torch.float32, PUBLISHED, False),
        ("cuda", torch.bfloat16, PUBLISHED, False),
    ],
)
def test_channels_last_is_chosen_where_it_was_measured_to_be_faster(device, dtype, widths, expected):
    assert choose_channels_last("auto", device, dtype, widths) is expected
    assert choose_channels_last(not expected, device, dtype, widths) is not expected


@pytest.mark.parametrize("choice", ["yes", None, 1])
def test_unknown_choice_of_channels_last_is_refused(choice):
    with pytest.raises(ValueError, match="channels_last must be true, false or auto"):
        choose_channels_last(choice, "cpu", torch.bfloat16, DEMO)


def test_autoencoder_in_channels_last_decodes_the_same_images():
    plain, network = tiny(), tiny()
    lay_out_autoencoder(network, "cpu", torch.bfloat16)
    latents, image = torch.randn(2, 8, 8, 12), torch.rand(2, 1, 16, 24)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):  # relative to the largest value
        for name, values in (("decode_stage_2_outputs", latents), ("reconstruct", image)):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                expected, found = (getattr(each.autoencoder, name)(values).float() for each in (plain, network))
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(
    ("choice", "dtype", "expected"),
    [
        ("auto", torch.bfloat16, True),
        ("auto", torch.float32, False),
        (True, torch.float32, True),
        (False, torch.bfloat16, False),
    ],
)
def test_autoencoder_is_laid_out_for_bfloat16_on_a_cpu(choice, dtype, expected):
    network = tiny()
    make_ready(network, "cpu", dtype, choice)
    weight, unet_weight = network.autoencoder.from_latents.first.conv.weight, network.unet.middle[0].first.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is expected
    assert unet_weight.is_contiguous(memory_format=torch.channels_last) is (choice is True)


def test_autoencoder_stays_as_it_is_on_other_devices():
    network = tiny()
    lay_out_autoencoder(network, "cuda", torch.bfloat16)
    assert network.autoencoder.from_latents.first.conv.weight.is_contiguous()


def test_channels_last_changes_neither_weights_nor_names():
    plain, network = make_unet(), lay_out(make_unet(), True)
    assert network.middle[0].first.conv.weight.stride() != plain.middle[0].first.conv.weight.stride()
    assert list(network.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


@torch.no_grad()
def test_channels_last_reaches_the_whole_network_and_gives_the_same():
    network, inside = lay_out(make_unet(), True), []
    for block in network.up_blocks:
        block.register_forward_hook(lambda module, inputs, output: inside.append(output))
    torch.testing.assert_close(run(network), run(make_unet()), rtol=1e-4, atol=1e-4)
    assert all(values.is_contiguous(memory_format=torch.channels_last) for values in inside)


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_load_into_the_other_layout(channels_last, tmp_path):
    source, target = lay_out(make_unet(), channels_last), lay_out(make_unet(), not channels_last)
    with torch.no_grad():
        source.conv_in.weight.normal_()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    before = target.conv_in.weight.stride()
    target.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(target.conv_in.weight, source.conv_in.weight)
    assert target.conv_in.weight.stride() == before


def train(network, optimizer, seed):
    """Three steps of a fused optimizer."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 6, 6, generator=source)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("then", [True, False])
def test_restart_with_the_other_layout_goes_on_as_if_nothing_had_changed(then):
    def restarted(first, second):
        networks = []
        for channels_last in (first, second):
            torch.manual_seed(0)
            network = lay_out(nn.Conv2d(3, 5, 3), channels_last)
            optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
            networks.append((network, optimizer))
        (network, optimizer), (other, restored) = networks
        train(network, optimizer, 1)
        other.load_state_dict(network.state_dict())
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        lay_out_optimizer_state(restored)
        train(other, restored, 2)
        return other.weight.detach()

    torch.testing.assert_close(restarted(not then, then), restarted(then, then), rtol=1e-5, atol=1e-6)


def test_optimizer_state_of_the_same_layout_is_left_alone():
    network = nn.Conv2d(3, 5, 3)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    train(network, optimizer, 1)
    before = {name: value.data_ptr() for name, value in optimizer.state[network.weight].items()}
    lay_out_optimizer_state(optimizer)
    assert {name: value.data_ptr() for name, value in optimizer.state[network.weight].items()} == before


def test_average_of_a_network_in_channels_last_is_that_of_one_that_is_not():
    averages = []
    for channels_last in (True, False):
        network = lay_out(make_unet(), channels_last)
        average = AveragedWeights(network)
        average.num_updates = 20
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1.0)
        average.update()
        averages.append(average.module)
    assert averages[0].conv_in.weight.stride() != averages[1].conv_in.weight.stride()
    for name, value in averages[1].state_dict().items():
        torch.testing.assert_close(averages[0].state_dict()[name], value)


def test_compiled_network_keeps_its_names_and_gives_the_same():
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    torch.manual_seed(0)
    network = UNet(in_channels=4, channels=(8, 8), num_res_blocks=1, embedding_channels=16, norm_groups=4)
    nn.init.normal_(network.conv_out.weight)
    names, expected = list(network.state_dict()), run(network)
    compile_network(network, True, backend=backend)
    calls.clear()
    torch.testing.assert_close(run(network), expected)
    assert calls, "it was not compiled"
    assert list(network.state_dict()) == names


def test_compiled_network_can_be_copied_and_sent():
    network, x = compile_network(nn.Conv2d(3, 5, 3), True, backend="eager"), torch.randn(1, 3, 4, 4)
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(other(x), expected)


def test_network_that_is_not_to_be_compiled_is_left_alone():
    network = make_unet()
    assert compile_network(network, False, backend="no such backend") is network
    assert network._compiled_call_impl is None


def test_missing_compiler_is_an_error_before_training():
    def backend(graph, inputs):
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    with pytest.raises(ValueError, match=r"compile does not work on cpu here \(.*C compiler.*leave compile at false"):
        compile_network(make_unet(), True, backend=backend)
