"""timm's names of augmentations are understood, or refused before anything is written with the nearest that is."""

import re

import pytest

from mambaout_jax.data import DataError, TrainTransform
from mambaout_jax.data.randaugment import RandAugment
from mambaout_jax.train.loop import train
from tests.train import tiny

UNDERSTOOD = {
    "rand-m9-mstd0.5-inc1": RandAugment(magnitude=9.0, magnitude_std=0.5, increasing=True),
    "rand-n3-m7-inc1": RandAugment(num_ops=3, magnitude=7.0, increasing=True),
    "rand-m9-p0.7-inc1": RandAugment(magnitude=9.0, prob=0.7, increasing=True),
    "rand-inc1": RandAugment(increasing=True),
    "rand-m9": RandAugment(magnitude=9.0),
    "rand-m9-mstd0.5": RandAugment(magnitude=9.0, magnitude_std=0.5),
    "rand-m9-mstd0.5-inc0": RandAugment(magnitude=9.0, magnitude_std=0.5),
    "rand-m9-n3-mstd0.5": RandAugment(num_ops=3, magnitude=9.0, magnitude_std=0.5),
    "rand": RandAugment(),
}
NEAREST = {
    "rand-m9-mstd101-inc1": "rand-m9-inc1",
    "rand-m15-mmax15-inc1": "rand-m10-inc1",
    "rand-m15-mmax15": "rand-m10",
    "rand-m9-inc2": "rand-m9-inc1",
    "rand-mstd1-tweights": "rand-mstd1",
    "rand-m9-w0-inc1": "rand-m9-inc1",
    "rand-m9-t1-inc1": "rand-m9-inc1",
    "rand-m9.5-inc1": "rand-m9-inc1",
    "original": "rand-m9-mstd0.5-inc1",
    "originalr": "rand-m9-mstd0.5-inc1",
    "v0": "rand-m9-mstd0.5-inc1",
    "v0r-mstd0.5": "rand-m9-mstd0.5-inc1",
    "3a": "rand-m9-mstd0.5-inc1",
    "augmix-m5-w4-d2": "rand-m9-mstd0.5-inc1",
    "": "rand-m9-mstd0.5-inc1",
}


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_strings_of_this_notation_are_understood(text):
    assert RandAugment.parse(text) == UNDERSTOOD[text]


@pytest.mark.parametrize("text", NEAREST)
def test_other_strings_are_refused_with_the_nearest_that_is_understood(text):
    with pytest.raises(DataError, match=re.escape(f"the nearest is {NEAREST[text]!r}, ")):
        TrainTransform((8, 8), auto_augment=text)
    RandAugment.parse(NEAREST[text])


def test_nothing_is_written_before_the_refusal(tmp_path):
    config = tiny.config(**{"data.auto_augment": "rand-m15"})
    with pytest.raises(DataError, match="the nearest is 'rand-m10'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
