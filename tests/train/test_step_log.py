"""Throughput, time left and share of waiting in the records of a run, with a fake clock."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.train import metrics
from mambaout_jax.train.metrics import MetricWriter, SilentWriter, StepLog
from mambaout_jax.train.step import StepMetrics

BATCH_SIZE = 8


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1024.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def writer(tmp_path, clock):
    writer = MetricWriter(
        epath.Path(tmp_path), num_steps=100, first_step=0, steps_per_epoch=10, metrics=Classification.metrics
    )
    yield writer
    writer.close()


def record(input_wait):
    return {
        "step": 20,
        "epoch": 2.0,
        "seconds": 5.0,
        "loss": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "images_per_second": 640.0,
        "input_wait": input_wait,
        "skipped": 0,
    }


def test_a_resumed_run_drops_the_records_that_it_makes_again(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step}) for step in (5, 10, 15, 20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:2], "{damaged", *lines[2:], '{"kind": "tr']))
    writer = MetricWriter(
        epath.Path(tmp_path), num_steps=100, first_step=10, steps_per_epoch=10, metrics=Classification.metrics
    )
    writer.train(record(0.0))
    writer.close()
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert kept[:-1] == [*lines[:2], "{damaged", '{"kind": "tr']
    assert json.loads(kept[-1])["step"] == 20


@pytest.mark.parametrize(
    ("input_wait", "words"),
    [
        (0.04, "4 % waiting for data"),
        (0.06, "6 % waiting for data (input bound)"),
        (1.0, "100 % waiting for data (input bound)"),
    ],
)
def test_a_run_that_waits_for_data_is_called_input_bound(writer, clock, capsys, input_wait, words):
    writer.train(record(input_wait))
    assert capsys.readouterr().err == f"step 20/100, epoch 2.0, loss 0.5000, 640 images/s, {words}\n"


def test_time_left_is_computed_from_the_pace_since_the_first_record(writer, clock, capsys):
    clock.now += 1000.0  # compilation
    writer.train(record(0.0))
    clock.now += 16.0
    writer.train({**record(0.0), "step": 36})
    first, second = capsys.readouterr().err.splitlines()
    assert "left" not in first
    assert second.endswith(", 1:04 left")


def test_compilations_do_not_delay_the_estimated_end(writer, clock, capsys):
    writer.exclude(7.0)  # before the clock of the estimate starts
    writer.train(record(0.0))
    clock.now += 500.0  # an evaluation, of which 484 s were its compilation
    writer.exclude(484.0)
    writer.train({**record(0.0), "step": 36})
    assert capsys.readouterr().err.splitlines()[1].endswith(", 1:04 left")


def test_every_record_is_a_line_of_json(writer, tmp_path):
    writer.train(record(0.25))
    writer.train(record(0.5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"kind": "train"} | record(wait) for wait in (0.25, 0.5)]


class Records(list):
    """A writer that keeps its records."""

    def advance(self):
        pass

    def train(self, record):
        self.append(record)


def metrics_of(steps, **terms):
    count, number = jnp.int32(steps), jnp.float32(steps)
    return StepMetrics(count, number, terms, number, number, jnp.int32(-1), number, number, number)


def run(clock, waits, *, step_seconds=0.25, every, ahead=iter):
    """Run steps that wait for their batches, and return the records.

    Args:
        ahead: reads batches ahead of the steps.
    """
    records = Records()

    def batches():
        for wait in waits:
            clock.now += wait
            yield {"label": np.zeros(BATCH_SIZE, np.int32), "skipped": np.array([0, 1, 2])}

    log = StepLog(records, metrics_of(0), batch_size=BATCH_SIZE, steps_per_epoch=10, every=every, started=clock.now)
    metrics = log.fresh
    for step, batch in enumerate(log.timed(ahead(batches())), 1):
        assert list(batch) == ["label"]
        clock.now += step_seconds
        metrics = log.after_step(step, metrics_of(int(metrics.steps) + 1))
    clock.now += step_seconds  # the device finishes the last step
    log.flush(len(waits), metrics)
    return records


def test_share_of_waiting_and_rate_are_those_of_the_steps_since_the_last_record(clock):
    # A sum is read after the next step was dispatched, so that the first record covers the time of three steps.
    first, second, *_ = run(clock, [0.25, 0.75, 0.75, 0.0, 0.0, 0.0, 0.0], every=2)
    assert first["input_wait"] == (0.75 + 0.75) / (3 * 0.25 + 0.75 + 0.75)
    assert first["images_per_second"] == 2 * BATCH_SIZE / (3 * 0.25 + 0.75 + 0.75)
    assert second["input_wait"] == 0.0
    assert second["images_per_second"] == 2 * BATCH_SIZE / (2 * 0.25)


def test_wait_for_the_first_batch_is_not_part_of_the_throughput(clock):
    quick, slow = (run(clock, [start, 0.25, 0.25, 0.25], every=2) for start in (0.0, 512.0))
    assert [record["input_wait"] for record in quick] == [record["input_wait"] for record in slow]
    assert [record["images_per_second"] for record in quick] == [record["images_per_second"] for record in slow]
    assert slow[0]["seconds"] == quick[0]["seconds"] + 512.0


def test_the_batches_that_fill_the_queue_are_not_waited_for(clock):
    def prefetch(batches):
        return distributed.prefetch(batches, distributed.batch_sharding(distributed.make_mesh()), ["skipped"])

    filling = distributed.mesh.PREFETCHED + 1
    for record in run(clock, [64.0] * filling + [0.25] * 4, every=2, ahead=prefetch)[:1]:
        assert record["input_wait"] == (0.25 + 0.25) / (3 * 0.25 + 0.25 + 0.25)


def test_records_that_were_skipped_are_counted_over_the_run(clock):
    assert [record["skipped"] for record in run(clock, [0.0] * 5, every=2)] == [9, 15, 15]


def test_a_silent_writer_has_the_methods_of_a_writer():
    silent, writer = ({name for name in vars(kind) if name[0] != "_"} for kind in (SilentWriter, MetricWriter))
    assert silent == writer
