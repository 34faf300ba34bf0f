import inspect

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn

from medfusion_monai.networks.unet import NO_LABEL, UNet
from medfusion_monai.weights.published import load_published

SMALL = {"in_channels": 4, "channels": (8, 8, 16), "embedding_channels": 32, "norm_groups": 4}


@pytest.fixture
def small() -> UNet:
    torch.manual_seed(0)
    network = UNet(**SMALL)
    nn.init.normal_(network.conv_out.weight)
    return network.eval()


@torch.no_grad()
def test_published_unet_is_reproduced(vectors, published_state, relative_error):
    tensors, _ = vectors("unet_8ch_labels")
    network = load_published(published_state("unet_8ch_labels"))
    x, timesteps, labels = tensors["x"], tensors["timesteps"], tensors["labels"]
    assert relative_error(network(x, timesteps, class_labels=labels), tensors["eps_cond"]) < 1e-5
    assert relative_error(network(x, timesteps), tensors["eps_uncond"]) < 1e-5
    assert relative_error(tensors["eps_uncond"], tensors["eps_cond"]) > 1e-3, "labels would not be tested"


def test_published_widths_have_194_35_million_weights():
    with torch.device("meta"):
        network = UNet()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 194.35


@torch.no_grad()
def test_sample_without_label_in_a_mixed_batch_is_as_if_no_label_were_given(small):
    x, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 999])
    mixed = small(x, timesteps, class_labels=torch.tensor([1, NO_LABEL, 0]))
    unlabelled = small(x, timesteps)
    torch.testing.assert_close(mixed[1], unlabelled[1])
    assert not torch.allclose(mixed[0], unlabelled[0], atol=1e-3)
    assert not torch.allclose(mixed[2], unlabelled[2], atol=1e-3)


@torch.no_grad()
def test_timestep_changes_each_sample_on_its_own(small):
    x = torch.randn(1, 4, 8, 8).expand(3, -1, -1, -1)
    output = small(x, torch.tensor([10, 10, 800]))
    torch.testing.assert_close(output[0], output[1])
    assert not torch.allclose(output[0], output[2], atol=1e-3)


def test_arguments_stand_in_the_order_of_monais_unet():
    theirs = list(inspect.signature(DiffusionModelUNet.forward).parameters)
    ours = list(inspect.signature(UNet.forward).parameters)
    assert ours == theirs[: len(ours)]


@torch.no_grad()
def test_positional_call_equals_call_by_keyword(small):
    x, timesteps, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    assert torch.equal(small(x, timesteps, None, labels), small(x=x, timesteps=timesteps, class_labels=labels))


@pytest.mark.parametrize("size", [(9, 7), (5, 8), (1, 1)])
@torch.no_grad()
def test_odd_sizes_keep_their_shape(size):
    network = UNet(**{**SMALL, "channels": (8, 8, 8, 16)})
    assert network(torch.randn(2, 4, *size), torch.tensor([3, 4])).shape == (2, 4, *size)


def test_output_starts_at_zero():
    assert torch.count_nonzero(UNet(**SMALL)(torch.randn(1, 4, 8, 8), torch.tensor([3]))) == 0


def test_every_weight_takes_part(small):
    small(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), None, torch.tensor([0, 1])).square().sum().backward()
    without = [name for name, p in small.named_parameters() if p.grad is None]
    assert not without


def test_number_of_outputs_can_differ_from_the_inputs():
    assert UNet(**SMALL, out_channels=6)(torch.randn(1, 4, 8, 8), torch.tensor([3])).shape == (1, 6, 8, 8)


def test_context_is_refused(small):
    with pytest.raises(ValueError, match="no cross-attention"):
        small(torch.zeros(1, 4, 8, 8), torch.tensor([0]), torch.zeros(1, 1, 8))


def test_labels_are_refused_by_an_unconditional_unet():
    with pytest.raises(ValueError, match="num_classes=None"):
        UNet(**SMALL, num_classes=None)(torch.zeros(1, 4, 8, 8), torch.tensor([0]), class_labels=torch.tensor([0]))


def test_norm_groups_that_do_not_divide_a_width_are_refused():
    with pytest.raises(ValueError, match=r"\[48\].*norm_groups=32"):
        UNet(channels=(32, 32, 48))


@torch.no_grad()
def test_attention_starts_as_the_network_without_it():
    networks = []
    for attention in (False, True):
        torch.manual_seed(0)
        networks.append(UNet(**SMALL, attention=attention))
    plain, attentive = networks
    weights = attentive.state_dict()
    assert {name.partition(".")[0] for name in weights.keys() - plain.state_dict().keys()} == {"attention"}
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name
    for network in networks:
        torch.manual_seed(1)
        nn.init.normal_(network.conv_out.weight)
    x, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([5, 500])
    assert torch.equal(attentive(x, timesteps), plain(x, timesteps))


@torch.no_grad()
def test_attention_lets_every_position_see_every_other():
    torch.manual_seed(0)
    network = UNet(**SMALL, attention=True).eval()
    seen = []
    network.attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    nn.init.normal_(network.attention.to_out.weight)
    network(torch.randn(1, 4, 16, 16), torch.tensor([5]))
    inputs, output = seen[0]
    assert inputs.shape == (1, 16, 8, 8), "the lowest resolution"
    changed = inputs.clone()
    changed[..., 0, 0] += 1.0
    assert (network.attention(changed) - changed != output - inputs).all()


def gradients_of(network, autocast=False):
    source = torch.Generator().manual_seed(3)
    x, timesteps, labels = torch.randn(2, 4, 8, 8, generator=source), torch.tensor([3, 900]), torch.tensor([0, -1])
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = network(x, timesteps, class_labels=labels)
    output.float().square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_yields_the_same_gradients(autocast):
    torch.manual_seed(0)
    network = UNet(**SMALL, attention=True)
    nn.init.normal_(network.conv_out.weight)
    nn.init.normal_(network.attention.to_out.weight)
    kept = gradients_of(network, autocast)
    network.gradient_checkpointing = True
    again = gradients_of(network, autocast)
    for name, gradient in kept.items():
        assert torch.equal(again[name], gradient), name


def test_gradient_checkpointing_runs_blocks_again_in_the_backward_pass_of_training_only():
    network = UNet(**SMALL, gradient_checkpointing=True)
    calls = []
    network.middle[0].first.register_forward_hook(lambda *_: calls.append(1))
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3])
    network(*inputs).sum().backward()
    assert len(calls) == 2
    network.eval()(*inputs).sum().backward()
    assert len(calls) == 3
    with torch.no_grad():
        network.train()(*inputs)
    assert len(calls) == 4


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    def kept_values(gradient_checkpointing):
        network = UNet(**SMALL, gradient_checkpointing=gradient_checkpointing)
        own = {parameter.data_ptr() for parameter in network.parameters()}
        kept = {}

        def pack(tensor):
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(torch.randn(1, 4, 16, 16), torch.tensor([3]))
            return sum(kept.values()), output

    assert kept_values(True)[0] < 0.7 * kept_values(False)[0]
