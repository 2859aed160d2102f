"""The built-in tasks, and the lookup by name."""

from typing import Any

from mambaout_jax import plugins
from mambaout_jax.checks import nearest_names
from mambaout_jax.models import Model
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.detection.task import Detection
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.segmentation.task import Segmentation

BUILT_IN: tuple[type[Task], ...] = (Classification, Segmentation, Detection)

# The default of `config.task`.
DEFAULT = BUILT_IN[0].name


def get_task(name: str) -> type[Task]:
    """Return the task with a name, built in or from a loaded plugin.

    Raises:
        TaskError: no task or two tasks have the name, or an entry of a plugin's TASKS is not a task.
    """
    known: dict[str, type[Task]] = {}
    for task in (*BUILT_IN, *plugins.provided("TASKS")):
        _check_complete(task)
        if known.setdefault(task.name, task) is not task:
            raise TaskError(
                f"two tasks have the name {task.name!r}, in {known[task.name].__module__} and {task.__module__}"
            )
    if name not in known:
        [near] = nearest_names(name, known)
        raise TaskError(
            f"{name!r} is not a known task; did you mean {near!r}? Known tasks are "
            f"{', '.join(sorted(known))}; config.plugins adds others"
        )
    return known[name]


def find_task(model: Model) -> type[Task]:
    """Return the first built-in task that a model fits, or the default."""
    return next((task for task in BUILT_IN if task.fits(model)), BUILT_IN[0])


def _check_complete(task: Any) -> None:
    if not isinstance(task, type) or not issubclass(task, Task):
        raise TaskError(f"a plugin has {task!r} in TASKS; expected a subclass of mambaout_jax.tasks.api.Task")
    required = "name", "metrics", "loss_terms"
    missing = {name for name in required if not getattr(task, name, None)} | task.__abstractmethods__
    if missing:
        raise TaskError(f"task {task.__name__} of {task.__module__} lacks {', '.join(sorted(missing))}")
