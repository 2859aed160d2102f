"""Every experiment is complete, and those of the published recipe have its numbers."""

import ast
import re
from pathlib import Path

import pytest

from mambaout_jax.analyze.ssm_need import measure_first_stage
from mambaout_jax.models import create_model, families, find_family
from mambaout_jax.run.config import known_keys, nest
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.study.variants import design_variants
from mambaout_jax.train.recipe import differences_from_recipe
from tests.marks import slow_but

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted(path.stem for path in CONFIGS.glob("*.py"))
IMAGENET = [
    f"imagenet:{name}"
    for name in ("mambaout_femto", "mambaout_kobe", "mambaout_tiny", "mambaout_small", "mambaout_base")
]
# Drop path rate, and the decay of the average of the weights.
OTHERS = {
    "imagenet:vim_tiny": (0.0, 0.99996),
    "imagenet:vim_small": (0.05, 0.99996),
    "imagenet:vmamba_tiny_s1l8": (0.2, 0.9999),
    "imagenet:vmamba_small_s1l20": (0.3, 0.9999),
    "imagenet:vmamba_base_s1l20": (0.5, 0.9999),
    "imagenet:vmamba_tiny_s2l5": (0.2, 0.9999),
    "imagenet:vmamba_small_s2l15": (0.3, 0.9999),
    "imagenet:vmamba_base_s2l15": (0.6, 0.9999),
    "imagenet:vmamba_tiny_v0": (0.2, None),
    "imagenet:vmamba_small_v0": (0.3, 0.9999),
    "imagenet:vmamba_base_v0": (0.6, 0.9999),
    "imagenet:plainmamba_l1": (0.2, None),
    "imagenet:plainmamba_l2": (0.2, 0.9999),
    "imagenet:plainmamba_l3": (0.4, 0.9999),
    "imagenet:localvim_tiny": (0.1, None),
    "imagenet:localvmamba_tiny": (0.2, None),
    "imagenet:localvmamba_small": (0.2, None),
    "imagenet:mambavision_t": (0.2, 0.9998),
    "imagenet:mambavision_t2": (0.2, 0.9998),
    "imagenet:mambavision_s": (0.2, 0.9998),
    "imagenet:mambavision_b": (0.3, 0.9998),
    "imagenet:mambavision_l": (0.3, 0.9998),
    "imagenet:mambavision_l2": (0.3, 0.9998),
}
STUDIES = ["study:digits", "study:pathfinder", "study:photos", "study:scenes_segmentation"]
DATASETS = {"study:scenes_segmentation": "scenes/cue_128"}
FILES_ALONE = ["digits", "finetune", "imagenette", "scenes_detection", "scenes_segmentation", "study_mambavision"]
ADE20K = [
    f"ade20k:{name}"
    for name in (
        "mambaout_tiny", "mambaout_small", "mambaout_base",
        "vmamba_tiny_s1l8", "vmamba_small_s2l15", "vmamba_base_s2l15",
    )
]  # fmt: skip
COCO = [name.replace("ade20k", "coco") for name in ADE20K]
EXPERIMENTS = [*FILES_ALONE, *IMAGENET, *OTHERS, *STUDIES, *ADE20K, *COCO]
# What an experiment leaves to the command line.
GIVEN = {"finetune": ["--config.init_from=runs/femto", "--config.data.name=photos"]}

