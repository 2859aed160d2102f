"""Compare all devices with one, in a step of a detector and in its detections: python -m ... DATA_DIR."""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.tasks.detection.evaluation import detect
from tests.train.segmentation_on_devices import compute_step, largest_difference, stack


def config(data_dir, **changes):
    config = default_config("detection")
    config.num_epochs = 2
    config.batch_size = 4
    config.eval_batch_size = 2
    config.log_every_steps = 1
    config.data.name = "shapes"
    config.data.data_dir = str(data_dir)
    config.data.box = (64, 96)
    config.data.max_objects = 3
    config.loss.update(pre_nms_top_k=40, max_proposals=20, rpn_samples=16, roi_samples=16)
    config.eval.update(pre_nms_top_k=40, max_proposals=20)
    config.model.update(
        name="mask_rcnn_mambaout_femto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), channels=8, box_channels=16,
        anchor_scale=4.0,
    )  # fmt: skip
    config.optim.learning_rate = 1e-2
    config.optim.warmup_epochs = 0
    config.optim.ema_decay = 0.9
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    return parse_config(config)


def main(data_dir):
    parsed = config(data_dir, **{"model.drop_path_rate": 0.1})
    task = parsed.build_task()
    train, validation = task.open_source("train"), task.open_source("validation")
    model = task.build_model(train.labels)
    # Of the size of initial values, so that scores differ between boxes.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) * (x.ndim > 1), model.init(jax.random.key(0))
    )
    rows = len(jax.devices())
    transform = task.train_transform(model, train)
    wide = np.flatnonzero(train.groups == 0)
    records = [train[int(wide[index % len(wide)])] for index in range(rows)]
    batch = stack([transform(record, np.random.default_rng(index)) for index, record in enumerate(records)])
    evaluated = task.eval_transform(model, validation)
    images = stack([evaluated(validation[index % len(validation)]) for index in range(rows)])
    canvases = evaluated.images.canvases.sizes

    def step(variables, batch):
        return compute_step(task, model, variables, batch)

    def find(variables, images):
        return detect(model, variables, images, canvases, task.limits)

    mesh = jax.make_mesh((rows,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    pairs = []
    for program, inputs in ((jax.jit(step), batch), (jax.jit(find), images)):
        expected = jax.device_get(program(variables, inputs))
        with jax.set_mesh(mesh):
            pairs.append((jax.device_get(program(variables, jax.device_put(inputs, split))), expected))
    (of_step, (found, expected)) = pairs
    report = {
        "devices": rows,
        "canvases": len(np.unique(images["canvas"])),
        "step": largest_difference(*of_step),
        "detections": int(expected.valid.sum()),
        "other_classes": int((found.classes != expected.classes)[expected.valid].sum()),
        "boxes": float(np.abs(found.boxes - expected.boxes)[expected.valid].max(initial=0)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
