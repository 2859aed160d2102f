"""A workdir that holds weights nobody trained: what evaluation and fine-tuning read of a run."""

import jax
import numpy as np
import optax

from mambaout_jax.train.checkpoint import Checkpoints
from mambaout_jax.train.state import TrainState, init_state
from mambaout_jax.train.workdir import build_model, record_run
from tests.train import tiny

STEP = 7


def write(workdir, class_names, *, favourites=(), **changes):
    """Write config, environment and a checkpoint of large random weights, the average unlike the raw ones.

    Args:
        favourites: classes that are likelier than others.
        changes: of the config, as dotted keys.
    """
    config = tiny.config(**changes)
    model = build_model(config, len(class_names))
    optimizer = optax.sgd(1.0)
    state = init_state(model, optimizer, jax.random.key(0), ema=False)
    raw, ema = (_noisy(state.variables, seed) for seed in (1, 2))
    for variables in (raw, ema):
        head = variables["params"]["head"]["fc"]
        head["bias"] = head["bias"].at[np.asarray(favourites, int)].add(4.0)
    workdir.mkdir(parents=True, exist_ok=True)
    record_run(workdir, config, {"class_names": list(class_names)})
    checkpoints = Checkpoints(workdir / "checkpoints")
    average = None if config.optim.ema_decay is None else ema
    checkpoints.save(TrainState(state.step + STEP, raw, average, optimizer.init(raw["params"])), {}, None)
    checkpoints.close()
    return config, model, {"raw": raw, "ema": ema}


def _noisy(variables, seed):
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef, [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )
