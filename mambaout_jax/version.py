"""The version of this package."""

import tomllib
from importlib import metadata
from pathlib import Path


def find_version() -> str:
    """Return the version in the pyproject.toml of a checkout, or else that of the installed package."""
    package = Path(__file__).parent
    file = package.parent / "pyproject.toml"
    # Next to an installed package, it is a file of another project.
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.exists() else {}
    return project["version"] if project.get("name") == package.name else metadata.version(package.name)
