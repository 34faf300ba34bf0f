"""Which models a studio takes."""

import pytest
from tiny_models import save_gan

import medfusion_monai as mf
from medfusion_monai.studio.service import Studio


def test_weights_of_a_gan_are_refused_at_the_start(tmp_path):
    model = mf.load(save_gan(tmp_path / "gan.pt"), "cpu")
    with pytest.raises(ValueError, match="are those of a GAN, .*choose the weights of a diffusion model"):
        Studio(model)
