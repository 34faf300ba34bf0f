"""Temporary."""
import torch
from medfusion_monai.studio.service import Studio


class Data:
    counts = [20, 20]

    def __init__(self, studio):
        self.shape = (studio.model.image_channels, *studio.model.image_size)

    def image(self, label, place):
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(place))


if not hasattr(Studio, "data"):
    Studio.data = property(lambda self: self.__dict__["data"] if "data" in self.__dict__ else Data(self), lambda self, v: self.__dict__.__setitem__("data", v))


def audit_verdict(studio):
    """Temporary."""
    return None
