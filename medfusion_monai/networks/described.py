"""Modules that know the arguments they were built with, so that weights can say which network they are of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

TYPE = "type"
"""Key of a description that holds the name of the class; the others are its arguments."""


class DescriptionError(ValueError):
    """A description of a network that cannot be built, or a network that cannot be described."""


class Described:
    """Mixin, before ``nn.Module`` among the bases: remembers the arguments of the constructor, defaults included.

    A class that mixes this in can be described by :func:`describe` and, if it is :func:`describable`, built again by
    :func:`build`. Every argument that changes what the module computes is part of the description.

    Attributes:
        built_with: the arguments by name.
        not_described: arguments that change how a module computes, but not what.
    """

    built_with: dict[str, Any]
    not_described: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments; a copy is made without any and gets those of its original with the rest of its state."""
        module = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(module, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        module.__dict__["built_with"] = arguments  # past nn.Module, which would register a network among them
        return module


KINDS: dict[str, type] = {}
"""Classes that a description may name. Weights are data: a name that is not here is never imported."""


def describable(kind: type) -> type:
    """Let descriptions name a class; a decorator."""
    KINDS[kind.__name__] = kind
    return kind


def describe(module: nn.Module) -> dict[str, Any]:
    """Return a module's class and arguments as plain data that JSON can hold; modules within it likewise.

    A module of another class is described by its name alone, and :func:`build` refuses it.
    """
    if KINDS.get(type(module).__name__) is not type(module) or not isinstance(module, Described):
        return {TYPE: f"{type(module).__module__}.{type(module).__qualname__}"}
    arguments = {name: _plain(value) for name, value in module.built_with.items() if name not in module.not_described}
    return {TYPE: type(module).__name__, **arguments}


def build(description: Mapping[str, Any]) -> Any:
    """Build the module that a description names, with random weights.

    Raises:
        DescriptionError: for a class that is not known here, or arguments that it does not take.
    """
    name = description.get(TYPE)
    if name not in KINDS:
        raise DescriptionError(
            f"{name!r} is a network of its user's own, which cannot be built from a description: give network_def in a "
            "config (or network= in Python)"
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
