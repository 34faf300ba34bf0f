"""The page without a browser: what its tabs show, refuse and ask of the studio."""

import asyncio
import io
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_models import save, tiny

import medfusion_monai as mf

pytest.importorskip("nicegui", reason="needs the extra studio")

from nicegui import ui  # noqa: E402
from nicegui.elements.upload_files import SmallFileUpload  # noqa: E402
from nicegui.testing.user_simulation import user_simulation  # noqa: E402

from medfusion_monai.studio.pages.frame import show_frame  # noqa: E402
from medfusion_monai.studio.pages.mask_editor import MaskCanvas, decoded  # noqa: E402
from medfusion_monai.studio.pages.visit import Visit  # noqa: E402
from medfusion_monai.studio.service import Studio  # noqa: E402
