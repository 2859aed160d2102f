"""The choice between operations of XLA and kernels written with Pallas."""

import contextlib
import os

import jax

KERNELS = ("auto", "xla", "pallas")
KERNELS_VARIABLE = "MAMBAOUT_KERNELS"

_chosen = jax.make_user_context("auto")  # a part of the key of jit's cache


def use_kernels(choice: str) -> contextlib.AbstractContextManager[None]:
    """Choose the kernels of the ops with `impl="auto"` that are traced inside.

    Args:
        choice: "xla" for none; "pallas" for those that apply, interpreted on platforms other than TPUs, which is slow;
            "auto" for the choice around it, or else the value of the environment variable MAMBAOUT_KERNELS, or else
            those that apply in programs for TPUs and should be faster there.

    Raises:
        ValueError: the choice is unknown.
    """
    if choice not in KERNELS:
        raise ValueError(f"kernels is {choice!r}; expected one of {', '.join(map(repr, KERNELS))}")
    return _chosen(_chosen.value if choice == "auto" else choice)


def kernels() -> str:
    """Return the choice, one of `KERNELS`.

    Raises:
        ValueError: the environment variable has another value.
    """
    chosen = _chosen.value
    if chosen == "auto":
        chosen = os.environ.get(KERNELS_VARIABLE) or "auto"
    if chosen not in KERNELS:
        raise ValueError(f"{KERNELS_VARIABLE} is {chosen!r}; expected one of {', '.join(map(repr, KERNELS))}")
    return chosen
