"""Fine-tune a trained model on another dataset, or at another size: for example on a folder of your own photographs.

python -m mambaout_jax prepare folder photos
python main.py --config=configs/finetune.py --workdir=runs/photos --config.init_from=runs/mambaout_femto \
    --config.data.name=photos

`photos/train` and `photos/val` contain one folder of images per class; if there is only `photos/CLASS`, the first
command prints flags that use a tenth of the images for validation.
`init_from` is the workdir of a run of the same `model.name`, or
weights from PyTorch, such as hf-hub:timm/mambaout_femto.in1k (docs/convert.md). The classifier is initialized
randomly. If the classes are the same, as for ImageNet at a larger size, add --config.init_head=keep
(--config.data.name=imagenet2012 --config.model.img_size=384 --config.batch_size=512).

Learning rate, epochs, weight decay, no warm-up, no mixing and a higher drop path rate than in pretraining follow
ConvNeXt (Liu et al., A ConvNet for the 2020s, 2022, fine-tuning at 384 px). ConvNeXt also uses a batch of 512, which is
smaller here because such datasets are small, and layer-wise learning rate decay, which optim.layer_decay sets; its
effect on models of this size is not measured.
MambaOut-Femto is trained with a drop path rate of 0.025; use more for larger models. Cost and result are not measured
yet.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return what differs from the defaults in docs/config.md; `init_from` and `data.name` are still required."""
    config = default_config()
    config.init_head = "new"
    config.num_epochs = 30
    config.batch_size = 64
    config.log_every_steps = 10

    config.data.auto_augment = "rand-m9-mstd0.5-inc1"
    config.data.num_workers = 4

    config.model.update(name="mambaout_femto", drop_path_rate=0.1)

    config.augment.random_erasing_prob = 0.25

    config.optim.learning_rate = 5e-5
    config.optim.min_learning_rate = 1e-6
    config.optim.warmup_epochs = 0
    config.optim.weight_decay = 1e-8
    config.optim.ema_decay = 0.9999  # smaller in the first steps
    return config
