"""Licences of weights."""

from mambaout_jax.models import find_family
from mambaout_jax.weights.checkpoint import TorchCheckpoint


def find_licence(checkpoint: TorchCheckpoint, name: str) -> str | None:
    """Return the SPDX name of the licence of weights, or None if it is unknown.

    It is that of config.json. Without a config.json, the weights are taken to be the published ones of the variant if
    these are restricted.

    Args:
        name: name of the variant.
    """
    if checkpoint.config is not None:
        return checkpoint.config.licence
    published = find_family(name).variants[name].checkpoint
    return published.licence if published is not None and is_restricted(published.licence) else None


def is_restricted(licence: str | None) -> bool:
    """Return whether a licence forbids commercial use."""
    return licence is not None and "-NC" in licence.upper()


def licence_notice(licence: str | None, name: str) -> str | None:
    """Return a sentence about a licence that forbids commercial use; None for any other.

    Args:
        name: name of the variant.
    """
    if not is_restricted(licence):
        return None
    return (
        f"the weights of {name} have the licence {licence}, which forbids commercial use of them and of weights "
        "derived from them"
    )
