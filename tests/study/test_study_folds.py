"""Folds are disjoint, cover the split and leave everything else to train on."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.run.errors import RunError
from mambaout_jax.study.folds import fold_splits
from mambaout_jax.tasks.classification.source import open_source


def positions(split):
    """Return the indices of the records in a split."""
    parts = [part.removesuffix("]").partition("[")[2].split(":") for part in split.split("+")]
    return [index for low, high in parts for index in range(int(low), int(high))]


@given(st.integers(2, 12), st.integers(0, 500), st.integers(0, 50))
def test_folds_are_disjoint_cover_and_leave_the_rest(num_folds, more, start):
    num_images = num_folds + more
    everything = list(range(start, start + num_images))
    folds = fold_splits(f"train[{start}:]", num_images, num_folds)
    tested = [positions(validation) for _, validation in folds]
    assert list(itertools.chain(*tested)) == everything
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    for (train, _), test in zip(folds, tested, strict=True):
        assert sorted(positions(train) + test) == everything


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "train[:90%]", "train[100:]", "train[7:500]"])
def test_a_dataset_gives_each_image_to_one_fold(tmp_path_factory, split):
    data_dir = str(tmp_path_factory.getbasetemp() / "datasets")
    ensure_prepared("digits", data_dir)

    def images(split):
        source = open_source("digits", split, data_dir)
        return [source[index]["image"] for index in range(len(source))]

    whole = images(split)
    folds = fold_splits(split, len(whole), 3)
    assert [image for _, validation in folds for image in images(validation)] == whole
    for train, validation in folds:
        assert set(images(train)) == set(whole) - set(images(validation))


@pytest.mark.parametrize("split", ["train[50%:]", "train[:10]+train[20:]", "train[:50%]+validation", "train[-9:]", ""])
def test_a_split_that_cannot_be_cut_is_one_sentence(split):
    with pytest.raises(RunError, match=r"config.data.train_split is '.*'; .*'train\[:5000\]'"):
        fold_splits(split, 100, 3)


def test_fewer_images_than_folds_are_refused():
    with pytest.raises(RunError, match="has 2 images; expected at least one per fold, 3 in all"):
        fold_splits("train", 2, 3)
