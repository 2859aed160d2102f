"""The paper and the training recipe of LocalMamba, which two families share."""

from types import MappingProxyType

from mambaout_jax.models.family import Publication, Recipe

# The cosine of the learning rate starts at epoch 0 here, and after the warm-up in the original. The repository does not
# state whether the published weights were trained with gradient clipping or a moving average.
RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 1024,
            "optim.learning_rate": 1e-3,
            "optim.warmup_learning_rate": 1e-7,
            "optim.min_learning_rate": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.warmup_epochs": 20,
            "num_epochs": 300,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_step",
            "data.interpolation": "bicubic",
            "data.auto_augment": "rand-m9-mstd0.5",
            "augment.mixup_alpha": 0.2,
            # 1024 = 8 devices x 128 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
            "model.drop_path_rate": 0.1,
        }
    ),
    reference="Huang et al., LocalMamba, 2024: classification/configs/strategies/local_mamba/config.yaml of the code",
)

PUBLICATION = Publication(
    title="LocalMamba: Visual State Space Model with Windowed Selective Scan",
    paper="https://arxiv.org/abs/2403.09338",
    repository="https://github.com/hunto/LocalMamba",
    license="Apache-2.0",
    bibtex="""@article{huang2024localmamba,
  title={LocalMamba: Visual State Space Model with Windowed Selective Scan},
  author={Huang, Tao and Pei, Xiaohuan and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  journal={arXiv preprint arXiv:2403.09338},
  year={2024}
}""",
)
