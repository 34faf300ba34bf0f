"""Takes the weights out of a Lightning checkpoint without running anything that is pickled in it."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from medfusion_monai.weights.state_dict import WeightsError

STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Names of torch's storages in a pickle, and what they hold."""


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read ``state_dict`` of a Lightning checkpoint, or all of a ``.safetensors`` file, onto the CPU.

    Other entries (hyperparameters, callbacks, optimizers) are neither run nor loaded: each class or function that
    they name becomes a placeholder without effect.

    Raises:
        WeightsError: if the file is missing, of another format, damaged, or holds no ``state_dict``.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # late: needed for such files only

            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise WeightsError(
                f"{path} is not a zip file: no checkpoint, or one of torch before 1.6; "
                "where you trust it, load it with torch and save it again"
            )
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is no torch checkpoint: the zip file holds {archive.namelist()[:5]}")
    root = pickles[0].removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder").decode() != sys.byteorder:
        raise WeightsError(f"{path} was written on a machine of another byte order")
    with archive.open(pickles[0]) as file:
        content = _InertUnpickler(file).load()
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        found = f"the entries {list(content)[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} holds no 'state_dict' but {found}")
    storages: dict[str, Tensor] = {}
    return {
        str(name): value.read(archive, root, storages) if isinstance(value, _StoredTensor) else value
        for name, value in content["state_dict"].items()
    }


class _Placeholder:
    """Stands for any class or function: constructed, called and filled without effect."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _StoredTensor:
    """Where a tensor lies in the archive; stands for torch's function that rebuilds it."""

    def __init__(self, storage: tuple[torch.dtype, str], offset: int, size: Any, stride: Any, *rest: Any) -> None:
        self.dtype, self.key = storage
        self.offset, self.size, self.stride = offset, size, stride

    def __setstate__(self, *state: Any) -> None:
        """Ignore state: nothing in a pickle may change this class."""

    def read(self, archive: zipfile.ZipFile, root: str, storages: dict[str, Tensor]) -> Tensor:
        """Read the values; ``storages`` holds what was read before."""
        if self.key not in storages:
            values = bytearray(archive.read(f"{root}data/{self.key}"))
            storages[self.key] = torch.frombuffer(values, dtype=self.dtype) if values else torch.empty(0)
        return storages[self.key].as_strided(self.size, self.stride, self.offset)


class _Parameter:
    """Stands for torch's function that wraps a rebuilt tensor as a parameter."""

    def __new__(cls, data: Any, *rest: Any) -> Any:
        return data

    def __setstate__(self, *state: Any) -> None:
        """Ignore state: nothing in a pickle may change this class."""


class _InertUnpickler(pickle.Unpickler):
    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _StoredTensor,
        ("torch._utils", "_rebuild_parameter"): _Parameter,
        **{("torch", name): dtype for name, dtype in STORAGE_TYPES.items()},
        **{("torch.cuda", name): dtype for name, dtype in STORAGE_TYPES.items()},
    }

    def __init__(self, file: BinaryIO | Any) -> None:
        super().__init__(file, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        return self.known.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype):
            dtype = torch.uint8  # an untyped storage, which no weight of a published network has
        return dtype, str(key)
