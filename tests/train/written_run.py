"""Helpers that write a workdir with untrained weights, for tests of evaluation and fine-tuning."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.state import TrainState
from mambaout_jax.run.workdir import record_run
from tests.train import tiny

STEP = 7


def write(workdir, class_names, *, config=None, favourites=(), **changes):
    """Write config, environment and a checkpoint of large random weights, whose average differs from the raw ones.

    Args:
        config: the config; None for that of `tiny`.
        favourites: classes that are likelier than others.
        changes: of the config, as dotted keys.
    """
    config = tiny.config(**changes) if config is None else config
    labels = {"class_names": list(class_names)}
    model = config.build_task().build_model(labels)
    raw, ema = (_draw(model, seed, favourites) for seed in (1, 2))
    workdir.mkdir(parents=True, exist_ok=True)
    record_run(workdir, config, {"labels": labels})
    checkpoints = Checkpoints(workdir / "checkpoints")
    average = None if config.optim.ema_decay is None else ema
    checkpoints.save(TrainState(jnp.int32(STEP), raw, average, optax.sgd(1.0).init(raw["params"])), {})
    checkpoints.close()
    return config, model, {"raw": raw, "ema": ema}


def _draw(model, seed, favourites):
    """Draw weights around zero, and scales of norms around one, with NumPy because JAX compiles a program per shape."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scales = leaf.ndim == 1 and path[-1].key == "weight"
        return (scales + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    variables = jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
    last_layer = functools.reduce(operator.getitem, model.classifier, variables["params"])
    last_layer["bias"][np.asarray(favourites, int)] += 4
    return jax.tree.map(jnp.asarray, variables)
