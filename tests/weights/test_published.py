import pytest
import torch

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.published import load_published


def below(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


@pytest.fixture
def gray(published_state):
    return published_state("autoencoder_gray_4ch")


@pytest.fixture
def vaegan(published_state):
    extra = {"perceiver.net.weight": torch.ones(2), "vqvae.perceiver.lin.weight": torch.ones(2)}
    extra |= {"discriminator.0.conv.weight": torch.ones(2), "discriminator.1.conv.weight": torch.ones(3)}
    return below("vqvae.", published_state("autoencoder_rgb_8ch")) | extra


@pytest.fixture
def pipeline(published_state):
    schedule = NoiseSchedule()
    return (
        below("noise_estimator.", published_state("unet_8ch_labels"))
        | below("latent_embedder.", published_state("autoencoder_rgb_8ch"))
        | {
            "noise_scheduler.betas": schedule.betas,
            "noise_scheduler.alphas_cumprod": schedule.alphas_cumprod,
            "noise_scheduler.posterior_variance": torch.zeros(1000),
        }
    )


def assert_same_weights(actual, expected):
    pairs = zip(actual.state_dict().items(), expected.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_architecture_is_read_from_the_shapes(published_state):
    gray = load_published(published_state("autoencoder_gray_4ch"))
    rgb = load_published(published_state("autoencoder_rgb_8ch"))
    assert (gray.in_channels, gray.latent_channels) == (1, 4)
    assert (rgb.in_channels, rgb.latent_channels) == (3, 8)
    assert rgb.conv_out_low is not None
    unet = load_published(published_state("unet_8ch_labels"))
    assert (unet.num_classes, unet.time_channels, unet.conv_in.in_channels) == (2, 16, 8)


def test_further_low_resolution_heads_are_reported_and_not_loaded(gray, caplog):
    heads = {f"outc_ver.{number}.conv.{kind}": torch.ones(2) for number in (1, 2, 10) for kind in ("weight", "bias")}
    with caplog.at_level("INFO"):
        network = load_published(gray | heads)
    assert_same_weights(network, load_published(gray))
    assert "6 weights of ['outc_ver.1', 'outc_ver.10', 'outc_ver.2']" in caplog.text


@pytest.mark.parametrize("sinusoids", [8, 16, 32])
def test_number_of_sinusoids_is_read_from_the_shape(sinusoids, published_state):
    weights = dict(published_state("unet_8ch_labels"))
    name = "time_embedder.time_emb.1.weight"
    weights[name] = torch.randn(len(weights[name]), sinusoids)
    unet = load_published(weights)
    assert unet.time_channels == sinusoids
    assert torch.equal(unet.time_embedding[0].weight, weights[name])
    assert unet(torch.zeros(1, 8, 8, 8), torch.tensor([3]), class_labels=torch.tensor([0])).shape == (1, 8, 8, 8)


def test_latents_of_published_networks_stay_unscaled(gray):
    network = load_published(gray)
    assert network.latent_mean.tolist() == [0.0] * 4
    assert network.latent_std.tolist() == [1.0] * 4


def test_autoencoder_without_deep_supervision_has_no_second_head(gray):
    network = load_published({k: v for k, v in gray.items() if not k.startswith("outc_ver.")})
    assert network.conv_out_low is None


def test_unet_without_labels_is_unconditional(published_state):
    weights = published_state("unet_8ch_labels")
    del weights["cond_embedder.embedding.weight"]
    assert load_published(weights).num_classes is None


@pytest.mark.parametrize("channels", [(8, 8), (8, 16, 24), (8, 16, 24, 32, 40)])
def test_number_of_unet_levels_and_blocks_is_read_from_the_names(channels, published_state):
    torch.manual_seed(0)
    blocks = len(channels)
    ours = UNet(4, channels=channels, num_res_blocks=blocks, embedding_channels=16, norm_groups=8, num_classes=3)
    total, weights = (len(channels) - 1) * (blocks + 1), {}
    ups = [i for i in range(total) if (i + 1) % (blocks + 1) == 0 and i + 1 < total]
    for name, value in ours.state_dict().items():
        weights[to_published_unet(name, blocks, total, ups)] = value
    assert_same_weights(load_published(weights, unet_norm_groups=8), ours)


def to_published_unet(name, blocks, total, ups):
    """Translate as the published forward pass reads it, by another way than the loader's table."""
    head, *rest = name.split(".")
    tail = ".".join(rest[1:])
    tail = tail.replace("first.skip", "block_seq.0.conv_res").replace("first.", "block_seq.0.basic_block.")
    tail = tail.replace("second.", "block_seq.1.basic_block.").replace("embed.", "local_embedder.")
    if head == "down_blocks":
        kind = "down_op" if int(rest[0]) % (blocks + 1) == blocks else "0"
        return f"in_blocks.{rest[0]}.{kind}.{tail}"
    if head == "middle":
        return f"middle_block.{2 * int(rest[0])}.{tail}"
    if head == "up_blocks":
        order = [entry for i in range(total) for entry in ([(i, 0), (i, 2)] if i in ups else [(i, 0)])]
        run, slot = order[int(rest[0])]
        return f"out_blocks.{total - 1 - run}.{slot}." + (tail if slot == 0 else tail.replace("conv.", "up_op."))
    if head == "time_embedding":
        return f"time_embedder.time_emb.{int(rest[0]) + 1}.{tail}"
    heads = {"class_embedding": "cond_embedder.embedding", "conv_in": "in_conv.conv", "conv_out": "outc.conv.conv"}
    return f"{heads[head]}.{rest[0]}"


def test_loading_draws_no_random_numbers(gray):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_published(gray)
    assert torch.equal(before, torch.get_rng_state())


def test_vaegan_file_yields_its_autoencoder(tmp_path, vaegan, published_state):
    torch.save({"state_dict": vaegan, "epoch": 3}, tmp_path / "vaegan.ckpt")
    network = load_published(tmp_path / "vaegan.ckpt")
    assert_same_weights(network, load_published(published_state("autoencoder_rgb_8ch")))


def test_diffusion_file_yields_both_networks(tmp_path, pipeline, published_state):
    torch.save({"state_dict": pipeline, "epoch": 3}, tmp_path / "diffusion.ckpt")
    network = load_published(tmp_path / "diffusion.ckpt")
    assert isinstance(network, Medfusion)
    assert_same_weights(network.unet, load_published(published_state("unet_8ch_labels")))
    assert_same_weights(network.autoencoder, load_published(published_state("autoencoder_rgb_8ch")))


def test_diffusion_file_may_hold_a_vaegan(pipeline, vaegan, published_state):
    weights = {name: value for name, value in pipeline.items() if not name.startswith("latent_embedder.")}
    network = load_published(weights | below("latent_embedder.", vaegan))
    assert_same_weights(network.autoencoder, load_published(published_state("autoencoder_rgb_8ch")))


def test_other_noise_schedule_is_refused(pipeline):
    pipeline["noise_scheduler.betas"] = NoiseSchedule(beta_start=0.001).betas
    with pytest.raises(WeightsError, match="'noise_scheduler.betas' differs from the published noise schedule"):
        load_published(pipeline)


def test_shorter_noise_schedule_is_refused(pipeline):
    pipeline["noise_scheduler.alphas_cumprod"] = NoiseSchedule(500).alphas_cumprod
    with pytest.raises(WeightsError, match="alphas_cumprod"):
        load_published(pipeline)


def test_autoencoder_of_other_latent_channels_is_refused(pipeline, gray):
    weights = {name: value for name, value in pipeline.items() if not name.startswith("latent_embedder.")}
    with pytest.raises(WeightsError, match="maps 8 channels to 8, latents have 4"):
        load_published(weights | below("latent_embedder.", gray))


@pytest.mark.parametrize(
    "name",
    [
        "inc.block_seq.0.basic_block.conv.weight",
        "encoders.1.down_op.down_op.weight",
        "decoders.0.up_op.up_op.bias",
        "out_enc.1.conv.weight",
        "inc_dec.block_seq.0.conv_res.weight",
        "outc_ver.0.conv.bias",
    ],
)
def test_missing_autoencoder_weight_is_named(gray, name):
    del gray[name]
    with pytest.raises(WeightsError, match=f"'{name}' is missing"):
        load_published(gray)


@pytest.mark.parametrize(
    "name",
    [
        "in_conv.conv.weight",
        "in_blocks.2.down_op.weight",
        "out_blocks.3.2.up_op.weight",
        "middle_block.2.local_embedder.1.bias",
        "time_embedder.time_emb.3.weight",
    ],
)
def test_missing_weight_of_a_pipeline_is_named_with_its_prefix(pipeline, name):
    del pipeline["noise_estimator." + name]
    with pytest.raises(WeightsError, match=f"'noise_estimator.{name}' is missing"):
        load_published(pipeline)


@pytest.mark.parametrize("name", ["inc.block_seq.2.norm.weight", "quantizer.codebook"])
def test_surplus_weight_is_named(gray, name):
    with pytest.raises(WeightsError, match=f"'{name}' belongs to no layer"):
        load_published(gray | {name: torch.ones(2)})


@pytest.mark.parametrize("name", ["noise_estimator.in_blocks.0.1.qkv.weight", "ema_model.x", "latent_embedder.x"])
def test_surplus_weight_of_a_pipeline_is_named(pipeline, name):
    with pytest.raises(WeightsError, match=f"'{name}' belongs to no layer"):
        load_published(pipeline | {name: torch.ones(2)})


def test_surplus_weight_beside_a_vaegan_is_named(vaegan):
    with pytest.raises(WeightsError, match="'other.weight' belongs to no layer"):
        load_published(vaegan | {"other.weight": torch.ones(2)})


def test_wrong_shape_is_named_with_both_shapes(gray):
    gray["encoders.0.conv_block.block_seq.1.basic_block.conv.weight"] = torch.ones(16, 16, 1, 1)
    name = r"'encoders\.0\.conv_block\.block_seq\.1\.basic_block\.conv\.weight'"
    with pytest.raises(WeightsError, match=name + r".*\(16, 16, 1, 1\).*\(16, 16, 3, 3\)"):
        load_published(gray)


def test_weight_of_another_type_is_named_with_both_types(gray):
    name = "encoders.0.conv_block.block_seq.1.basic_block.conv.weight"
    gray[name] = gray[name].to(torch.int8)
    with pytest.raises(WeightsError, match=rf"'{name}' is torch\.int8, the network needs torch\.float32"):
        load_published(gray)


def test_norm_groups_that_do_not_divide_the_widths_are_refused(gray):
    with pytest.raises(ValueError, match="norm_groups=5"):
        load_published(gray, autoencoder_norm_groups=5)


def test_weights_of_another_network_are_refused_with_their_names():
    with pytest.raises(WeightsError, match="'backbone', 'head'"):
        load_published({"backbone.weight": torch.ones(1), "head.weight": torch.ones(1)})
