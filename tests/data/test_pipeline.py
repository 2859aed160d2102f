import dataclasses
import itertools
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from mambaout_jax.data import DataError, EvalTransform, TrainTransform, eval_batches, train_batches
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.tasks.classification.transforms import EvalExample, TrainExample
from tests.data.photos import NUM_VALIDATION, NumberedSource

RESIZE = TrainExample(TrainTransform((4, 5), channels=1))
RANDOM = TrainExample(TrainTransform((12, 16), crop="random_resized", flip=0.5, interpolation="random"))
EVAL = EvalExample(EvalTransform((4, 5), channels=1), max_labels=1)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def join(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def labels(batches):
    return join(batches)["label"].tolist()


@pytest.fixture(scope="module")
def photos(data_dir):
    return open_source("photos/whole", "train", data_dir)


def train_photos(source, count, **options):
    options = {"batch_size": 4, "steps_per_epoch": 5, "seed": 3} | options
    return take(train_batches(source, RANDOM, **options), count)


def test_batches_have_the_promised_shapes_and_types(photos):
    (batch,) = train_photos(photos, 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 12, 16, 3), "uint8"),
        "label": ((4,), "int32"),
        "skipped": ((4,), "int32"),
    }
    (batch,) = take(eval_batches(photos, EVAL, batch_size=4), 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 4, 5, 1), "uint8"),
        "label": ((4, 1), "int32"),
        "mask": ((4,), "bool"),
        "index": ((4,), "int32"),
        "skipped": ((4,), "int32"),
    }


@pytest.mark.parametrize("repeated_aug", [1, 3])
@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_batch_at_a_step_does_not_depend_on_where_the_run_started(photos, start, repeated_aug):
    options = {"repeated_aug": repeated_aug}
    whole, rest = train_photos(photos, 13, **options), train_photos(photos, 13 - start, start_step=start, **options)
    assert_equal(whole[start:], rest)


def test_a_late_step_is_reached_without_reading_earlier_batches(photos):
    assert len(train_photos(photos, 1, start_step=10_000_000)) == 1


@pytest.mark.run
def test_batches_do_not_depend_on_the_number_of_workers_which_exit_on_close(photos):
    options = {"start_step": 2, "repeated_aug": 3}
    assert_equal(train_photos(photos, 7, **options), train_photos(photos, 7, num_workers=2, **options))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("repeated_aug", [1, 3])
@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_global_batch_is_the_concatenation_of_the_hosts_in_rank_order(photos, hosts, start, repeated_aug):
    options = {"start_step": start, "repeated_aug": repeated_aug}
    shares = [train_photos(photos, 7, host_index=host, host_count=hosts, **options) for host in range(hosts)]
    joined = [join(parts) for parts in zip(*shares, strict=True)]
    assert_equal(train_photos(photos, 7, **options), joined)


def test_epoch_uses_every_record_once_up_to_the_dropped_tail():
    epochs = 6
    batches = take(train_batches(NumberedSource(23), RESIZE, batch_size=4, steps_per_epoch=5, seed=0), 5 * epochs)
    for epoch in range(epochs):
        used = labels(batches[5 * epoch : 5 * epoch + 5])
        assert len(set(used)) == 20
        assert set(used) <= set(range(23))
    dropped = {frozenset(range(23)) - set(labels(batches[5 * epoch : 5 * epoch + 5])) for epoch in range(epochs)}
    assert len(dropped) > 1


def test_repeated_augmentation_has_each_record_in_consecutive_rows_and_another_part_of_them_in_each_epoch():
    options = {"batch_size": 4, "steps_per_epoch": 5, "seed": 0, "repeated_aug": 3}
    batches = take(train_batches(NumberedSource(23), RESIZE, **options), 30)
    epochs = [labels(batches[start : start + 5]) for start in range(0, 30, 5)]
    for rows in epochs:
        assert len(set(rows)) == 7, "of 20 rows"
        assert rows == np.repeat(rows[::3], 3)[:20].tolist()
    assert len({frozenset(rows) for rows in epochs}) == 6


def test_repeated_augmentation_augments_each_row_on_its_own(photos):
    (batch,) = train_photos(photos, 1, batch_size=12, steps_per_epoch=1, repeated_aug=3)
    assert len({image.tobytes() for image in batch["image"]}) > 8


