"""What the package provides; `config.plugins = ("tests.toy.plugin",)` or an entry point names this module."""

from tests.toy.model import FAMILY
from tests.toy.task import Spots

FAMILIES = (FAMILY,)
TASKS = (Spots,)
