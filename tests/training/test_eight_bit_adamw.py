import copy

import bitsandbytes
import pytest
import torch
from torch import nn

from medfusion_monai.runtime.memory_format import lay_out, lay_out_optimizer_state
from medfusion_monai.training import eight_bit_adamw
from medfusion_monai.training.eight_bit_adamw import EightBitAdamW


@pytest.fixture(autouse=True, params=[1024, 2**19])
def _at_once(request, monkeypatch):
    """Update some of the 7,200 values of a convolution at a time, or all; the last block has 32."""
    monkeypatch.setattr(eight_bit_adamw, "AT_ONCE", request.param)


def convolution(channels_last, kind=EightBitAdamW):
    """Return a convolution whose moments have 8 bits and whose bias is small enough for 32, and its optimizer."""
    torch.manual_seed(0)
    network = lay_out(nn.Conv2d(16, 50, 3), channels_last)
    return network, kind(network.parameters(), lr=0.01)


def step(network, optimizer, numbers):
    """Take a step for each number, whose gradients do not depend on the layout."""
    for number in numbers:
        source = torch.Generator().manual_seed(number)
        for parameter in network.parameters():
            gradient = torch.randn(parameter.shape, generator=source)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_are_those_of_bitsandbytes_in_the_layout_that_they_had(channels_last):
    (own, optimizer), (other, others_optimizer) = (
        convolution(channels_last),
        convolution(False, bitsandbytes.optim.AdamW8bit),
    )
    before = own.weight.stride(), own.weight.data_ptr()
    step(own, optimizer, range(4))
    step(other, others_optimizer, range(4))
    assert (own.weight.stride(), own.weight.data_ptr()) == before
    assert torch.equal(own.weight, other.weight)
    assert torch.equal(own.bias, other.bias)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("then", [False, True])
def test_restart_in_either_layout_ends_with_the_same_bits(first, then):
    whole, optimizer = convolution(False)
    step(whole, optimizer, range(6))
    (stopped, before), (resumed, after) = convolution(first), convolution(then)
    step(stopped, before, range(3))
    resumed.load_state_dict(stopped.state_dict())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    lay_out_optimizer_state(after)
    step(resumed, after, range(3, 6))
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_two_processes_keep_equal_weights_and_moments(two_processes):
    def work(rank):
        torch.manual_seed(0)
        network = nn.Linear(64, 128)
        parallel = nn.parallel.DistributedDataParallel(network)
        optimizer = EightBitAdamW(network.parameters(), lr=0.01)
        inputs = torch.randn(8, 64)
        for _ in range(3):
            optimizer.zero_grad()
            parallel(inputs[4 * rank : 4 * rank + 4]).square().mean().backward()
            optimizer.step()
        return network.weight.detach(), optimizer.state[network.weight]["state1"]

    (weight, moment), (other_weight, other_moment) = two_processes(work)
    assert moment.dtype is torch.uint8
    assert torch.equal(weight, other_weight)
    assert torch.equal(moment, other_moment)
