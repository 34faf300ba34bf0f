"""Reading what is needed next while something else is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(read: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Value]:
    """Yield ``read(key)`` of each key in order, while a thread reads the next one: two values are in memory.

    Example:
        >>> list(read_ahead(str.upper, ["a", "b"]))
        ['A', 'B']

    Raises:
        Exception: what ``read`` raises, when it is the turn of its key.
    """
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        ahead = None
        for key in keys:
            value, ahead = ahead, thread.submit(read, key)
            if value is not None:
                yield value.result()
        if ahead is not None:
            yield ahead.result()
