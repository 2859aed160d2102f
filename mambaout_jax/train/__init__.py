"""Training: from a config to weights, scores and a page that shows them."""

from mambaout_jax.data import WorkerDiedError
from mambaout_jax.train.config import explain_flags, read_config
from mambaout_jax.train.errors import DivergedError, RunError, StoppedError, is_user_error, tell_ending
from mambaout_jax.train.evaluation import evaluate
from mambaout_jax.train.exchange import export_weights, import_weights
from mambaout_jax.train.inputs import open_batches
from mambaout_jax.train.loop import train
from mambaout_jax.train.report import write_report
from mambaout_jax.train.scores import format_scores
from mambaout_jax.train.workdir import Run, load_run

__all__ = [
    "DivergedError",
    "Run",
    "RunError",
    "StoppedError",
    "WorkerDiedError",
    "evaluate",
    "explain_flags",
    "export_weights",
    "format_scores",
    "import_weights",
    "is_user_error",
    "load_run",
    "open_batches",
    "read_config",
    "tell_ending",
    "train",
    "write_report",
]
