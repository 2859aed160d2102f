"""Compare all devices with one, in a step of a segmentation and in its label maps: python -m ... DATA_DIR."""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.tasks.segmentation.evaluation import IMAGE_KEYS, segment


def config(data_dir, **changes):
    config = default_config("segmentation")
    config.num_epochs = 2
    config.batch_size = 8
    config.eval_batch_size = 2
    config.log_every_steps = 1
    config.data.name = "digit_scenes"
    config.data.data_dir = str(data_dir)
    config.data.box = (48, 64)
    config.model.update(
        name="upernet_mambaout_femto", img_size=32, depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), channels=8,
        auxiliary_channels=8,
    )  # fmt: skip
    config.optim.learning_rate = 1e-2
    config.optim.warmup_epochs = 0
    config.optim.ema_decay = 0.9
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    return parse_config(config)


def stack(examples):
    return jax.tree.map(lambda *rows: jnp.stack(rows), *examples)


def compute_step(task, model, variables, batch):
    """Return the loss, the running statistics and the gradient."""

    def loss(params, batch):
        prepared = task.prepare_batch(model, batch, jax.random.key(0))
        terms, batch_stats = task.train_loss(model, {**variables, "params": params}, prepared, jax.random.key(1))
        return sum(term.numerator / term.denominator for term in terms.values()), batch_stats

    return jax.value_and_grad(loss, has_aux=True)(variables["params"], batch)


def largest_difference(found, expected):
    """Return the largest difference relative to the largest value of its array, of which tiny ones are noise."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-3)) for x, y in pairs)


def main(data_dir):
    parsed = config(data_dir, **{"model.drop_path_rate": 0.1, "data.box": (32, 96)})
    task = parsed.build_task()
    train, validation = task.open_source("train"), task.open_source("validation")
    model = task.build_model(train.labels)
    # Of the size of initial values, so that classes differ between pixels.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) * (x.ndim > 1), model.init(jax.random.key(0))
    )
    rows = len(jax.devices())
    transform = task.train_transform(model, train)
    batch = stack([transform(train[index], np.random.default_rng(index)) for index in range(rows)])
    evaluated = task.eval_transform(model, validation)
    images = stack([evaluated(validation[index % len(validation)]) for index in range(rows)])
    images = {key: images[key] for key in IMAGE_KEYS}
    programs = (
        (jax.jit(partial(compute_step, task, model)), batch),
        (jax.jit(partial(segment, model, canvases=evaluated.canvases)), images),
    )
    mesh = jax.make_mesh((rows,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    pairs = []
    for program, inputs in programs:
        expected = jax.device_get(program(variables, inputs))
        with jax.set_mesh(mesh):
            pairs.append((jax.device_get(program(variables, jax.device_put(inputs, split))), expected))
    (step, labels) = pairs
    assert len(np.unique(labels[1])) > 2
    report = {
        "devices": rows,
        "shapes": len(np.unique(images["shape"])),
        "step": largest_difference(*step),
        "other_labels": int((labels[0] != labels[1]).sum()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
