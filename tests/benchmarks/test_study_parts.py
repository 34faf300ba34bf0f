import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny_models import info_of, tiny
from torch import nn

from medfusion_monai.data.training.flips import FlippedDataset
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.unet import UNet
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_weights

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
quality_study = import_module("quality_study")
arms, evaluation, extra_losses, material, plan, protocol, store, variants = (
    import_module(f"study.{name}")
    for name in ("arms", "evaluation", "extra_losses", "material", "plan", "protocol", "store", "variants")
)
sys.path.remove(str(BENCHMARKS))

SMALL = protocol.PROTOCOLS["small.yaml"]


def arm(name):
    return next(each for each in arms.ARMS if each.name == name)


# Contrastive flow matching


def contrastive(weight=0.05):
    return extra_losses.ContrastiveLoss(DiffusionLoss(NoiseSchedule(), "l2"), weight)


def test_contrastive_flow_matching_has_its_minimum_where_the_closed_form_is():
    labels = torch.tensor([0, 1])
    target = torch.tensor([3.0, -1.0])[:, None, None, None]
    best = (target - 0.05 * target.flip(0)) / 0.95
    prediction = best.clone().requires_grad_()
    loss = contrastive()(prediction, target, torch.zeros(2), labels, torch.tensor([True, True]))
    loss.backward()
    assert prediction.grad.abs().max() < 1e-6
    expected = ((best - target) ** 2 - 0.05 * (best - target.flip(0)) ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_samples_with_a_dropped_label_and_batches_of_one_class_have_the_plain_loss():
    prediction, target = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    plain = (prediction - target).square().mean()
    times, kept, labels = torch.zeros(4), torch.zeros(4, dtype=torch.bool), torch.tensor([0, 1, 0, 1])
    assert contrastive()(prediction, target, times, labels, kept) == plain
    assert contrastive()(prediction, target, times, labels * 0, ~kept) == plain
    one = contrastive()(prediction, target, times, labels, torch.tensor([False, True, False, False]))
    away = (prediction[1] - target[2]).square().mean()
    assert one.item() == pytest.approx((plain - 0.05 * away / 4).item(), rel=1e-5)


def test_the_partner_is_the_next_sample_of_another_class():
    assert extra_losses.partners(torch.tensor([0, 0, 1, 0, 2])).tolist() == [2, 2, 3, 4, 0]
    assert extra_losses.partners(torch.tensor([1, 1])).tolist() == [-1, -1]


def test_a_contrastive_loss_is_refused_where_targets_depend_on_the_timestep():
    with pytest.raises(ValueError, match="needs prediction_type velocity, received 'v_prediction'"):
        extra_losses.ContrastiveLoss(DiffusionLoss(NoiseSchedule()), 0.05, "v_prediction")


# Alignment


def test_the_alignment_loss_is_zero_for_equal_directions_one_for_right_angles_two_for_opposite_ones():
    features = torch.randn(2, 6, 3, 3)
    assert extra_losses.alignment_loss(2.5 * features, features).item() == pytest.approx(0.0, abs=1e-6)
    assert extra_losses.alignment_loss(-features, features).item() == pytest.approx(2.0, abs=1e-6)
    right = torch.cat([features[:, 3:], -features[:, :3]], dim=1)
    assert extra_losses.alignment_loss(right, features).item() == pytest.approx(1.0, abs=1e-6)


def test_a_head_learns_features_that_the_middle_determines():
    torch.manual_seed(0)
    middle, head = torch.randn(8, 4, 3, 3), extra_losses.AlignmentHead(4, 6)
    features = nn.Conv2d(4, 6, 1)(middle).detach()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = extra_losses.alignment_loss(head(middle), features)
        loss.backward()
        optimizer.step()
    assert loss < 0.03


@pytest.mark.parametrize("size", [(16, 16), (5, 7)])
def test_the_middle_of_the_unet_has_the_grid_that_features_are_pooled_to(size):
    network = UNet(2, channels=[8, 8, 16, 16], embedding_channels=16, norm_groups=4)
    middle = extra_losses.Middle(network)
    network(torch.randn(1, 2, *size), torch.zeros(1))
    assert middle.output.shape[1:] == (16, *material.middle_grid(size, 4))


class Pooled(nn.Module):
    """An extractor with the pooling of EfficientNet: three channels of an image at half its size."""

    dimensions, sha256 = 3, "0" * 64

    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.global_pool = nn.Flatten()

    def forward(self, image):
        return self.network.global_pool(nn.functional.avg_pool2d(image.expand(-1, 3, -1, -1), 2)).mean(1, keepdim=True)


def test_feature_maps_are_what_the_extractor_pools_averaged_to_the_grid():
    images = torch.rand(70, 1, 8, 8)
    maps = material.feature_maps(Pooled(), images, (2, 2))
    expected = nn.functional.avg_pool2d(images, 4).expand(-1, 3, -1, -1)
    assert torch.allclose(maps.float(), expected, atol=1e-3)


def test_features_without_a_pooling_cannot_be_aligned_with():
    with pytest.raises(ValueError, match="the arm 'aligned' needs feature maps: take features efficientnet-lite0"):
        material.feature_maps(lambda images: images, torch.rand(1, 1, 8, 8), (2, 2))


# Dropout


def test_dropout_keeps_the_names_of_weights_and_acts_in_training_alone():
    network = UNet(2, channels=[8, 8, 16], embedding_channels=16, norm_groups=4)
    nn.init.normal_(network.conv_out.weight)
    for block in network.modules():
        if isinstance(block, extra_losses.ResidualBlock):
            nn.init.normal_(block.second.conv.weight)
    names, inputs = list(network.state_dict()), (torch.randn(2, 2, 4, 4), torch.zeros(2))
    before = network.eval()(*inputs)
    dropout = extra_losses.Dropout(network, 0.5, seed=0)
    assert list(network.state_dict()) == names
    assert torch.equal(network(*inputs), before)
    outputs = []
    for step in (0, 0, 1):
        dropout.start(step)
        outputs.append(network.train()(*inputs))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], before)


