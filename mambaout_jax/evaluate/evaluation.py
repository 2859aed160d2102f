"""Score weights on the validation split, and on the sets beside it: every image once."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from mambaout_jax import distributed
from mambaout_jax.data import EvalTransform, ImageSource, eval_batches, open_source
from mambaout_jax.data.eval_sets import class_mask_of, open_eval_set
from mambaout_jax.evaluate.predictions import Predictions, join_hosts, top_classes
from mambaout_jax.evaluate.step import make_eval_step
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.run.batch import check_eval_batch
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import EVALUATION, KEYS, check_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import build_model, is_workdir, load_config, load_environment, open_workdir

Scores = dict[str, float]


def build_eval_transform(config: ConfigDict, model: Model, *, exif_orientation: bool = False) -> EvalTransform:
    """Build what is done to an image that is evaluated: what the model wants, unless the config wants another crop."""
    spec = model.input_spec
    crop_pct, crop_mode = config.data.crop_pct, config.data.crop_mode
    return EvalTransform(
        size=spec.size,
        channels=model.in_chans,
        crop_pct=spec.crop_pct if crop_pct is None else crop_pct,
        crop_mode=spec.crop_mode if crop_mode is None else crop_mode,
        interpolation=spec.interpolation,
        exif_orientation=exif_orientation,
    )


class Evaluation(NamedTuple):
    """Hold what one pass over a split gave.

    Args:
        scores: by the weights' name {"top1", "top5": percent, "loss", "count"}.
        predictions: None where none were asked for, or where an image was left out: row i would not be image i.
        skipped: records that do not decode.
        unlabelled: images without a label.
    """

    scores: dict[str, Scores]
    predictions: Predictions | None
    skipped: int
    unlabelled: int


class Evaluator:
    """Score variables on a split, with one compiled step for all of them."""

    def __init__(
        self, config: ConfigDict, model: Model, source: ImageSource, *, sharding: NamedSharding, stop: StopSignals
    ):
        check_eval_batch(config.eval_batch_size, sharding.mesh.size)
        self._config = config
        self._model = model
        self._view = build_eval_transform(config, model)
        self._sharding = sharding
        self._stop = stop
        self._steps: dict[int, Callable[..., Any]] = {}
        self._take(source)

    def on(self, source: ImageSource) -> "Evaluator":
        """Give an evaluator for another split; it shares what is compiled already."""
        other = copy.copy(self)
        other._take(source)
        return other

    def _take(self, source: ImageSource) -> None:
        self._source = source
        ranked = class_mask_of(source)
        self._num_ranked = int(ranked.sum())
        self._ranked = distributed.put_global(ranked, distributed.replicated(self._sharding.mesh))
        if source.max_labels not in self._steps:
            self._steps[source.max_labels] = self._compile(source.max_labels)

    def _compile(self, max_labels: int) -> Callable[..., Any]:
        model, batch_size, sharding = self._model, self._config.eval_batch_size, self._sharding
        variables = distributed.sharded_shapes(model.init, jax.random.key(0), placed=sharding.mesh)
        batch = {
            "image": jax.ShapeDtypeStruct((batch_size, *self._view.size, model.in_chans), np.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct((batch_size, max_labels), np.int32, sharding=sharding),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.bool_, sharding=sharding),
        }
        placed = distributed.replicated(sharding.mesh), sharding
        step = jax.jit(make_eval_step(model), out_shardings=placed, compiler_options=cpu_compiler_options())
        return self._stop.interruptible(step.lower(variables, batch, self._ranked).compile)

    def describe(self) -> dict[str, Any]:
        """Tell what is scored, and how it is looked at."""
        return {
            "dataset": self._source.name,
            "split": self._source.split,
            "input_size": list(self._view.size),
            "crop_pct": self._view.crop_pct,
            "crop_mode": self._view.crop_mode,
            "num_classes": self._model.num_classes,
            "class_mask_of": self._num_ranked,
        }

    def __call__(self, weights: dict[str, Any], predict: str | None = None) -> Evaluation:
        """Score several sets of weights in one pass.

        Images without a label and records that were skipped are not counted.

        Args:
            weights: variables by name.
            predict: the name of those whose predictions are to be kept.

        Raises:
            StoppedError: a signal came.
        """
        sums: dict[str, list[Any]] = {name: [] for name in weights}
        kept: list[tuple[np.ndarray, ...]] = []
        skipped: list[int] = []
        step = self._steps[self._source.max_labels]
        for batch in distributed.prefetch(self._host_batches(skipped), self._sharding):
            self._stop.check()
            for name, variables in weights.items():
                batch_sums, logits = step(variables, batch, self._ranked)
                sums[name].append(batch_sums)
                if name == predict:
                    kept.append(top_classes(batch, logits))
        scores = {name: _scores(jax.device_get(batches)) for name, batches in sums.items()}
        left_out = len(self._source) - next(iter(scores.values()))["count"]
        skipped = sum(map(int, distributed.allgather_strings("counting skipped records", str(sum(skipped)))))
        whole = kept and not left_out
        return Evaluation(
            scores,
            join_hosts(kept) if whole else None,
            skipped=skipped,
            unlabelled=left_out - skipped,
        )

    def _host_batches(self, skipped: list[int]) -> Iterable[dict[str, Any]]:
        batches = eval_batches(
            self._source,
            self._view,
            batch_size=self._config.eval_batch_size,
            num_workers=self._config.data.num_workers,
            on_bad_record=self._config.data.on_bad_record,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )
        for batch in batches:
            skipped.append(int(batch.pop("skipped").sum()))
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


def evaluate(config: ConfigDict | None, path: epath.PathLike) -> dict[str, Any]:
    """Score weights on each set that the config names.

    They are those of the newest checkpoint of the workdir, raw and averaged; where it has none, those that
    `config.init_from` names.

    Args:
        config: None for the workdir's own.

    Returns:
        Under "weights" what they are, and under "sets" for each set, the validation split first: what it is, how its
        images are looked at, how many of them were left out, and its scores by weights.

    Raises:
        RunError, ConvertError, DataError: the config, the workdir, the weights or a set does not fit; told before
            anything is scored.
        StoppedError: a signal came.
    """
    workdir = open_workdir(path)
    if config is None:
        config = _own_config(workdir)
    else:
        check_config(config)
    sources = _open_sources(config)
    mesh = distributed.make_mesh(config.mesh.fsdp)
    with StopSignals() as stop, jax.set_mesh(mesh):
        if is_workdir(workdir) or config.get("init_from") is None:
            model, weights, origin = _restore(config, workdir, sources, mesh)
        else:
            model, weights, origin = _load_given(config, sources, mesh)
        evaluator = Evaluator(config, model, sources[0], sharding=distributed.batch_sharding(mesh), stop=stop)
        evaluators = (evaluator, *map(evaluator.on, sources[1:]))
        return {"weights": origin, "sets": [_score_set(evaluator, weights) for evaluator in evaluators]}


def _own_config(workdir: epath.Path) -> ConfigDict:
    config = load_config(workdir)
    imported = "imported_from" in load_environment(workdir)
    if imported and config.data.name is None:
        raise RunError(
            f"{workdir} holds imported weights and names no dataset; give the --config of an experiment that does, "
            "with this model"
        )
    check_config(config, EVALUATION if imported else KEYS)
    return config


def _restore(
    config: ConfigDict, workdir: epath.Path, sources: Sequence[ImageSource], mesh: Mesh
) -> tuple[Model, dict[str, Any], str]:
    environment = load_environment(workdir)
    for source in sources:
        _check_classes(source, environment["num_classes"], environment["class_names"])
    model = build_model(config, environment["num_classes"])
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    imported = environment.get("imported_from")
    kept = ["raw"] if imported or config.optim.ema_decay is None else ["raw", "ema"]
    abstract = distributed.sharded_shapes(model.init, jax.random.key(0), placed=mesh)
    step, weights = checkpoints.restore_variables(abstract, kept)
    checkpoints.close()
    return model, weights, f"imported from {imported}" if imported else f"step {step}"


def _load_given(config: ConfigDict, sources: Sequence[ImageSource], mesh: Mesh) -> tuple[Model, dict[str, Any], str]:
    if config.init_head == "new":
        raise RunError(
            "config.init_head is 'new', and a new classifier has learnt nothing to evaluate; set it to 'keep'"
        )
    model = build_model(config, len(sources[0].class_names))
    pretrained = load_pretrained_for(config.init_from, model)
    for source in sources:
        _check_classes(source, pretrained.num_classes, pretrained.class_names)
    placed = distributed.shardings(distributed.sharded_shapes(model.init, jax.random.key(0), placed=mesh))
    return model, {"raw": distributed.put_global(pretrained.variables, placed)}, pretrained.description


def _open_sources(config: ConfigDict) -> list[ImageSource]:
    data = config.data
    names = filter(None, map(str.strip, (data.eval_sets or "").split(",")))
    sources = [
        open_source(data.name, data.validation_split, data.data_dir),
        *(open_eval_set(name, data.data_dir) for name in names),
    ]
    return list({source.fingerprint: source for source in sources}.values())  # each once


def _score_set(evaluator: Evaluator, weights: dict[str, Any]) -> dict[str, Any]:
    scored = evaluator(weights)
    counts = {"skipped": scored.skipped, "unlabelled": scored.unlabelled}
    return {**evaluator.describe(), **counts, **scored.scores}


def _check_classes(source: ImageSource, num_classes: int, class_names: Sequence[str] | None) -> None:
    if len(source.class_names) != num_classes:
        raise RunError(
            f"dataset {source.name!r} has {len(source.class_names)} classes where the model has {num_classes}; "
            "a set with the model's own classes is expected"
        )
    # Of weights that came without the names of their classes only the number can be held against a set.
    for index, (theirs, ours) in enumerate(zip(source.class_names, class_names or source.class_names, strict=True)):
        if theirs != ours:
            raise RunError(
                f"class {index} of dataset {source.name!r} is {theirs!r} where the model has {ours!r}; a set with the "
                "model's own classes is expected"
            )
