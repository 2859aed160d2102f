"""Experiments of a command line are files, or names of those in the package."""

import pytest

from mambaout_jax.experiments import EXPERIMENTS, find_experiment_fault, split_experiment


@pytest.mark.parametrize(
    ("file", "path", "argument"),
    [
        ("digits", f"{EXPERIMENTS}/digits.py", None),
        ("imagenet:mambaout_tiny", f"{EXPERIMENTS}/imagenet.py", "mambaout_tiny"),
        ("study:", f"{EXPERIMENTS}/study.py", ""),
        ("digits.py", "digits.py", None),
        ("./a/b.py:x:y", "./a/b.py", "x:y"),
        ("runs/x/config.json", "runs/x/config.json", None),
    ],
)
def test_an_experiment_is_a_file_or_the_name_of_one_of_the_package(file, path, argument):
    assert split_experiment(file) == (path, argument)


def test_a_wrong_name_of_an_experiment_is_answered_with_the_names():
    assert not find_experiment_fault("imagenet:mambaout_tiny")
    assert "expected a file, or one of ade20k, coco, digits, finetune, " in find_experiment_fault(
        "imagnet:mambaout_tiny"
    )
