import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaout_jax.run.batch import check_eval_batch, describe_batch, grad_accum_steps
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import RowGroup


def steps_of(batch_size, num_devices, limit, group):
    return grad_accum_steps(batch_size, num_devices, limit, RowGroup(group, "augment.mixup_group"))


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "limit", "group", "parts"),
    [
        (4096, 8, 128, 128, 4),  # as published
        (4096, 1, 128, 128, 32),
        (4096, 32, 128, 128, 1),
        (4096, 8, None, 128, 1),
        (4096, 8, 1000, 128, 1),
        (96, 1, 40, 1, 3),  # two microbatches of 48 would be too large
        (100, 1, 40, 1, 4),  # and three are not equal
        (7, 1, 3, 1, 7),
    ],
)
def test_a_batch_has_the_fewest_microbatches_that_a_device_allows(batch_size, num_devices, limit, group, parts):
    assert steps_of(batch_size, num_devices, limit, group) == parts


@given(share=st.integers(1, 300), num_devices=st.integers(1, 64), limit=st.integers(1, 300))
def test_microbatches_are_equal_small_enough_and_fewest(share, num_devices, limit):
    parts = steps_of(share * num_devices, num_devices, limit, 1)
    assert share % parts == 0
    assert share // parts <= limit
    assert not any(share % fewer == 0 and share // fewer <= limit for fewer in range(1, parts))


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "group", "words"),
    [
        (100, 8, 1, "config.batch_size is 100; expected a multiple of the 8 devices: the nearest is 96 or 104"),
        (3, 8, 1, "the nearest is 8"),
        (
            1001,
            4,
            16,
            "4 devices times config.augment.mixup_group 16: the nearest is 960 or 1024",
        ),
        (
            4096,
            256,
            128,
            "is 128; expected a divisor of the 16 images .* to 16, or config.batch_size to 32768",
        ),
        (1200, 8, 128, "a divisor of the 150 images .* set it to 75, or config.batch_size to 1024 or 2048"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch_size, num_devices, group, words):
    with pytest.raises(RunError, match=words) as caught:
        steps_of(batch_size, num_devices, None, group)
    for size in map(int, re.findall(r"\d+", re.split("nearest is|config.batch_size to", str(caught.value))[-1])):
        assert steps_of(size, num_devices, None, group) == 1


def test_description_of_a_batch():
    assert describe_batch(4096, 8, 4) == ("4,096 images per step, 512 on each of 8 devices, in 4 microbatches of 128")
    assert describe_batch(64, 1, 1) == "64 images per step, on one device, in one microbatch"


def test_an_evaluated_batch_that_devices_cannot_share_is_refused():
    check_eval_batch(104, 8)
    with pytest.raises(
        RunError, match=r"eval_batch_size is 100; expected a multiple of the 8 devices: .* nearest is 96 or 104$"
    ):
        check_eval_batch(100, 8)
