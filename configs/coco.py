"""Train Mask R-CNN on COCO with the recipe of the MambaOut paper, which is that of Swin in mmdetection ("1x").

python -m mambaout_jax prepare coco --root DIR
python main.py --config=configs/coco.py:mambaout_tiny --workdir=runs/coco --config.init_from=mambaout_tiny.pth

An argument with "_3x" trains for 36 epochs on images of random sizes, as in the published results of VMamba (48.8 and
43.7 % for vmamba_tiny_s1l8_3x).

| argument | parameters | drop path rate | published AP of boxes and masks |
|---|---|---|---|
| mambaout_tiny | 43.13 M | 0.2 | 45.1, 41.0 % |
| mambaout_small | 65.08 M | 0.3 | 47.4, 42.7 % |
| mambaout_base | 99.70 M | 0.6 | 47.4, 43.0 % |
| vmamba_tiny_s1l8 | 50 M | 0.2 | 47.3, 42.7 % |
| vmamba_small_s2l15 | 70 M | 0.3 | 48.7, 43.7 % |
| vmamba_base_s2l15 | 108 M | 0.6 | 49.2, 44.1 % |

Cost and result: not measured here yet. The drop path rates of MambaOut's detectors are not published; those of VMamba's
are used. Without init_from, the backbone is random. RoIAlign has two samples per bin and axis, where mmdetection has
one per cell of the map (config.model.sampling_ratio=0).
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config

# Drop path rate and epsilon of the output norms.
RECIPES = {
    "mambaout_tiny": (0.2, 1e-6),
    "mambaout_small": (0.3, 1e-6),
    "mambaout_base": (0.6, 1e-6),
    "vmamba_tiny_s1l8": (0.2, 1e-5),
    "vmamba_small_s2l15": (0.3, 1e-5),
    "vmamba_base_s2l15": (0.6, 1e-5),
}


def get_config(backbone: str = "mambaout_tiny") -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    backbone, long = backbone.removesuffix("_3x"), backbone.endswith("_3x")
    if backbone not in RECIPES:
        raise ValueError(f"{backbone!r} has no recipe; expected one of {', '.join(RECIPES)}")
    drop_path_rate, eps = RECIPES[backbone]
    config = default_config("detection")
    config.num_epochs = 36 if long else 12
    config.batch_size = 16
    config.eval_batch_size = 16
    config.eval_every_epochs = 1
    config.save_every_steps = 1_000

    config.data.name = "coco2017"
    config.data.multi_scale = long
    config.model.update(name=f"mask_rcnn_{backbone}", drop_path_rate=drop_path_rate, output_norm_eps=eps)

    config.optim.schedule = "drops"
    config.optim.drop_epochs = (27, 33) if long else (8, 11)
    config.optim.learning_rate = 1e-4
    config.optim.warmup_learning_rate = 1e-7
    config.optim.warmup_steps = 1_000
    config.optim.weight_decay = 0.05
    config.optim.decay_of = "all_but_norms"
    return config
