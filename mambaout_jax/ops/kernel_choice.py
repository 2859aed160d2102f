"""The choice between operations of XLA and kernels written with Pallas."""

import contextlib
import os

import jax

KERNELS = ("auto", "xla", "pallas")
VARIABLE = "MAMBAOUT_KERNELS"

_chosen = jax.make_user_context("auto")  # a part of the key of jit's cache


def use_kernels(choice: str) -> contextlib.AbstractContextManager[None]:
    """Choose the kernels of the ops with `impl="auto"` that are traced inside.

    Args:
        choice: "xla" for none; "pallas" for those that apply, interpreted on other platforms than TPUs, which is slow;
            "auto" for those that apply in programs for TPUs and should be faster there, or for the value of the
            environment variable MAMBAOUT_KERNELS.
    """
    return _chosen(choice)


def kernels() -> str:
    """Return the choice, one of `KERNELS`.

    Raises:
        ValueError: the environment variable has another value.
    """
    chosen = _chosen.value
    if chosen == "auto":
        chosen = os.environ.get(VARIABLE) or "auto"
    if chosen not in KERNELS:
        raise ValueError(f"{VARIABLE} is {chosen!r}; {', '.join(KERNELS)} is expected")
    return chosen
