"""Score weights on the validation split: every image once."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from mambaout_jax import parallel
from mambaout_jax.data import EvalTransform, ImageSource, eval_batches, open_source
from mambaout_jax.models import Model
from mambaout_jax.train.checkpoint import Checkpoints
from mambaout_jax.train.config import check_config
from mambaout_jax.train.errors import RunError
from mambaout_jax.train.signals import StopSignals
from mambaout_jax.train.step import make_eval_step
from mambaout_jax.train.workdir import build_model, load_config, open_workdir

Scores = dict[str, float]


class Predictions(NamedTuple):
    """Hold what a model said of each image, in the split's order: the five (or all) likeliest classes."""

    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def save(self, path: epath.Path) -> None:
        """Write them as an npz file."""
        with path.open("wb") as file:
            np.savez(file, **self._asdict())


class Evaluator:
    """Score variables on a split, with one compiled step for all of them."""

    def __init__(
        self, config: ConfigDict, model: Model, source: ImageSource, *, sharding: NamedSharding, stop: StopSignals
    ):
        spec, batch_size = model.input_spec, config.eval_batch_size
        if batch_size % sharding.mesh.size:
            raise RunError(
                f"config.eval_batch_size is {batch_size}; a multiple of the {sharding.mesh.size} devices is expected"
            )
        self.skipped = 0
        self._batches: Callable[[], Iterable[dict[str, Any]]] = lambda: eval_batches(
            source,
            EvalTransform(
                size=spec.size,
                channels=model.in_chans,
                crop_pct=spec.crop_pct,
                crop_mode=spec.crop_mode,
                interpolation=spec.interpolation,
            ),
            batch_size=batch_size,
            num_workers=config.data.num_workers,
            bad_records=config.data.bad_records,
        )
        self._sharding = sharding
        self._stop = stop
        variables = parallel.abstract(model.init, jax.random.key(0), sharding=parallel.replicated(sharding.mesh))
        batch = {
            "image": jax.ShapeDtypeStruct((batch_size, *spec.size, model.in_chans), np.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=sharding),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.bool_, sharding=sharding),
        }
        lowered = jax.jit(make_eval_step(model)).lower(variables, batch)
        self._step = stop.interruptible(lowered.compile)

    def __call__(
        self, weights: dict[str, Any], predict: str | None = None
    ) -> tuple[dict[str, Scores], Predictions | None]:
        """Score several sets of weights in one pass.

        Args:
            weights: variables by name.
            predict: the name of those whose predictions are to be kept.

        Returns:
            By name {"top1", "top5": percent, "loss", "count"}, and the predictions; None where a record was
            skipped, since row i would no longer be image i.

        Raises:
            StoppedError: a signal came.
        """
        sums: dict[str, list[Any]] = {name: [] for name in weights}
        kept: list[tuple[np.ndarray, ...]] = []
        self.skipped = 0
        for batch in parallel.prefetch(self._host_batches(), self._sharding):
            self._stop.check()
            for name, variables in weights.items():
                batch_sums, logits = self._step(variables, batch)
                sums[name].append(batch_sums)
                if name == predict:
                    kept.append(_top_classes(*jax.device_get((batch["label"], batch["mask"], logits))))
        scores = {name: _scores(jax.device_get(batches)) for name, batches in sums.items()}
        whole = kept and not self.skipped
        return scores, Predictions(*map(np.concatenate, zip(*kept, strict=True))) if whole else None

    def _host_batches(self) -> Iterable[dict[str, Any]]:
        for batch in self._batches():
            self.skipped += int(batch.pop("skipped").sum())
            yield batch


def _scores(batches: list[dict[str, Any]]) -> Scores:
    total = {name: float(sum(batch[name] for batch in batches)) for name in batches[0]}
    count = int(total["count"])
    return {
        "top1": 100.0 * total["top1"] / max(count, 1),
        "top5": 100.0 * total["top5"] / max(count, 1),
        "loss": total["loss"] / max(count, 1),
        "count": count,
    }


def _top_classes(labels: np.ndarray, mask: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    labels, logits = labels[mask], logits[mask].astype(np.float64)
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = np.take_along_axis(odds / odds.sum(axis=1, keepdims=True), classes, axis=1)
    return labels.astype(np.int32), classes.astype(np.int32), probabilities.astype(np.float32)


def format_scores(record: dict[str, Any]) -> str:
    """Lay out the scores of a record as a table."""
    rows = [f"{'weights':8} {'top-1 %':>8} {'top-5 %':>8} {'loss':>8} {'images':>8}"]
    rows += [
        f"{name:8} {row['top1']:8.2f} {row['top5']:8.2f} {row['loss']:8.4f} {row['count']:8,}"
        for name in ("raw", "ema")
        if (row := record.get(name))
    ]
    if record.get("skipped"):
        rows.append(f"{record['skipped']} records do not decode and were left out")
    return "\n".join(rows)


def evaluate(config: ConfigDict | None, path: epath.PathLike) -> dict[str, Any]:
    """Score the newest checkpoint of a workdir, raw and averaged weights.

    Args:
        config: None for the workdir's own.

    Returns:
        Scores by weights, and the step.

    Raises:
        RunError: the config or the workdir does not fit.
        StoppedError: a signal came.
    """
    workdir = open_workdir(path)
    config = config or load_config(workdir)
    check_config(config)
    source = open_source(config.data.name, config.data.validation_split, config.data.data_dir)
    model = build_model(config, len(source.class_names))
    mesh = parallel.make_mesh()
    abstract = parallel.abstract(model.init, jax.random.key(0), sharding=parallel.replicated(mesh))
    with StopSignals() as stop, jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
        kept = ["raw"] if config.optim.ema_decay is None else ["raw", "ema"]
        step, weights = checkpoints.restore_variables(abstract, kept)
        checkpoints.close()
        evaluator = Evaluator(config, model, source, sharding=parallel.batch_sharding(mesh), stop=stop)
        scores, _ = evaluator(weights)
    return {"step": step, "skipped": evaluator.skipped, **scores}
