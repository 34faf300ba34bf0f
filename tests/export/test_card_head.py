"""By what the hub lists a model."""

import pytest
import yaml
from tiny_models import save_gan

from medfusion_monai.export.card_head import card_head
from medfusion_monai.export.safetensors_folder import export_weights


@pytest.mark.parametrize(("has_latents", "expected"), [(True, ["latent-diffusion"]), (False, ["gan"])])
def test_tags_name_the_kind_of_model(has_latents, expected):
    tags = yaml.safe_load(card_head("monai", has_latents=has_latents).strip("-\n"))["tags"]
    assert [tag for tag in tags if tag in ("latent-diffusion", "gan")] == expected


def test_exported_gan_is_not_listed_as_a_diffusion_model(tmp_path):
    export_weights(save_gan(tmp_path / "gan.pt"), tmp_path / "shared")
    head = (tmp_path / "shared" / "README.md").read_text().split("---")[1]
    assert "latent-diffusion" not in head
