import pytest

import mambaout_jax as mo
from mambaout_jax.models import find_family, list_models
from mambaout_jax.train.recipe import differences_from_recipe, linearly_scaled_lr

PUBLISHED = find_family("mambaout_femto").recipe

RECIPE = {
    "data.name": "imagenet2012",
    "init_from": None,
    "batch_size": 4096,
    "num_epochs": 310,
    "optim.name": "adamw",
    "optim.learning_rate": 4e-3,
    "optim.warmup_epochs": 20,
    "optim.cooldown_epochs": 10,
    "optim.schedule": "per_epoch",
    "augment.mixup_group": 128,
    "model.drop_path_rate": 0.025,
    "optim.weight_decay": 0.05,
}


def test_the_recipe_does_not_depart_from_itself():
    assert differences_from_recipe(PUBLISHED, RECIPE) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"batch_size": 1024},
            "config.batch_size is 1024, the recipe's is 4096; the linear scaling rule gives "
            "config.optim.learning_rate 0.001, the config has 0.004",
        ),
        (
            {"batch_size": 1024, "optim.learning_rate": 1e-3},
            "config.batch_size is 1024, the recipe's is 4096; the linear scaling rule gives "
            "config.optim.learning_rate 0.001, as in the config",
        ),
        (
            {"optim.learning_rate": 2e-3},
            "config.optim.learning_rate is 0.002, the recipe's is 0.004; the linear scaling rule gives "
            "config.optim.learning_rate 0.004, the config has 0.002",
        ),
        ({"optim.name": "lamb", "batch_size": 1024}, "config.batch_size is 1024, the recipe's is 4096"),
        ({"optim.warmup_epochs": 5}, "config.optim.warmup_epochs is 5, the recipe's is 20"),
        ({"num_epochs": 100}, "config.num_epochs is 100, the recipe's is 310"),
        ({"optim.cooldown_epochs": 0}, "config.optim.cooldown_epochs is 0, the recipe's is 10"),
        (
            {"augment.mixup_group": 16},
            "config.augment.mixup_group is 16, the recipe's is 128; a step draws mixup or cutmix 256 times, in the "
            "recipe 32 times",
        ),
    ],
)
def test_each_departure_is_a_sentence(changes, sentence):
    assert differences_from_recipe(PUBLISHED, {**RECIPE, **changes}) == [sentence]


def test_differences_add_up():
    changes = {"batch_size": 512, "optim.learning_rate": 1e-3, "num_epochs": 30, "optim.warmup_epochs": 0}
    assert [sentence.split(" is ")[0] for sentence in differences_from_recipe(PUBLISHED, {**RECIPE, **changes})] == [
        "config.batch_size",
        "config.optim.warmup_epochs",
        "config.num_epochs",
    ]


@pytest.mark.parametrize("name", ["imagenet2012:5.1.0", "imagenet2012/small:1.0.0"])
def test_a_version_of_imagenet_is_imagenet(name):
    assert differences_from_recipe(PUBLISHED, {**RECIPE, "data.name": name, "num_epochs": 100})


@pytest.mark.parametrize("changes", [{"data.name": "imagenet2012_real"}, {"init_from": "runs/femto"}])
def test_other_datasets_and_pretrained_weights_have_no_differences(changes):
    assert differences_from_recipe(PUBLISHED, {**RECIPE, "batch_size": 64, **changes}) == []


def test_another_drop_path_rate_is_a_difference():
    recipe = find_family("mambaout_tiny").recipe_of("mambaout_tiny")
    assert differences_from_recipe(recipe, RECIPE) == ["config.model.drop_path_rate is 0.025, the recipe's is 0.2"]


def test_a_family_without_a_recipe_departs_from_none():
    recipe = mo.create_model("deit_tiny_patch16_224").family.recipe
    assert differences_from_recipe(recipe, {**RECIPE, "batch_size": 1024, "num_epochs": 300}) == []


def test_a_variant_changes_values_of_the_recipe_of_its_family_only():
    for name in list_models():
        family = find_family(name)
        changed = family.variants[name].recipe
        if family.recipe is None or changed is None:
            assert not changed
            assert find_family(name).recipe_of(name) is None
        else:
            assert changed.keys() <= family.recipe.values.keys()
            assert find_family(name).recipe_of(name).values == {**family.recipe.values, **changed}
    assert find_family("plainmamba_l2").recipe_of("plainmamba_l2") == find_family("plainmamba_l2").recipe
    assert find_family("plainmamba_l3").recipe_of("plainmamba_l3").values["batch_size"] == 1024


@pytest.mark.parametrize(
    "name", ["vim_tiny_plus", "mambavision_b_21k", "mambaout_base_plus_rw", "test_mambaout", "deit_tiny_patch16_224"]
)
def test_a_variant_that_was_trained_in_another_way_has_no_recipe(name):
    assert find_family(name).recipe_of(name) is None


def test_a_task_without_the_keys_of_the_recipe_has_no_differences():
    values = {name: value for name, value in RECIPE.items() if not name.startswith("augment.")}
    assert differences_from_recipe(PUBLISHED, {**values, "batch_size": 64}) == []


def test_linear_scaling_keeps_the_ratio_of_learning_rate_and_batch():
    assert linearly_scaled_lr(PUBLISHED, 4096) == 4e-3
    assert linearly_scaled_lr(PUBLISHED, 1024) == pytest.approx(1e-3, rel=1e-12)
