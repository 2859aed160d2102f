"""Profiler traces of selected steps."""

import jax
from etils import epath


class StepTrace:
    """A trace of the steps [start, start + num_steps), in the format of TensorBoard's profile plugin.

    Args:
        start: None for no trace.
    """

    def __init__(self, directory: epath.Path, start: int | None, num_steps: int):
        self._directory = directory
        self._window = None if start is None else range(start, start + num_steps)
        self._running = False

    def before(self, step: int) -> None:
        """Start or stop the trace if it begins or ends at this step."""
        inside = self._window is not None and step in self._window
        if inside and not self._running:
            jax.profiler.start_trace(self._directory)
            self._running = True
        elif not inside:
            self.close()

    def close(self) -> None:
        """Stop the trace if it is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
