import copy

import pytest
import torch
from monai.inferers import Inferer
from torch import nn

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.guidance import Guide, autoguided_denoiser, guided_denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import schedule_timesteps, spaced_timesteps
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import NO_LABEL, UNet
from medfusion_monai.runtime.out_of_memory import BatchTooLargeError
from medfusion_monai.runtime.seeds import generators, randn

SEEDS = [11, 22, 33, 44]
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    autoencoder = Autoencoder(in_channels=1, latent_channels=4, channels=(8, 8, 16, 16))
    unet = UNet(4, channels=(8, 8, 16), embedding_channels=32, norm_groups=4)
    nn.init.normal_(unet.conv_out.weight, std=0.3)  # both start at zero and would hide every difference
    nn.init.normal_(autoencoder.conv_out.weight, std=0.1)
    return Medfusion(autoencoder, unet).eval()


def sampler(**settings):
    settings = {"latent_shape": (4, 3, 2), "num_inference_steps": 6} | settings
    return LatentDiffusionSampler(NoiseSchedule(prediction_type="v_prediction"), **settings)


def test_it_is_an_inferer_of_monai():
    assert isinstance(sampler(), Inferer)


def test_batch_that_does_not_fit_is_refused_with_the_largest_that_was_measured_to(network, monkeypatch):
    decode = network.autoencoder.decode_stage_2_outputs

    def at_most_two(latents):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more")
        return decode(latents)

    monkeypatch.setattr(network.autoencoder, "decode_stage_2_outputs", at_most_two)
    with pytest.raises(
        BatchTooLargeError, match=r"4 images at a time .* sample with --batch_size 2 \(CUDA out of memory\.\)"
    ):
        sampler(sampler="unipc")(LABELS, network, SEEDS)
    assert len(sampler(sampler="unipc")(LABELS[:2], network, SEEDS[:2])) == 2


def test_images_have_their_shape_and_range_and_are_not_all_clipped(network):
    images = sampler()(LABELS, network, SEEDS)
    assert images.shape == (4, 1, 24, 16)
    assert images.min() >= 0
    assert images.max() <= 1
    assert ((images > 0) & (images < 1)).float().mean() > 0.5
    assert images.std() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 0.0},
        {"guidance_scale": 2.0},
        {"guidance_scale": 2.0, "guidance_interval": [0.3, 3.0]},
        {"sampler": "dpm_solver"},
        {"sampler": "unipc", "guidance_scale": 2.0, "decode_batch_size": 1},
    ],
)
def test_image_is_the_same_alone_and_in_any_batch(network, settings):
    sample = sampler(**settings)
    together = sample(LABELS, network, SEEDS)
    for index in range(4):
        alone = sample(LABELS[index : index + 1], network, SEEDS[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)
    order = [2, 0, 3, 1]
    shuffled = sample(LABELS[order], network, [SEEDS[index] for index in order])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)


def test_different_seeds_give_different_images(network):
    images = sampler()(torch.zeros(3, dtype=torch.long), network, [1, 2, 1])
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    torch.testing.assert_close(images[0], images[2], rtol=0, atol=1e-5)


def test_labels_change_the_image(network):
    images = sampler()(torch.tensor([0, 1, NO_LABEL]), network, [5, 5, 5])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(images[a], images[b], atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 4.0},
        {"eta": 0.0},
        {"num_inference_steps": 5},
        {"sampler": "dpm_solver"},
        {"sampler": "unipc"},
        {"spacing": "quadratic"},
    ],
)
def test_each_setting_changes_the_image(network, settings):
    assert not torch.allclose(sampler(**settings)(LABELS, network, SEEDS), sampler()(LABELS, network, SEEDS), atol=1e-3)


def test_negative_label_changes_guided_images(network):
    plain, negative = sampler(guidance_scale=3.0), sampler(guidance_scale=3.0, negative_label=0)
    assert not torch.allclose(plain(LABELS, network, SEEDS), negative(LABELS, network, SEEDS), atol=1e-3)


