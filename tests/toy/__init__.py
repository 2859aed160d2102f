"""A family and a task of another package, as hard as detection: a model of two stages that finds bright spots.

`config.plugins = ("tests.toy",)` is all that the program is told of them.
"""

from tests.toy.model import FAMILY
from tests.toy.task import Spots

FAMILIES = (FAMILY,)
TASKS = (Spots,)