def test_dropout_keeps_the_mean_of_values():
    convolution = extra_losses.ResidualBlock(1, 1, 1)
    seen = []
    extra_losses.Dropout(convolution, 0.25, seed=0)
    convolution.second.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    convolution.first.forward = lambda x: torch.ones(1, 1, 200, 200)
    convolution(torch.zeros(1, 1, 200, 200))
    assert seen[0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert seen[0].mean().item() == pytest.approx(1.0, abs=0.01)


# Variants of images


def test_a_shift_moves_the_image_and_repeats_its_edge():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    moved = variants.vary(image, "down")
    assert torch.equal(moved[..., 3:, :], image[..., :-3, :])
    assert torch.equal(moved[..., :3, :], image[..., :1, :].expand(-1, -1, 3, -1))
    assert torch.equal(variants.vary(image, "left")[..., :-3], image[..., 3:])


def test_flips_are_those_of_the_bundles():
    image = torch.rand(1, 3, 4, 6)
    flips = ["horizontal", "vertical", "both"]
    theirs = FlippedDataset([{"image": image[0]}], flips)
    ours = [variants.vary(image, name)[0] for name in variants.variants_of("bundle", flips)]
    assert all(torch.equal(one, theirs[index]["image"]) for index, one in enumerate(ours))


@pytest.mark.parametrize(
    ("flips", "has_equivariant", "left_out"),
    [([], False, ["no_flips", "equivariant"]), (["horizontal"], True, ["shifts"])],
)
def test_arms_that_a_bundle_rules_out_are_left_out_with_a_reason(flips, has_equivariant, left_out):
    reasons = {each.name: arms.why_not(each, flips, has_equivariant) for each in arms.ARMS}
    assert [name for name, why in reasons.items() if why] == left_out


def test_each_arm_gets_the_latents_of_its_images_and_autoencoder_computed_once(tmp_path, monkeypatch):
    images = {"training": (torch.rand(3, 1, 16, 16), [0, 1, 1]), "held_out": (torch.rand(2, 1, 16, 16), [0, 1])}
    networks = {"given": material.Given(tiny().autoencoder, "a" * 64)}
    torch.manual_seed(1)
    other = type(networks["given"].network)(1, channels=[8, 16]).eval()
    networks["equivariant"] = material.Given(other, "b" * 64)
    recipe = {"latent_flips": ["horizontal"], "unet_channels": [8, 8, 16]}
    materials = material.Materials(tmp_path, recipe, images, networks, Pooled())
    given, plain, aligned, equivariant = (
        materials.material(arm(name)) for name in ("v_l2", "no_flips", "aligned", "equivariant")
    )
    assert given.training.labels == [0, 0, 1, 1, 1, 1]
    flipped = material.encode(networks["given"].network, images["training"][0].flip(-1)).half()
    assert torch.equal(given.training.moments[1::2], flipped)
    assert torch.equal(given.training.moments[::2], plain.training.moments)
    assert plain.training.labels == [0, 1, 1]
    assert aligned.training.features.shape == (6, 3, 4, 4)
    assert torch.allclose(aligned.training.features[1::2].flip(-1), aligned.training.features[::2], atol=1e-3)
    assert equivariant.autoencoder is other
    assert torch.equal(equivariant.training.moments[::2], material.encode(other, images["training"][0]).half())
    monkeypatch.setattr(material, "encode", None)
    monkeypatch.setattr(material, "feature_maps", None)
    again = material.Materials(tmp_path, recipe, images, networks, Pooled()).material(arm("aligned"))
    assert torch.equal(again.training.moments, aligned.training.moments)


# Autoencoders and settings


def test_an_autoencoder_is_taken_from_a_folder_of_a_whole_model(tmp_path):
    network = tiny()
    save_weights(network, tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", info_of(network))
    opened = material.open_autoencoder(tmp_path, quality_study.BUNDLE, "small.yaml", {})
    assert torch.equal(opened.network.conv_in.first.conv.weight, network.autoencoder.conv_in.first.conv.weight)
    assert torch.equal(opened.network.latent_std, network.autoencoder.latent_std)


def test_an_autoencoder_of_phase_one_has_the_sizes_of_the_overlay(tmp_path):
    parser = material.read_files(material.config_files(quality_study.BUNDLE, "small.yaml"), {})
    network = parser.get_parsed_content("autoencoder")
    save_weights(network, tmp_path / "autoencoder.pt")
    opened = material.open_autoencoder(tmp_path / "autoencoder.pt", quality_study.BUNDLE, "small.yaml", {})
    assert torch.equal(opened.network.conv_in.first.conv.weight, network.conv_in.first.conv.weight)


def test_missing_weights_and_weights_for_other_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not exist"):
        material.open_autoencoder(tmp_path / "none.pt", quality_study.BUNDLE, "small.yaml", {})
    network = tiny(channels=3)
    save_weights(network, tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", info_of(network))
    with pytest.raises(ValueError, match="is for images of 3 channels, those of .* have 1"):
        material.open_autoencoder(tmp_path, quality_study.BUNDLE, "small.yaml", {})


@pytest.fixture
def setup_of(tmp_path):
    """Set up a study of a few phantoms in a prepared folder, with options."""
    prepare_phantoms(tmp_path / "data", num_images=20, size=32)

    def make(*options):
        given = ["--output", tmp_path / "study", "--data", tmp_path / "data", "--overlay", "small.yaml", *options]
        return quality_study.Setup(quality_study.parse([str(each) for each in given]))

    return make


def test_a_study_of_a_folder_has_its_classes_and_the_sizes_of_the_command_line(setup_of):
    setup = setup_of("--unet-channels", "32", "64", "96", "128")
    assert setup.recipe["unet_channels"] == [32, 64, 96, 128]
    assert setup.recipe["class_names"] == material.own_class_names(setup.dataset_dir)
    assert (setup.recipe["image_size"], setup.recipe["label_dropout"]) == ([128, 128], 0.2)
    assert (setup.arms[0].name, setup.seeds, setup.samples) == ("v_l2", [0, 1, 2, 3], 4)
    assert set(setup.skipped) == {"no_flips", "equivariant"}


def test_more_samples_than_held_out_images_are_refused(setup_of):
    with pytest.raises(ValueError, match="--samples 5: there are 4 held-out images"):
        setup_of("--samples", "5").identity  # noqa: B018


def test_a_study_with_another_rule_data_sizes_time_or_autoencoder_is_refused_with_both_values(
    setup_of, tmp_path, monkeypatch
):
    for name, seed in (("one.pt", 0), ("other.pt", 1)):
        torch.manual_seed(seed)
        save_weights(nn.Linear(2, 2), tmp_path / name)
    first = setup_of("--autoencoder", tmp_path / "one.pt")
    kept = first.store
    kept.claim(first.identity)
    kept.claim(first.identity)

    def refused(match, setup):
        with pytest.raises(ValueError, match=match):
            kept.claim(setup.identity)

    refused("seconds 600.0, not 60.0", setup_of("--autoencoder", tmp_path / "one.pt", "--seconds", "60"))
    refused(r"autoencoder [0-9a-f]{64}, not [0-9a-f]{64}", setup_of("--autoencoder", tmp_path / "other.pt"))
    narrow = setup_of("--autoencoder", tmp_path / "one.pt", "--unet-channels", "32", "64")
    refused(r"recipe: unet_channels \[64, 96, 128, 192\], not \[32, 64\]", narrow)
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, seed=1, overwrite=True)
    refused("training images [0-9a-f]{32}, not [0-9a-f]{32}", setup_of("--autoencoder", tmp_path / "one.pt"))
    monkeypatch.setitem(SMALL.rule, "recall_margin", 0.5)
    other = setup_of("--autoencoder", tmp_path / "one.pt")
    refused("rule: recall_margin 0.01, not 0.5", other)


def test_a_study_may_gain_arms_but_not_change_them(tmp_path):
    kept = store.Store(tmp_path)
    kept.claim({"seconds": 60.0, "arm flow": {"dropout": 0.0}})
    kept.claim({"seconds": 60.0, "arm dropout": {"dropout": 0.1}, "equivariant autoencoder": "ab"})
    kept.claim({"seconds": 60.0})
    with pytest.raises(ValueError, match=r"arm dropout {'dropout': 0.1}, not {'dropout': 0.2}"):
        kept.claim({"seconds": 60.0, "arm dropout": {"dropout": 0.2}})
    with pytest.raises(ValueError, match="equivariant autoencoder ab, not cd"):
        kept.claim({"seconds": 60.0, "equivariant autoencoder": "cd"})


def test_a_study_whose_settings_were_kept_nested_goes_on(tmp_path):
    (tmp_path / "study.json").write_text('{"recipe": {"sizes": [1, 2]}}')
    store.Store(tmp_path).claim({"recipe": {"sizes": (1, 2)}})
    with pytest.raises(ValueError, match=r"recipe: sizes \[1, 2\], not \[3\]"):
        store.Store(tmp_path).claim({"recipe": {"sizes": [3]}})


# Judging


def test_classifiers_of_colour_images_cannot_go_by_colour_brightness_or_contrast():
    image = torch.rand(1, 1, 16, 16).repeat(1, 3, 1, 1)
    stained = torch.cat([image, 0.3 + 0.5 * image * torch.tensor([1.0, 0.6, 0.8])[:, None, None]])
    gray = evaluation.without_colour(stained)
    assert gray.shape == (2, 1, 16, 16)
    assert torch.allclose(gray[0], gray[1], atol=1e-5)
    assert gray.mean().item() == pytest.approx(0.5, abs=1e-3)


# The plan


COSTS = plan.Costs({"v_l2": 0.5, "aligned": 0.625}, 0.01, 0.02, 0.03, 0.04, 5.0, 7.0)
COUNTS = {"training": 100, "held_out": 20, "samples": 10}


def test_the_plan_adds_up_what_a_study_takes():
    chosen = [arm("v_l2"), arm("aligned")]
    found = plan.parts(COSTS, chosen, [0, 1, 2], 100.0, COUNTS, SMALL, ["horizontal"])
    assert found["training"] == pytest.approx(3 * (200 * 0.5 + 160 * 0.625))
    encoding = (2 * 100 + 20) * 0.02 + (100 + 2 * 100) * 0.04 + 3 * 7.0
    assert found["encoding and features"] == pytest.approx(encoding)
    evaluations = 2 * 3 * 2
    sampling = evaluations * (10 * (30 * 0.01 + 0.03 + 0.04) + 5.0 + 6 * 20 * 0.01)
    assert found["sampling and measuring"] == pytest.approx(sampling)


def test_the_plan_shows_the_measured_step_of_each_arm_and_what_is_left_out():
    chosen = [arm("v_l2"), arm("aligned")]
    text = plan.plan_text(COSTS, chosen, [0], 100.0, COUNTS, SMALL, {"equivariant": "it needs a file"})
    assert "  aligned        0.625 s x    160 v prediction, L2, aligned with features" in text
    assert "  equivariant  not run: it needs a file" in text
    hours = sum(plan.parts(COSTS, chosen, [0], 100.0, COUNTS, SMALL).values()) / 3600
    assert f"  {hours:6.1f} in all" in text


def test_the_evaluations_of_the_earlier_protocol_are_counted():
    chosen = [arm("baseline"), arm("v")]
    calls = protocol.PROTOCOLS["demo.yaml"].unet_calls(chosen, [0, 1])
    # two arms, raw weights of one, the shipped sampler of two, three scales of two, of each seed; the check of two arms
    assert len(calls) == 2 * (2 + 1 + 2 + 6) + 2
    assert sum(calls) == 2 * (2 * 20 + 20 + 2 * 30 + 6 * 40) + 2 * 50


@pytest.mark.slow
def test_the_costs_of_each_part_are_measured_on_the_shapes_of_the_study():
    recipe = {
        "class_names": ["a", "b"], "image_size": [32, 32], "image_channels": 1, "latent_flips": [],
        "unet_channels": [8, 8, 16], "unet_embedding_channels": 16, "unet_norm_groups": 4, "diffusion_batch_size": 2,
        "diffusion_lr": 1e-3, "diffusion_lr_warmup": 2, "diffusion_lr_decay": "linear", "label_dropout": 0.5,
        "max_grad_norm": 1.0,
    }  # fmt: skip
    chosen = [arm("v_l2"), arm("aligned"), arm("dropout")]
    extractor = Pooled()
    costs = plan.measure_costs(chosen, recipe, {"given": tiny().autoencoder}, extractor, (40, 8), {})
    assert costs.step.keys() == {"v_l2", "aligned", "dropout"}
    assert min(*costs.step.values(), *costs[1:]) > 0
    known = plan.measure_costs(chosen[:1], recipe, {"given": tiny().autoencoder}, extractor, (40, 8), {"v_l2": 7.0})
    assert known.step == {"v_l2": 7.0}