def test_interval_changes_guided_images_unless_it_contains_all_noise_levels(network):
    guided = sampler(guidance_scale=3.0)(LABELS, network, SEEDS)
    inside = sampler(guidance_scale=3.0, guidance_interval=[0.3, 3])(LABELS, network, SEEDS)
    assert not torch.allclose(inside, guided, atol=1e-3)
    everywhere = sampler(guidance_scale=3.0, guidance_interval=[0, 1e6])(LABELS, network, SEEDS)
    assert torch.equal(everywhere, guided)


def test_interval_without_a_timestep_is_no_guidance(network):
    nowhere = sampler(guidance_scale=3.0, guidance_interval=[1e6, 1e7])(LABELS, network, SEEDS)
    assert torch.equal(nowhere, sampler()(LABELS, network, SEEDS))


class TwoGaussians:
    """The exact denoiser of latents around 1 with label 0 and around -1 without, of standard deviation 0.5."""

    autoencoder = None

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, []

    def unet(self, x, timesteps, class_labels):
        self.calls.append(len(x))
        timestep = int(timesteps[0])
        mean = torch.where(class_labels == 0, 1.0, -1.0)[:, None, None, None].to(x.dtype)
        variance = self.schedule.noise_to_signal(timestep) ** 2
        return (0.25 * x / self.schedule.exact_signal[timestep] + variance * mean) / (0.25 + variance)


@pytest.mark.parametrize(
    ("interval", "means"),
    [
        (None, [(0.0, 3.0)]),
        ([0.5, 4.0], [(4.0, 1.0), (0.5, 3.0), (0.0, 1.0)]),
        ([1.0, 1e6], [(1.0, 3.0), (0.0, 1.0)]),
        ([1e6, 1e7], [(0.0, 1.0)]),
    ],
)
def test_guided_gaussian_follows_the_exact_solution(interval, means):
    # Guidance 2 moves the mean from 1 to -1 + 2 * 2 = 3. Where the mean is m, (y - m) / sqrt(0.25 + level^2) is
    # constant along the probability flow, with y the noisy latents over the signal.
    schedule = NoiseSchedule(prediction_type="sample")
    settings = {"num_inference_steps": 1000, "eta": 0.0, "guidance_scale": 2.0, "guidance_interval": interval}
    inferer, gaussians = LatentDiffusionSampler(schedule, (1, 2, 2), **settings), TwoGaussians(schedule)
    latents = inferer.sample_latents(torch.zeros(2, dtype=torch.long), gaussians, [5, 6])
    level = schedule.noise_to_signal(999)
    exact = randn((1, 2, 2), generators([5, 6])) / schedule.exact_signal[999]
    for end, mean in means:
        exact, level = mean + (exact - mean) * ((0.25 + end**2) / (0.25 + level**2)) ** 0.5, end
    torch.testing.assert_close(latents, exact, rtol=0, atol=0.03)


def test_outside_the_interval_only_the_conditional_network_runs():
    schedule = NoiseSchedule(prediction_type="sample")
    settings = {"num_inference_steps": 30, "spacing": "logsnr", "guidance_scale": 2.0, "guidance_interval": [0.3, 3]}
    inferer, gaussians = LatentDiffusionSampler(schedule, (1, 2, 2), **settings), TwoGaussians(schedule)
    inferer.sample_latents(torch.zeros(2, dtype=torch.long), gaussians, [5, 6])
    levels = [schedule.noise_to_signal(timestep) for timestep in inferer.timesteps]
    assert gaussians.calls == [4 if 0.3 < level <= 3 else 2 for level in levels]
    assert gaussians.calls.count(4) == 8


def test_memory_is_measured_with_guidance_also_where_the_first_step_has_none(network, monkeypatch):
    forward = network.unet.forward

    def at_most_four(x, **keywords):
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x, **keywords)

    monkeypatch.setattr(network.unet, "forward", at_most_four)
    with pytest.raises(BatchTooLargeError, match="sample with --batch_size 2 "):
        sampler(guidance_scale=2.0, guidance_interval=[0.3, 3])(LABELS, network, SEEDS)


@pytest.fixture(scope="module")
def worse(network):
    """The UNet with disturbed weights."""
    unet = copy.deepcopy(network.unet)
    generator = torch.Generator().manual_seed(1)
    for weight in unet.parameters():
        weight.data += 0.03 * torch.randn(weight.shape, generator=generator)
    return Guide(unet, "ab" * 32)


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_guide_of_the_same_weights_is_no_guidance(name, network):
    same = sampler(sampler=name, guidance_scale=3.0, guide=Guide(network.unet, "ab" * 32))
    assert torch.equal(same(LABELS, network, SEEDS), sampler(sampler=name)(LABELS, network, SEEDS))


