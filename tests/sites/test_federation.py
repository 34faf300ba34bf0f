"""What sites exchange: weights that do not fit are refused."""

import pytest
import torch
from tiny_models import tiny

from medfusion_monai.sites.federation import UNET, FederationError, first_state, load_part


def test_weights_of_other_classes_are_refused():
    state = first_state("diffusion", tiny(["a", "b", "c"]))
    with pytest.raises(FederationError, match=r"do not fit this site: 1 of \d+ differ, first unet.class_embedding"):
        load_part(tiny().unet, state, UNET)


def test_weights_of_another_network_are_refused():
    with pytest.raises(FederationError, match="All sites must use the same networks and classes"):
        load_part(tiny().unet, first_state("autoencoder", tiny()), UNET)


def test_weights_that_are_not_finite_are_refused():
    state = first_state("diffusion", tiny())
    state["unet.conv_out.weight"].view(-1)[0] = torch.nan
    with pytest.raises(FederationError, match="not finite"):
        load_part(tiny().unet, state, UNET)