def test_repeated_augmentation_has_as_many_rows_as_the_records_allow():
    options = {"batch_size": 8, "seed": 0, "repeated_aug": 3}
    batches = take(train_batches(NumberedSource(8), RESIZE, steps_per_epoch=3, **options), 3)
    assert sorted(labels(batches)) == np.repeat(range(8), 3).tolist()
    with pytest.raises(
        DataError, match="8 images with repeated_aug=3 requires 11 images, but split 'train' of 'numbered' has 8"
    ):
        train_batches(NumberedSource(8), RESIZE, steps_per_epoch=4, **options)


def test_image_and_label_stay_together():
    for batch in take(train_batches(NumberedSource(23), RESIZE, batch_size=4, steps_per_epoch=5, seed=0), 10):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.slow
def test_order_is_new_in_every_epoch_and_for_every_seed():
    def order(seed, epoch):
        batches = train_batches(
            NumberedSource(40), RESIZE, batch_size=40, steps_per_epoch=1, seed=seed, start_step=epoch
        )
        return tuple(labels(take(batches, 1)))

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert order(0, 1) == orders[1]


def test_crops_are_new_in_every_epoch(photos):
    options = {"batch_size": 1, "steps_per_epoch": 1, "seed": 0}
    views = take(train_batches(open_first(photos), RANDOM, **options), 8)
    assert len({view["image"].tobytes() for view in views}) > 4