DROP_PATH = dict(zip(IMAGENET, (0.025, 0.025, 0.2, 0.4, 0.6), strict=True))
RECIPE = {
    "seed": 42,
    "init_from": None,
    "num_epochs": 310,
    "batch_size": 4096,
    "microbatch_size": 128,
    "eval_every_epochs": 1,
    "data.name": "imagenet2012",
    "data.train_split": "train",
    "data.validation_split": "validation",
    "data.pipeline": "exact",
    "data.crop": "random_resized",
    "data.crop_scale": (0.08, 1.0),
    "data.crop_ratio": (0.75, 4 / 3),
    "data.hflip_prob": 0.5,
    "data.interpolation": "random",
    "data.auto_augment": "rand-m9-mstd0.5-inc1",
    "data.crop_pct": 1.0,
    "data.on_bad_record": "raise",
    "data.repeated_aug": 1,
    "model.img_size": (224, 224),
    "model.drop_rate": 0.0,
    "model.dtype": "float32",
    "augment.pad": 0,
    "augment.rotate_degrees": 0.0,
    "augment.mixup_alpha": 0.8,
    "augment.cutmix_alpha": 1.0,
    "augment.mixup_prob": 1.0,
    "augment.mixup_switch_prob": 0.5,
    "augment.mixup_group": 128,
    "augment.random_erasing_prob": 0.25,
    "augment.label_smoothing": 0.1,
    "optim.learning_rate": 0.004,
    "optim.warmup_learning_rate": 0.000001,
    "optim.min_learning_rate": 0.00001,
    "optim.warmup_epochs": 20,
    "optim.cooldown_epochs": 10,
    "optim.schedule": "per_epoch",
    "optim.weight_decay": 0.05,
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.eps": 1e-8,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": None,
    "loss.mesa": 0.0,
}


def load(name, changes=None):
    file, _, argument = name.partition(":")
    return read_config(
        f"{CONFIGS}/{file}.py{':' if argument else ''}{argument}", GIVEN.get(name, []) if changes is None else changes
    )


def build_model(name, num_classes=10):
    return load(name).build_task().build_model({"num_classes": num_classes})


def test_every_file_is_tested():
    assert {name.partition(":")[0] for name in EXPERIMENTS} == set(FILES)


@pytest.mark.parametrize("name", slow_but([*FILES_ALONE, IMAGENET[0], *STUDIES, ADE20K[0], COCO[0]], EXPERIMENTS))
def test_every_experiment_builds_its_model_and_its_transforms(name):
    assert build_model(name).num_classes == 10
    load(name).build_task().check()


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_how_to_run_it_and_what_it_costs(name):
    text = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    assert re.search(rf"python main\.py --config=configs/{name}\.py(:\w+)? --workdir=", text)
    assert "Cost" in text
    assert set(re.findall(r"--config\.([\w.]+)=", text)) <= known_keys({"model.name": "mambaout_femto"}).keys()


@pytest.mark.parametrize("name", ADE20K)
def test_experiments_of_ade20k_have_the_published_recipe(name):
    """Optimizer, schedule and batch of mmsegmentation's config of Swin, with the learning rates of the papers."""
    config = load(name)
    rate = 1e-4 if "mambaout" in name else 6e-5
    assert (config.num_steps, config.batch_size, config.optim.warmup_steps) == (160_000, 16, 1_500)
    assert (config.optim.learning_rate, config.optim.warmup_learning_rate) == (rate, 1e-6 * rate)
    assert (config.optim.weight_decay, config.optim.min_learning_rate, config.optim.clip_grad_norm) == (0.01, 0, None)
    assert (config.optim.schedule, config.optim.decay_of) == ("linear", "all_but_norms")
    options = config.task_options
    assert (options["data.box"], options["data.box_scale"], options["data.cat_max_ratio"]) == (
        (512, 2048),
        (0.5, 2.0),
        0.75,
    )
    assert (options["data.hflip_prob"], options["data.photometric"], options["loss.auxiliary"]) == (0.5, True, 0.4)


@pytest.mark.parametrize("name", COCO)
def test_experiments_of_coco_have_the_published_recipe(name):
    """Optimizer, schedule, batch and limits of mmdetection's config of Swin."""
    config = load(name)
    assert (config.num_epochs, config.batch_size, config.optim.warmup_steps) == (12, 16, 1_000)
    assert (config.optim.learning_rate, config.optim.warmup_learning_rate) == (1e-4, 1e-7)
    assert (config.optim.schedule, config.optim.drop_epochs) == ("drops", (8, 11))
    assert (config.optim.weight_decay, config.optim.decay_of, config.optim.clip_grad_norm) == (
        0.05,
        "all_but_norms",
        None,
    )
    options = config.task_options
    assert (options["data.box"], options["data.hflip_prob"]) == ((800, 1333), 0.5)
    assert (options["loss.pre_nms_top_k"], options["loss.max_proposals"]) == (2000, 1000)
    assert (options["loss.rpn_samples"], options["loss.roi_samples"]) == (256, 512)
    assert (options["eval.pre_nms_top_k"], options["eval.max_proposals"]) == (1000, 1000)
    assert (options["eval.score_threshold"], options["eval.iou_threshold"]) == (0.05, 0.5)


