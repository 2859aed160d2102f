"""Fine-tune a trained model on another dataset, or at another size: for example on a folder of your own photographs.

python -m mambaout_jax prepare folder photos
python main.py --config=configs/finetune.py --workdir=runs/photos --config.init_from=runs/mambaout_femto \
    --config.data.name=photos

`photos/train` and `photos/val` hold one folder of images for each class; if there is only `photos/CLASS`, the first
command prints how to set a tenth of the images aside. `init_from` is the workdir of a run of the same `model.name`, or
weights from PyTorch, such as hf-hub:timm/mambaout_femto.in1k (docs/convert.md). The classifier is initialized at
random; --config.init_head=keep keeps it if the classes are the same, as for ImageNet at a larger size
(--config.data.name=imagenet2012 --config.model.img_size=384 --config.batch_size=512).

Learning rate, epochs, weight decay, no warm-up, no mixing and a drop path above that of the training are ConvNeXt's
(Liu et al., A ConvNet for the 2020s, 2022, fine-tuning at 384 px). ConvNeXt also uses a batch of 512 and a learning
rate that decreases from the last layer to the first. The batch is smaller here because such datasets are small.
MambaOut-Femto is trained with a drop path of 0.025; use more for larger models. Cost and result are not measured yet.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Return the experiment; docs/config.md explains each key."""
    config = ConfigDict()
    config.task = "classification"
    config.plugins = ()
    config.seed = 0
    config.resume = "same"
    config.init_from = config_dict.placeholder(str)  # to be given
    config.init_head = "new"
    config.num_epochs = 30
    config.batch_size = 64
    config.microbatch_size = config_dict.placeholder(int)
    config.eval_batch_size = 64
    config.eval_every_epochs = 1
    config.save_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 10

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = config_dict.placeholder(str)  # to be given
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.eval_sets = config_dict.placeholder(str)
    data.pipeline = "exact"
    data.crop = "random_resized"
    data.crop_scale = (0.08, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    data.hflip_prob = 0.5
    data.interpolation = "random"
    data.auto_augment = "rand-m9-mstd0.5-inc1"
    data.crop_pct = config_dict.placeholder(float)
    data.crop_mode = config_dict.placeholder(str)
    data.num_workers = 4
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "mambaout_femto"
    model.img_size = 224
    model.drop_path_rate = 0.1
    model.drop_rate = 0.0
    model.dtype = "float32"
    model.scan_blocks = False
    model.remat = "none"

    config.augment = augment = ConfigDict()
    augment.pad = 0
    augment.rotate_degrees = 0.0
    augment.mixup_alpha = 0.0
    augment.cutmix_alpha = 0.0
    augment.mixup_prob = 0.0
    augment.mixup_switch_prob = 0.5
    augment.mixup_group = 1
    augment.random_erasing_prob = 0.25
    augment.label_smoothing = 0.1

    config.optim = optim = ConfigDict()
    optim.learning_rate = 5e-5
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-6
    optim.warmup_epochs = 0
    optim.cooldown_epochs = 0
    optim.schedule = "per_step"
    optim.weight_decay = 1e-8
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = config_dict.placeholder(float)
    optim.ema_decay = 0.9999  # forgets faster while the run is young

    config.profile = profile = ConfigDict()
    profile.start_step = config_dict.placeholder(int)
    profile.num_steps = 5
    return config