def open_first(source):
    class First:
        name, split = source.name, source.split

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return source[2]

    return First()


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 17])
def test_evaluation_sees_every_image_once_in_equally_many_batches_per_host(length, hosts):
    shares = [
        list(eval_batches(NumberedSource(length), EVAL, batch_size=8, host_index=host, host_count=hosts))
        for host in range(hosts)
    ]
    assert {len(share) for share in shares} == {-(-length // 8)}
    joined = join([part for parts in zip(*shares, strict=True) for part in parts])
    np.testing.assert_array_equal(joined["mask"], np.arange(len(joined["mask"])) < length)
    np.testing.assert_array_equal(joined["label"][joined["mask"]][:, 0], np.arange(length))
    np.testing.assert_array_equal(joined["index"], np.where(joined["mask"], np.arange(len(joined["mask"])), -1))
    np.testing.assert_array_equal(joined["image"][:length, 0, 0, 0], np.arange(length))
    assert not joined["image"][length:].any()
    assert not joined["skipped"].any()


@pytest.mark.run
def test_evaluation_does_not_depend_on_the_number_of_workers(data_dir):
    source = open_source("photos", "validation", data_dir)
    assert len(source) == NUM_VALIDATION
    assert_equal(
        list(eval_batches(source, EVAL, batch_size=2)), list(eval_batches(source, EVAL, batch_size=2, num_workers=1))
    )


class ManyLabels(NumberedSource):
    """A source whose record i has i labels, up to three."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": tuple(range(index))}


def test_several_labels_are_padded_and_padding_rows_have_none():
    (batch,) = eval_batches(ManyLabels(4), dataclasses.replace(EVAL, max_labels=3), batch_size=5)
    expected = [[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2], [-1, -1, -1]]
    np.testing.assert_array_equal(batch["label"], expected)
    assert batch["mask"].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("batch_size", [134, 160, 192])  # in one chunk; in 4 of 40; in 3 of 64
def test_batches_made_in_chunks_are_the_same(hosts, batch_size):
    options = {"steps_per_epoch": 1, "seed": 0, "batch_size": batch_size}
    source = NumberedSource(200)
    whole = take(train_batches(source, RESIZE, **options, start_step=1), 2)
    order = [np.random.default_rng((0, epoch)).permutation(200)[:batch_size].tolist() for epoch in (1, 2)]
    assert [batch["label"].tolist() for batch in whole] == order
    shares = [
        take(train_batches(source, RESIZE, **options, start_step=1, host_index=host, host_count=hosts), 2)
        for host in range(hosts)
    ]
    assert_equal(whole, [join(parts) for parts in zip(*shares, strict=True)])


@pytest.mark.run
@pytest.mark.parametrize(("kind", "workers"), [("bad", 0), ("unreadable", 0), ("bad", 1)])
def test_a_bad_record_stops_the_run_and_is_named(kind, workers):
    source = NumberedSource(6, **{kind: (4,)})
    options = {"batch_size": 2, "num_workers": workers}
    for batches in (
        train_batches(source, RESIZE, steps_per_epoch=3, seed=0, **options),
        eval_batches(source, EVAL, **options),
    ):
        with pytest.raises(DataError, match="record 4 of split 'train' of dataset 'numbered'") as raised:
            take(batches, 3)
        assert type(raised.value) is DataError
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
        assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


class Nested:
    """A transform to an example of nested dicts, whose arrays are functions of the record's index."""

    def __call__(self, record, rng=None):
        index = np.int32(record["label"])
        return {"image": np.full((2, 3), index, np.uint8), "boxes": {"corners": np.arange(4.0) + index, "count": index}}

    def empty(self):
        return {"image": np.zeros((2, 3), np.uint8), "boxes": {"corners": np.zeros(4), "count": np.int32(-7)}}


@pytest.mark.run
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("batch_size", [4, 96])  # in one chunk; in 2 of 48
def test_nested_examples_are_stacked_leaf_by_leaf(batch_size, num_workers):
    source, options = NumberedSource(100), {"batch_size": batch_size, "num_workers": num_workers}
    (train,) = take(train_batches(source, Nested(), steps_per_epoch=1, seed=0, **options), 1)
    *_, evaluated = take(eval_batches(source, Nested(), **options), None)
    for batch in (train, evaluated):
        count = batch["boxes"]["count"]
        assert (count.shape, count.dtype) == ((batch_size,), np.int32)
        number = np.where(count < 0, 0, count)
        np.testing.assert_array_equal(batch["image"], np.broadcast_to(number[:, None, None], (batch_size, 2, 3)))
        whole = batch["boxes"]["corners"][count >= 0]
        np.testing.assert_array_equal(whole, np.arange(4.0) + count[count >= 0, None])
    np.testing.assert_array_equal(evaluated["boxes"]["count"] == -7, ~evaluated["mask"])
    assert evaluated["boxes"]["count"][evaluated["mask"]].tolist() == evaluated["index"][evaluated["mask"]].tolist()


PLUGIN = """
import sys
import numpy as np
class Source:
    name, split, fingerprint, labels = "mine", "train", "1", {}
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return index
class Transform:
    def __call__(self, record, rng=None):
        alien = [name for name in sys.modules if name.partition(".")[0] in ("flax", "torch", "tensorflow")]
        ours = [name for name in sys.modules if name.startswith(("mambaout_jax.models", "mambaout_jax.data.prepare"))]
        assert not alien + ours, alien + ours
        return {"target": {"number": np.int32(record)}}
    def empty(self):
        return {"target": {"number": np.int32(0)}}
"""
USER = """
import multiprocessing
import my_plugin
from mambaout_jax.data import eval_batches, train_batches
if __name__ == "__main__":
    source, transform = my_plugin.Source(), my_plugin.Transform()
    batches = train_batches(source, transform, batch_size=40, steps_per_epoch=1, seed=0, num_workers=1)
    assert sorted(next(batches)["target"]["number"]) == list(range(40))
    assert multiprocessing.active_children()
    batches.close()
    (batch,) = eval_batches(source, transform, batch_size=40, num_workers=1)
    assert batch["target"]["number"].tolist() == batch["index"].tolist() == list(range(40))
"""


@pytest.mark.run
def test_workers_read_sources_of_other_packages_and_import_no_models(tmp_path):
    for name, content in (("my_plugin.py", PLUGIN), ("user.py", USER)):
        (tmp_path / name).write_text(content)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    program = [sys.executable, str(tmp_path / "user.py")]
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


ORPHANS = """
import multiprocessing, time
from mambaout_jax.data import TrainTransform, train_batches
from mambaout_jax.tasks.classification.transforms import TrainExample
from tests.data.photos import NumberedSource
if __name__ == "__main__":
    options = {"batch_size": 8, "steps_per_epoch": 4, "seed": 0, "num_workers": 1}
    batches = train_batches(NumberedSource(100), TrainExample(TrainTransform((8, 8))), **options)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.run
def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(worker)


def test_skipping_trains_on_the_next_decodable_record_and_counts():
    good = take(train_batches(NumberedSource(10), RESIZE, batch_size=5, steps_per_epoch=2, seed=0), 2)
    source = NumberedSource(10, bad=(8, 9), unreadable=(3,))
    batches = take(train_batches(source, RESIZE, batch_size=5, steps_per_epoch=2, seed=0, on_bad_record="skip"), 2)
    substitutes = {8: (0, 2), 9: (0, 1), 3: (4, 1)}
    for whole, skipped in zip(good, batches, strict=True):
        expected = [substitutes.get(label, (label, 0)) for label in whole["label"].tolist()]
        assert list(zip(skipped["label"].tolist(), skipped["skipped"].tolist(), strict=True)) == expected
        np.testing.assert_array_equal(skipped["image"][:, 0, 0, 0], skipped["label"])


def test_skipping_in_evaluation_masks_the_row_and_counts():
    source = NumberedSource(5, bad=(1,), unreadable=(4,))
    batches = list(eval_batches(source, EVAL, batch_size=4, on_bad_record="skip"))
    assert np.concatenate([b["mask"] for b in batches]).tolist() == [True, False, True, True] + [False] * 4
    assert np.concatenate([b["skipped"] for b in batches]).tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    assert np.concatenate([b["index"] for b in batches]).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


def test_skipping_ends_if_nothing_can_be_decoded():
    source = NumberedSource(6, bad=tuple(range(6)))
    batches = train_batches(source, RESIZE, batch_size=2, steps_per_epoch=3, seed=0, on_bad_record="skip")
    with pytest.raises(DataError, match="and the 5 records before it cannot be decoded either"):
        next(batches)


def test_real_broken_files_are_found(data_dir):
    source = open_source("photos/broken", "train", data_dir)
    batches = list(eval_batches(source, EVAL, batch_size=8, on_bad_record="skip"))
    assert sum(int(batch["skipped"].sum()) for batch in batches) == 5
    with pytest.raises(DataError, match="of dataset 'photos/broken': Pillow cannot decode the image"):
        list(eval_batches(source, EVAL, batch_size=8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 6, "host_count": 4}, "6 images cannot be split equally among 4 hosts"),
        ({"batch_size": 24}, "requires 24 images, .* has 23"),
        ({"steps_per_epoch": 6}, "requires 24 images, .* has 23"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4.0}, "batch_size is 4.0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"start_step": -1}, "start_step is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"host_index": 1}, "host_index is 1; expected 0 to 0"),
        ({"on_bad_record": "ignore"}, "on_bad_record is 'ignore'; expected one of raise, skip"),
    ],
)
def test_invalid_arguments_are_named_before_reading(options, words):
    options = {"batch_size": 4, "steps_per_epoch": 1, "seed": 0} | options
    with pytest.raises(DataError, match=words):
        train_batches(NumberedSource(23), RESIZE, **options)


class GroupedSource(NumberedSource):
    """Numbered records, of which every third is of another group."""

    def __init__(self, length):
        super().__init__(length)
        self.groups = np.arange(length) % 3 == 0


def test_batches_have_records_of_one_group():
    source = GroupedSource(40)
    batches = take(train_batches(source, RESIZE, batch_size=4, steps_per_epoch=9, seed=1), 18)
    for epoch in (batches[:9], batches[9:]):
        for batch in epoch:
            assert len({bool(source.groups[label]) for label in batch["label"]}) == 1
        used = labels(epoch)
        assert len(set(used)) == len(used) == 36
    assert labels(batches[:9]) != labels(batches[9:])
    later = take(train_batches(source, RESIZE, batch_size=4, steps_per_epoch=9, seed=1, start_step=11), 4)
    assert_equal(later, batches[11:15])
    kinds = [bool(source.groups[batch["label"][0]]) for batch in batches[:9]]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))  # in a random order


def test_an_epoch_of_groups_that_lacks_batches_repeats_its_first_ones():
    source = GroupedSource(14)  # 5 and 9 records: 1 + 2 batches of 4, and 14 // 4 = 3 steps
    batches = take(train_batches(source, RESIZE, batch_size=4, steps_per_epoch=3, seed=1), 3)
    assert all(len({bool(source.groups[label]) for label in batch["label"]}) == 1 for batch in batches)
    source = GroupedSource(11)  # 4 and 7: 1 + 1 batches, 2 steps
    first, second = take(train_batches(source, RESIZE, batch_size=4, steps_per_epoch=2, seed=1), 2)
    assert set(labels([first])).isdisjoint(labels([second]))
    with pytest.raises(DataError):
        take(train_batches(GroupedSource(6), RESIZE, batch_size=5, steps_per_epoch=1, seed=1), 1)
