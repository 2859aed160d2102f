"""Traversal of jaxprs."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yield the jaxprs in the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple) else (value,):
            item = item.jaxpr if isinstance(item, ClosedJaxpr) else item
            if isinstance(item, Jaxpr):
                yield item
