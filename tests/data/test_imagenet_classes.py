"""The words of ImageNet's classes are those of WordNet, one line per class in label order."""

import pytest
import tensorflow_datasets as tfds

from mambaout_jax.data.imagenet_classes import class_description, class_word, imagenet_class_names
from tests.test_layering import ROOT
from tests.timm import load_timm


def test_class_names_are_those_of_tfds_in_label_order():
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert imagenet_class_names() == tuple(labels)
    assert len(labels) == 1000


def test_each_class_has_one_word_that_no_other_class_has():
    words = [class_word(name) for name in imagenet_class_names()]
    assert len({word.casefold() for word in words}) == 1000
    assert all(word.isprintable() and not word.startswith("n0") for word in words)


def test_the_first_word_is_shown_and_all_words_describe():
    assert (class_word("n01440764"), class_description("n01440764")) == ("tench", "tench, Tinca tinca")
    assert (class_word("n02012849"), class_word("n03126707")) == ("crane (n02012849)", "crane (n03126707)")


@pytest.mark.parametrize("name", ["tench", "0", "", "n00000001"])
def test_other_names_are_unchanged_and_have_no_description(name):
    assert (class_word(name), class_description(name)) == (name, None)


def test_license_of_wordnet_is_distributed():
    notice = (ROOT / "NOTICE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert '"NOTICE"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.torch
def test_descriptions_equal_timms():
    load_timm()
    from timm.data import ImageNetInfo

    assert [class_description(name) for name in imagenet_class_names()] == ImageNetInfo().label_descriptions()