@pytest.mark.parametrize("name", OTHERS)
def test_experiments_of_other_families_have_the_recipe_of_their_model(name):
    config, model = load(name), name.partition(":")[2]
    recipe, (drop_path_rate, ema_decay) = find_family(model).recipe_of(model), OTHERS[name]
    crop_pct = find_family(model).variants[model].crop_pct
    own = {"model.name": model, "model.drop_path_rate": drop_path_rate, "data.crop_pct": crop_pct}
    expected = {**RECIPE, "optim.schedule": "per_step", **recipe.values, **own, "optim.ema_decay": ema_decay}
    del expected["microbatch_size"]  # does not change the result
    assert {key: config.all_values[key] for key in expected} == expected
    assert differences_from_recipe(recipe, config.values) == []
    assert 1_281_167 // config.batch_size % config.log_every_steps == 0


@pytest.mark.parametrize("name", IMAGENET)
def test_published_experiments_have_the_recipe(name):
    config = load(name)
    expected = {**RECIPE, "model.name": name.partition(":")[2], "model.drop_path_rate": DROP_PATH[name]}
    assert {key: config.all_values[key] for key in expected} == expected
    model = config.model["name"]
    assert differences_from_recipe(find_family(model).recipe_of(model), config.values) == []
    assert 1_281_167 // config.batch_size == 312
    assert 312 % config.log_every_steps == 0


def test_every_published_model_with_a_recipe_has_an_experiment():
    variants = {(family, name): variant for family in families() for name, variant in family.variants.items()}
    published = {name for (family, name), variant in variants.items() if variant.top1 and family.recipe_of(name)}
    assert published == {name.partition(":")[2] for name in (*IMAGENET, *OTHERS)}


def test_published_experiments_differ_in_model_and_drop_path_alone():
    first, *others = (load(name).values for name in IMAGENET)
    for other in others:
        assert {key for key in first | other if first[key] != other[key]} <= {"model.name", "model.drop_path_rate"}


def test_a_model_without_a_published_recipe_is_refused_with_those_that_have_one():
    with pytest.raises(
        RunError, match=r"imagenet\.py: no published recipe for 'vit'; expected one of mambaout_femto, "
    ):
        load("imagenet:vit")


def test_fine_tuning_needs_a_dataset():
    with pytest.raises(RunError, match=r"config.data.name is unset"):
        load("finetune", ["--config.init_from=runs/femto"])


def test_fine_tuning_needs_weights():
    with pytest.raises(RunError, match=r"config.init_head is 'new'.*config.init_from"):
        load("finetune", ["--config.data.name=photos"])


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_remove_its_ssm_and_evaluates_at_its_end(name):
    config = load(name)
    assert "token_mixer" in build_model(name).options
    assert config.data.name == DATASETS.get(name, name.partition(":")[2])
    assert config.num_epochs % config.eval_every_epochs == 0
    assert config.init_from is None


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "count"), [("study_mambavision", 10), ("study:scenes_segmentation", 6)])
def test_other_studies_compare_models_at_equal_parameters(name, count):
    config = load(name)
    variants = design_variants(
        config.model, nest(config.values)["study"], lambda options: create_model(num_classes=10, **options)
    )
    assert len(variants) == count
    assert all(
        abs(variant.params - variants[0].params) < 0.02 * variants[0].params
        for variant in variants
        if "matched" in variant.comparisons
    )


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("study:digits", "short"), ("study:pathfinder", "long"), ("study:scenes_segmentation", "long")],
)
def test_there_are_studies_of_short_and_of_long_sequences(name, verdict):
    assert measure_first_stage(build_model(name, 2))["verdict"] == verdict


def test_the_page_on_the_recipe_has_the_numbers_of_the_configs():
    values, text = load("imagenet:mambaout_tiny").all_values, (ROOT / "docs" / "recipe.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(rows) > 30
    for value, key in rows:
        expected = eval(value, {})
        assert values[key] == ((expected, expected) if key == "model.img_size" else expected), key
    for name, rate in DROP_PATH.items():
        assert f"| MambaOut-{name.partition('_')[2].title()} | {rate} |" in text
