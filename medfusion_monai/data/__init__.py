"""Data: datalists, image files, and the sources they are prepared from."""

from medfusion_monai.data.airogs import prepare_airogs
from medfusion_monai.data.chexpert import prepare_chexpert
from medfusion_monai.data.class_shares import training_shares, true_shares
from medfusion_monai.data.crcdx import prepare_crcdx
from medfusion_monai.data.datalist import (
    DataError,
    find_datalist,
    make_datalist,
    read_datalist,
    split_by_patient,
    write_datalist,
)
from medfusion_monai.data.flips import FlippedDataset, check_flips, for_each_variant
from medfusion_monai.data.folder import prepare_folder
from medfusion_monai.data.images import check_images, read_image
from medfusion_monai.data.latent_store import LatentStore
from medfusion_monai.data.phantoms import draw_chest_phantom, prepare_phantoms
from medfusion_monai.data.readable import ReadableDataset, check_readable
from medfusion_monai.data.sampling_plan import parse_label, sampling_plan
from medfusion_monai.data.stream import SeededDataset, StreamSampler, fingerprint

__all__ = [
    "DataError",
    "FlippedDataset",
    "LatentStore",
    "ReadableDataset",
    "SeededDataset",
    "StreamSampler",
    "check_flips",
    "check_images",
    "check_readable",
    "draw_chest_phantom",
    "find_datalist",
    "fingerprint",
    "for_each_variant",
    "make_datalist",
    "parse_label",
    "prepare_airogs",
    "prepare_chexpert",
    "prepare_crcdx",
    "prepare_folder",
    "prepare_phantoms",
    "read_datalist",
    "read_image",
    "sampling_plan",
    "split_by_patient",
    "training_shares",
    "true_shares",
    "write_datalist",
]
