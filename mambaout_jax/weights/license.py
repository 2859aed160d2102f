"""Licenses of weights."""

from mambaout_jax.models import find_family
from mambaout_jax.weights.checkpoint import TorchCheckpoint


def find_license(checkpoint: TorchCheckpoint, name: str) -> str | None:
    """Return the SPDX name of the license of weights, or None if it is unknown.

    It is that of config.json. Without a config.json, the weights are taken to be the published ones of the variant if
    these are restricted.

    Args:
        name: name of the variant.
    """
    if checkpoint.config is not None:
        return checkpoint.config.license
    published = find_family(name).variants[name].checkpoint
    return published.license if published is not None and is_restricted(published.license) else None


def is_restricted(license: str | None) -> bool:
    """Return whether a license forbids commercial use."""
    return license is not None and "-NC" in license.upper()


def license_notice(license: str | None, name: str) -> str | None:
    """Return a sentence about a license that forbids commercial use; None for any other.

    Args:
        name: name of the variant.
    """
    if not is_restricted(license):
        return None
    return (
        f"the weights of {name} have the license {license}, which forbids commercial use of them and of weights "
        "derived from them"
    )
