"""The packages of the wheel; everything else is in pyproject.toml, which cannot put configs/ into the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mambaout_jax*"]), "mambaout_jax.configs"],
    package_dir={"mambaout_jax.configs": "configs"},
)
