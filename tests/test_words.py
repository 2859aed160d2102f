import pytest

from mambaout_jax.words import count, listed, processes


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "class", "2 classes"),
        (1437, "training image", "1,437 training images"),
        (3, "batch", "3 batches"),
        (7, "epoch", "7 epochs"),
        (1, "class", "1 class"),
    ],
)
def test_a_noun_agrees_with_its_number(number, noun, text):
    assert count(number, noun) == text


def test_a_list_has_one_and():
    assert [listed(words) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_processes_agree_with_their_number():
    assert [processes(of) for of in ([1], [1, 2], ["1", "2", "3"])] == [
        "process 1",
        "processes 1 and 2",
        "processes 1, 2 and 3",
    ]
