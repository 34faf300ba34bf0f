"""Modules that record their constructor arguments, so that weights files can describe their network."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medfusion_monai.runtime.values import differences_of, flat_settings

TYPE = "type"
"""Key of the class name in a description; the other keys are its arguments."""


class DescriptionError(ValueError):
    """A description of a network that cannot be built, or a network that cannot be described."""


class Described:
    """Mixin that records the constructor's arguments, including defaults; list it before ``nn.Module``.

    A class that mixes this in can be described by :func:`describe` and, if it is :func:`describable`, built again by
    :func:`build`. Every argument that changes what the module computes is part of the description.

    Attributes:
        built_with: the arguments by name.
        not_described: arguments that change how a module computes, but not what.
    """

    built_with: dict[str, Any]
    not_described: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments; a copy is created without any and gets those of the original with its state."""
        module = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(module, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        module.__dict__["built_with"] = arguments  # bypasses nn.Module, which would register networks among them
        return module


KINDS: dict[str, type] = {}
"""Classes that a description may name. Weights are data: no other name is ever imported."""


def describable(kind: type) -> type:
    """Register a class for descriptions; a decorator."""
    KINDS[kind.__name__] = kind
    return kind


def describe(module: nn.Module) -> dict[str, Any]:
    """Return a module's class and arguments, modules among them included, as JSON-compatible data.

    An unregistered class is described only by its name, and :func:`build` refuses it.
    """
    if KINDS.get(type(module).__name__) is not type(module) or not isinstance(module, Described):
        return {TYPE: f"{type(module).__module__}.{type(module).__qualname__}"}
    arguments = {name: _plain(value) for name, value in module.built_with.items() if name not in module.not_described}
    return {TYPE: type(module).__name__, **arguments}


def description_digest(*modules: nn.Module) -> str:
    """Return 16 digits that identify classes and arguments of modules; weights do not matter."""
    text = json.dumps([describe(module) for module in modules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_other_arguments(module: nn.Module, description: Mapping[str, Any], name: str) -> None:
    """Raise if a module was built with other arguments than those described; one of another class is not compared.

    Args:
        module: given by a user.
        description: of the module that the weights were trained with.
        name: of the module, for the message.

    Raises:
        DescriptionError: with each argument that differs, and both values.
    """
    own = describe(module)
    if own[TYPE] != description.get(TYPE):
        return
    changes = differences_of(flat_settings(description), flat_settings(own))
    if changes:
        raise DescriptionError(f"{name} was trained with other arguments: {'; '.join(changes)}")


def build(description: Mapping[str, Any]) -> Any:
    """Build the module that a description names, with random weights.

    Raises:
        DescriptionError: for an unregistered class, or arguments that it does not accept.
    """
    name = description.get(TYPE)
    if name not in KINDS:
        raise DescriptionError(
            f"{name!r} is a custom network, which cannot be built from a description: give network_def in a config "
            "(or network= in Python)"
        )
    arguments = {key: build(value) if _is_description(value) else value for key, value in description.items()}
    del arguments[TYPE]
    try:
        return KINDS[name](**arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DescriptionError(f"{name} cannot be built with {arguments}: {error}") from error


def _is_description(value: Any) -> bool:
    return isinstance(value, Mapping) and TYPE in value


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