def test_guide_changes_the_image_only_in_the_interval(network, worse):
    plain = sampler()(LABELS, network, SEEDS)
    guided = sampler(guidance_scale=3.0, guide=worse)(LABELS, network, SEEDS)
    assert not torch.allclose(guided, plain, atol=1e-3)
    inside = sampler(guidance_scale=3.0, guide=worse, guidance_interval=[0.3, 3])(LABELS, network, SEEDS)
    assert not torch.allclose(inside, guided, atol=1e-3)
    assert not torch.allclose(inside, plain, atol=1e-3)
    nowhere = sampler(guidance_scale=3.0, guide=worse, guidance_interval=[1e6, 1e7])(LABELS, network, SEEDS)
    assert torch.equal(nowhere, plain)


def test_guided_latents_are_those_of_the_formula_of_two_networks(network, worse):
    schedule, noise = NoiseSchedule(prediction_type="v_prediction"), randn((4, 3, 2), generators(SEEDS))

    def denoiser(latents, timesteps):
        one, other = (unet(latents, timesteps=timesteps, class_labels=LABELS) for unet in (network.unet, worse.unet))
        return 2.5 * one - 1.5 * other

    with torch.no_grad():
        expected = ddim_sample(denoiser, noise, schedule, 6, 0.0)
        same = ddim_sample(autoguided_denoiser(network.unet, worse.unet, LABELS, 2.5), noise, schedule, 6, 0.0)
    latents = sampler(guidance_scale=2.5, guide=worse, eta=0.0).sample_latents(LABELS, network, SEEDS)
    assert torch.equal(latents, same)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_guide_of_a_wider_gaussian_narrows_the_samples():
    # Both predict latents around 1, of standard deviation 0.5 and 1. At scale 2 the guided prediction is linear in the
    # noisy latents as well, so that samples stay Gaussian around 1.
    schedule = NoiseSchedule(prediction_type="sample")

    class Around:
        autoencoder = None

        def __init__(self, variance):
            self.variance = variance

        def unet(self, x, timesteps, class_labels):
            noise = schedule.noise_to_signal(int(timesteps[0])) ** 2
            return (self.variance * x / schedule.exact_signal[int(timesteps[0])] + noise) / (self.variance + noise)

    class Wide(Guide):
        def __init__(self):
            nn.Module.__init__(self)
            self.unet = Around(1.0).unet

    settings = {"num_inference_steps": 1000, "eta": 0.0, "guidance_scale": 2.0, "guide": Wide()}
    latents = LatentDiffusionSampler(schedule, (1, 2, 2), **settings).sample_latents(
        torch.zeros(2, dtype=torch.long), Around(0.25), [5, 6]
    )
    # dy / dlevel = level * (2 (y - 1) / (0.25 + level^2) - (y - 1) / (1 + level^2)), whose solution scales y - 1 by
    # (0.25 + level^2) / sqrt(1 + level^2).
    level = schedule.noise_to_signal(999)
    start = randn((1, 2, 2), generators([5, 6])) / schedule.exact_signal[999]
    exact = 1.0 + (start - 1.0) * 0.25 / ((0.25 + level**2) / (1.0 + level**2) ** 0.5)
    torch.testing.assert_close(latents, exact, rtol=0, atol=0.03)


