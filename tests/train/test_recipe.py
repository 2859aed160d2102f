import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaout_jax.train.errors import RunError
from mambaout_jax.train.recipe import accumulation_steps, departures, describe_batch, linear_rule

RECIPE = {
    "data.name": "imagenet2012",
    "init_from": None,
    "batch_size": 4096,
    "num_epochs": 310,
    "optim.learning_rate": 4e-3,
    "optim.warmup_epochs": 20,
    "optim.cooldown_epochs": 10,
    "augment.mixup_group": 128,
    "optim.weight_decay": 0.05,
}


def test_the_recipe_departs_in_nothing():
    assert departures(RECIPE) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"batch_size": 1024},
            "config.batch_size is 1024, the recipe's is 4096; the linear rule gives config.optim.learning_rate 0.001, "
            "the config has 0.004",
        ),
        (
            {"batch_size": 1024, "optim.learning_rate": 1e-3},
            "config.batch_size is 1024, the recipe's is 4096; the linear rule gives config.optim.learning_rate 0.001, "
            "as the config has it",
        ),
        (
            {"optim.learning_rate": 2e-3},
            "config.optim.learning_rate is 0.002, the recipe's is 0.004; the linear rule gives "
            "config.optim.learning_rate 0.004, the config has 0.002",
        ),
        ({"optim.warmup_epochs": 5}, "config.optim.warmup_epochs is 5, the recipe's is 20"),
        ({"num_epochs": 100}, "config.num_epochs is 100, the recipe's is 310"),
        ({"optim.cooldown_epochs": 0}, "config.optim.cooldown_epochs is 0, the recipe's is 10"),
        (
            {"augment.mixup_group": 16},
            "config.augment.mixup_group is 16, the recipe's is 128; a step draws 256 times how to mix, the recipe's 32 "
            "times",
        ),
    ],
)
def test_each_departure_is_a_sentence(changes, sentence):
    assert departures({**RECIPE, **changes}) == [sentence]


def test_departures_add_up():
    changes = {"batch_size": 512, "optim.learning_rate": 1e-3, "num_epochs": 30, "optim.warmup_epochs": 0}
    assert [sentence.split(" is ")[0] for sentence in departures({**RECIPE, **changes})] == [
        "config.batch_size",
        "config.optim.warmup_epochs",
        "config.num_epochs",
    ]


@pytest.mark.parametrize("name", ["imagenet2012:5.1.0", "imagenet2012/small:1.0.0"])
def test_a_version_of_imagenet_is_imagenet(name):
    assert departures({**RECIPE, "data.name": name, "num_epochs": 100})


@pytest.mark.parametrize("changes", [{"data.name": "imagenet2012_real"}, {"init_from": "runs/femto"}])
def test_the_recipe_speaks_of_imagenet_from_nothing_alone(changes):
    assert departures({**RECIPE, "batch_size": 64, **changes}) == []


def test_linear_rule_keeps_the_ratio_of_learning_rate_and_batch():
    assert linear_rule(4096) == 4e-3
    assert linear_rule(1024) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "limit", "group", "parts"),
    [
        (4096, 8, 128, 128, 4),  # as published
        (4096, 1, 128, 128, 32),
        (4096, 32, 128, 128, 1),
        (4096, 8, None, 128, 1),
        (4096, 8, 1000, 128, 1),
        (96, 1, 40, 1, 3),  # two parts of 48 would be too large
        (100, 1, 40, 1, 4),  # and three are not equal
        (7, 1, 3, 1, 7),
    ],
)
def test_a_batch_is_computed_in_as_few_parts_as_a_device_allows(batch_size, num_devices, limit, group, parts):
    assert accumulation_steps(batch_size, num_devices, limit, group) == parts


@given(share=st.integers(1, 300), num_devices=st.integers(1, 64), limit=st.integers(1, 300))
def test_parts_are_equal_small_enough_and_fewest(share, num_devices, limit):
    parts = accumulation_steps(share * num_devices, num_devices, limit, 1)
    assert share % parts == 0
    assert share // parts <= limit
    assert not any(share % fewer == 0 and share // fewer <= limit for fewer in range(1, parts))


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "group", "words"),
    [
        (100, 8, 1, "config.batch_size is 100; equal shares for 8 devices are expected: the nearest size is 96 or 104"),
        (3, 8, 1, "the nearest size is 8"),
        (
            1001,
            4,
            16,
            "4 devices in groups of config.augment.mixup_group 16 are .* the nearest size is 960 or 1024",
        ),
        (4096, 256, 128, "mixup_group is 128; a divisor of the 16 images .* to 16, or config.batch_size to 32768"),
        (1200, 8, 128, "a divisor of the 150 images .* set it to 75, or config.batch_size to 1024 or 2048"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch_size, num_devices, group, words):
    with pytest.raises(RunError, match=words) as caught:
        accumulation_steps(batch_size, num_devices, None, group)
    for size in (int(word) for word in caught.value.args[0].split("size")[-1].split() if word.isdigit()):
        assert accumulation_steps(size, num_devices, None, group) == 1


def test_a_batch_is_described_in_words():
    assert describe_batch(4096, 8, 4) == (
        "a step takes 4,096 images, 512 on each of 8 devices, accumulated over 4 parts of 128"
    )
    assert describe_batch(64, 1, 1) == "a step takes 64 images, on one device, computed at once"
