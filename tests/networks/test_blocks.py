import math

import pytest
import torch
from torch import nn

from medfusion_monai.networks.blocks import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    SubBlock,
    Upsample,
    timestep_embedding,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_sub_block_adds_its_skip_after_the_activation():
    block = SubBlock(8, 16, norm_groups=4)
    x = torch.randn(2, 8, 5, 6)
    convolved = nn.functional.conv2d(x, block.conv.weight, block.conv.bias, padding=1)
    grouped = convolved.reshape(2, 4, -1)
    normed = (grouped - grouped.mean(-1, keepdim=True)) / (grouped.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    normed = normed.reshape(convolved.shape)
    skip = torch.einsum("oc,bchw->bohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(x), normed * torch.sigmoid(normed) + skip, rtol=1e-4, atol=1e-5)


def test_skip_is_the_identity_where_the_channels_agree():
    assert not list(SubBlock(8, 8).skip.parameters())


def test_second_sub_block_starts_as_the_identity():
    block = ResidualBlock(8, 16)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), block.first(x))


def test_embedding_is_added_between_the_sub_blocks():
    block = ResidualBlock(8, 8, embedding_channels=6)
    nn.init.normal_(block.second.conv.weight)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    linear = block.embed[1]
    added = (embedding * torch.sigmoid(embedding)) @ linear.weight.T + linear.bias
    torch.testing.assert_close(block(x, embedding), block.second(block.first(x) + added[:, :, None, None]))
    assert not torch.allclose(block(x, embedding), block(x))


@pytest.mark.parametrize(("size", "expected"), [((8, 6), (4, 3)), ((9, 7), (5, 4))])
def test_downsampling_halves_the_size_and_rounds_up(size, expected):
    assert Downsample(3, 5)(torch.zeros(1, 3, *size)).shape == (1, 5, *expected)


def test_upsampling_repeats_each_value_before_its_convolution():
    layer = Upsample(1, 1)
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    layer.conv.weight.data[0, 0, 1, 1] = 1.0
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert torch.equal(layer(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_timestep_embedding_is_sines_then_cosines_of_geometric_frequencies():
    embedding = timestep_embedding(torch.tensor([0, 37]), 8)
    frequencies = [math.exp(-math.log(10000) * k / 3) for k in range(4)]
    expected = [math.sin(37 * f) for f in frequencies] + [math.cos(37 * f) for f in frequencies]
    torch.testing.assert_close(embedding[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(embedding[1], torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "heads"), [(128, 2), (96, 2), (16, 1), (1024, 16)])
def test_heads_of_attention_are_at_most_64_wide(channels, heads):
    assert SelfAttention(channels, norm_groups=4).head_channels * heads == channels


def test_attention_averages_values_by_the_softmax_of_scaled_products():
    block = SelfAttention(128, norm_groups=4)
    nn.init.normal_(block.to_out.weight)
    x = torch.randn(2, 128, 3, 2)
    positions = block.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
    weights = block.to_qkv.weight[:, :, 0, 0]
    query, key, value = (positions @ weights.T + block.to_qkv.bias).chunk(3, dim=2)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        shares = (query[..., part] @ key[..., part].transpose(1, 2) / 8.0).softmax(dim=-1)
        heads.append(shares @ value[..., part])
    attended = torch.cat(heads, dim=2) @ block.to_out.weight[:, :, 0, 0].T + block.to_out.bias
    torch.testing.assert_close(block(x), x + attended.transpose(1, 2).reshape(x.shape), rtol=1e-4, atol=1e-4)