def test_guided_image_is_the_same_alone_and_in_any_batch(network, worse):
    sample = sampler(guidance_scale=2.0, guide=worse)
    together = sample(LABELS, network, SEEDS)
    for index in range(4):
        alone = sample(LABELS[index : index + 1], network, SEEDS[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


def test_guide_and_negative_label_exclude_each_other(worse):
    with pytest.raises(ValueError, match="negative_label and guidance_model are two ways of guidance"):
        sampler(guidance_scale=2.0, guide=worse, negative_label=0)
    with pytest.raises(ValueError, match="guidance_model has no effect at guidance_scale 1"):
        sampler(guide=worse)


@pytest.mark.parametrize("scale", [0.5, 0.0, -2.0])
def test_guide_is_not_followed(scale, worse):
    with pytest.raises(ValueError, match=f"guidance_scale must be a number above 1 with a guide, received {scale}"):
        sampler(guidance_scale=scale, guide=worse)


def test_without_seeds_the_global_random_state_decides(network):
    torch.manual_seed(3)
    first, second = sampler()(LABELS, network), sampler()(LABELS, network)
    torch.manual_seed(3)
    assert torch.equal(sampler()(LABELS, network), first)
    assert not torch.allclose(first, second, atol=1e-3)


def test_latents_are_denormalized_before_decoding(network):
    class Scaled(nn.Module):
        unet = network.unet

        class autoencoder:
            @staticmethod
            def decode_stage_2_outputs(latents):
                return latents * 0 + 0.5

    assert torch.equal(sampler()(LABELS, Scaled(), SEEDS), torch.full((4, 4, 3, 2), 0.75))


def test_published_sampler_is_the_default():
    default = LatentDiffusionSampler(NoiseSchedule(), (4, 3, 2))
    assert (default.sampler, default.num_inference_steps, default.eta, default.guidance_scale) == (
        "ddim",
        150,
        1.0,
        1.0,
    )
    assert default.timesteps == spaced_timesteps(150)
    assert (default.dtype, default.decode_batch_size) == (torch.float32, None)


@pytest.mark.parametrize(("name", "steps"), [("dpm_solver", 30), ("unipc", 30)])
def test_faster_samplers_have_their_own_steps_and_spacing_and_no_fresh_noise(name, steps):
    fast = LatentDiffusionSampler(NoiseSchedule(), (4, 3, 2), sampler=name)
    assert (fast.num_inference_steps, fast.spacing, fast.eta) == (steps, "logsnr", 0.0)
    assert fast.timesteps == schedule_timesteps(NoiseSchedule(), steps, "logsnr")


def test_steps_and_spacing_that_are_given_are_used():
    given = LatentDiffusionSampler(NoiseSchedule(), (4, 3, 2), 7, sampler="unipc", spacing="karras")
    assert given.timesteps == schedule_timesteps(NoiseSchedule(), 7, "karras")


@pytest.mark.parametrize(("steps", "timesteps"), [(1, [999]), (2, [999, 417]), (4, [999, 771, 417, 43])])
def test_tuned_sampler_takes_no_step_at_the_lowest_noise(steps, timesteps):
    tuned = sampler(sampler="distilled", num_inference_steps=steps)
    assert (tuned.timesteps, tuned.eta) == (timesteps, 0.0)


def test_tuned_sampler_is_the_same_whatever_guidance_its_weights_have_learned(network):
    plain, guided = (sampler(sampler="distilled", num_inference_steps=2, guidance_scale=scale) for scale in (1, 3))
    assert torch.equal(plain(LABELS, network, SEEDS), guided(LABELS, network, SEEDS))
    assert guided.settings()["guidance_scale"] == 3.0


def test_flow_has_no_fresh_noise_by_default():
    assert LatentDiffusionSampler(NoiseSchedule(schedule="flow", prediction_type="velocity"), (4, 3, 2)).eta == 0.0


def test_latents_are_those_of_the_samplers(network):
    schedule = NoiseSchedule(prediction_type="v_prediction")
    noise, denoiser = randn((4, 3, 2), generators(SEEDS)), guided_denoiser(network.unet, LABELS, 1.5)
    with torch.no_grad():
        expected = {
            "ddim": ddim_sample(denoiser, noise, schedule, 6, 0.0),
            "dpm_solver": dpm_solver_sample(denoiser, noise, schedule, 6, "karras"),
            "unipc": unipc_sample(denoiser, noise, schedule, 6, "karras"),
        }
    for name, latents in expected.items():
        settings = {"eta": 0.0} if name == "ddim" else {"spacing": "karras"}
        sample = sampler(sampler=name, guidance_scale=1.5, **settings)
        assert torch.equal(sample.sample_latents(LABELS, network, SEEDS), latents)


def test_guidance_is_computed_in_float32(network):
    class Half(nn.Module):
        autoencoder = network.autoencoder

        @staticmethod
        def unet(x, timesteps, class_labels):
            return (100.0 + class_labels[:, None, None, None] * torch.ones_like(x)).bfloat16() / 3.0

    schedule = NoiseSchedule(prediction_type="sample")
    sample = LatentDiffusionSampler(schedule, (4, 3, 2), 1, guidance_scale=1.3, negative_label=0)
    one, other = (torch.tensor(value / 3.0).bfloat16().float() for value in (101.0, 100.0))
    latents = sample.sample_latents(torch.tensor([1]), Half(), [0])
    torch.testing.assert_close(latents, (other + 1.3 * (one - other)).expand_as(latents), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_networks_compute_in_the_type_asked_for_and_the_sampler_in_float32(name, network):
    seen = {}

    class Watched(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x, **keywords):
            seen.setdefault("latents", x.dtype)
            answer = self.part(x, **keywords)
            seen.setdefault("prediction", answer.dtype)
            return answer

    watched = Medfusion(network.autoencoder, Watched(network.unet)).eval()
    precise = sampler(sampler=name)(LABELS, watched, SEEDS)
    assert seen == {"latents": torch.float32, "prediction": torch.float32}
    seen.clear()
    images = sampler(sampler=name, dtype=torch.bfloat16)(LABELS, watched, SEEDS)
    assert seen == {"latents": torch.float32, "prediction": torch.bfloat16}
    assert images.dtype == torch.float32
    assert 0 < (images - precise).abs().mean() < 0.02


def test_latents_are_decoded_in_parts_of_the_size_asked_for(network):
    sizes = []

    class Watched(nn.Module):
        unet = network.unet

        class autoencoder:
            @staticmethod
            def decode_stage_2_outputs(latents):
                sizes.append(len(latents))
                return network.autoencoder.decode_stage_2_outputs(latents)

    parts = sampler(decode_batch_size=3)(LABELS, Watched(), SEEDS)
    torch.testing.assert_close(parts, sampler()(LABELS, network, SEEDS), rtol=0, atol=1e-5)
    assert sizes == [3, 1]


def test_no_gradient_is_kept(network):
    assert not sampler()(LABELS, network, SEEDS).requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "between 1 and 1000"),
        ({"eta": 1.5}, "eta must be between 0 and 1"),
        ({"eta": "abc"}, "eta must be between 0 and 1, received 'abc'"),
        ({"guidance_scale": "abc"}, "guidance_scale must be a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"negative_label": 0}, "negative_label has no effect at guidance_scale 1"),
        ({"negative_label": 0, "guidance_scale": 1}, "negative_label has no effect"),
        ({"guidance_interval": [0.3, 3]}, "guidance_interval has no effect at guidance_scale 1"),
        ({"guidance_interval": [3, 0.3], "guidance_scale": 2}, r"guidance_interval must be .*received \[3, 0.3\]"),
        ({"sampler": "euler"}, "sampler must be one of .*'ddim', 'dpm_solver', 'unipc'.*received 'euler'"),
        ({"sampler": "dpm_solver", "eta": 1.0}, r"eta 1 requires fresh noise.*'dpm_solver'.*--eta null"),
        ({"sampler": "distilled", "num_inference_steps": 2, "eta": 0.5}, "eta 0.5 requires fresh noise"),
        ({"sampler": "distilled"}, "num_inference_steps must be one of 1, 2, 4, 8 .*received 6"),
        (
            {"sampler": "distilled", "num_inference_steps": 2, "guidance_scale": 2, "negative_label": 0},
            "negative_label cannot be chosen with sampler 'distilled'",
        ),
        ({"spacing": "even"}, "spacing must be one of .*'even'"),
        ({"dtype": torch.float64}, "dtype must be one of .*float64"),
        ({"dtype": "bfloat16"}, "dtype must be one of .*'bfloat16'"),
        ({"decode_batch_size": 0}, "decode_batch_size must be a whole number of at least 1, received 0"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(**settings)


def test_fresh_noise_is_refused_with_the_flow_schedule():
    with pytest.raises(ValueError, match="eta must be 0, or left out, with schedule 'flow'.*0.5"):
        LatentDiffusionSampler(NoiseSchedule(schedule="flow", prediction_type="velocity"), (4, 3, 2), eta=0.5)
