"""Devices without hardware: tensors that have a device but no values, and a watch over what crosses to the host."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

SEEN = ("medfusion_monai/", "monai/handlers/", "ignite/")
"""Packages whose functions are named; others, such as torch and MONAI's metrics, count as their callers."""
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Crossing(AssertionError):
    """A value went from device to host, from host to device, or both were mixed, where nothing allows it."""


class Watch(TorchDispatchMode):
    """Counts what crosses between host and device, and raises ``Crossing`` where it may not.

    A read makes the host wait for a GPU, and so does an upload that is not pinned and asynchronous.

    Args:
        reads: functions that may read, as ``file.py:function``, with the reason.
        uploads: functions whose uploads may block, likewise.
        device: type of the device.
        value: what every read returns, as there are no values.
    """

    def __init__(self, reads, uploads, device="meta", value=1):
        super().__init__()
        self.allowed_reads, self.allowed_uploads, self.device, self.value = reads, uploads, device, value
        self.reads, self.uploads = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        there = [tensor for tensor in tensors if tensor.device.type == self.device]
        target = torch.device(kwargs.get("device") or "cpu").type
        if not there and target != self.device:
            with unset_fake_temporarily():  # what is on the host has values
                return function(*args, **kwargs)
        if function in COPIES:
            return self._copy(function, args, kwargs, tensors)
        if function in READS:
            self._note(self.reads, self.allowed_reads, f"{function} reads from the device")
            return _as(there[0].dtype, self.value)
        if function in INDEXED and any(tensor.dtype is torch.bool for tensor in _tensors(args[1])):
            raise Crossing(f"{function} by a mask reads how many values it has in {_caller()}")
        if any(tensor.device.type == "cpu" and tensor.ndim for tensor in tensors):
            raise Crossing(f"{function} mixes tensors of the host with those of the device in {_caller()}")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != self.device:
            raise Crossing(f"{function} draws for the device from a generator of the host in {_caller()}")
        return function(*args, **kwargs)

    def _copy(self, function, args, kwargs, tensors):
        """A copy within a device, to the device or to the host."""
        source = tensors[-1]
        target = torch.device(kwargs.get("device") or tensors[0].device).type
        if source.device.type == self.device and target == "cpu":
            self._note(self.reads, self.allowed_reads, f"{function} copies to the host")
            with unset_fake_temporarily():
                copy = torch.full(source.shape, self.value, dtype=kwargs.get("dtype") or source.dtype)
                return copy if function is aten._to_copy.default else args[0].copy_(copy)
        if source.device.type == "cpu" and target == self.device and not _is_ready(source, args, kwargs):
            self._note(self.uploads, self.allowed_uploads, f"{function} uploads and blocks")
        return function(*args, **kwargs)

    def _note(self, counter, allowed, what):
        caller = _caller()
        if caller not in allowed:
            raise Crossing(f"{what} in {caller}")
        counter[caller] += 1


def _is_ready(source, args, kwargs):
    """Whether an upload is from pinned memory and asynchronous, so that the host need not wait."""
    asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    return source.numel() == 0 or bool(asynchronous and getattr(source, "is_pinned_here", False))


def _tensors(values):
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _as(dtype, value):
    return bool(value) if dtype is torch.bool else float(value) if dtype.is_floating_point else value


def _caller():
    """The nearest function of a package in ``SEEN``, as ``file.py:function``; comprehensions are part of theirs."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name.startswith("<"):
            frame = frame.f_back
            continue
        path = Path(frame.f_code.co_filename).as_posix()
        for package in SEEN:
            if f"/{package}" in path:
                return f"{package}{path.rpartition(f'/{package}')[2]}:{frame.f_code.co_name}".removeprefix(SEEN[0])
        frame = frame.f_back
    return "a test"


@contextmanager
def fake_cuda(*modules, reads=(), uploads=(), value=1):
    """Move modules to ``cuda``, which need not exist, and watch what runs there.

    They get new, fake weights. There is no backward pass, and autocast has no effect. What is on the host has its
    values.
    """
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(torch.Tensor, "pin_memory", pinned),
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.no_grad(),
        ):
            for module in modules:
                module.to("cuda")
            with Watch(reads, uploads, "cuda", value) as watch:
                yield watch
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def pinned(tensor):
    """Stand in for ``Tensor.pin_memory``, which needs CUDA."""
    copy = tensor.detach()
    copy.is_pinned_here = True
    return copy
