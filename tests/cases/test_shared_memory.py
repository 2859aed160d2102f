"""Batches of data workers leave nothing in shared memory, and go through pipes if it is too small."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mambaout_jax.data import EvalTransform, eval_batches, pipeline
from mambaout_jax.tasks.classification.transforms import EvalExample
from tests.data.photos import NumberedSource
from tests.marks import slow_but

ROOT = Path(__file__).parent.parent.parent
EVAL = EvalExample(EvalTransform((24, 24), channels=1), max_labels=1)
PROGRAM = """
import itertools, sys
from mambaout_jax.data import EvalTransform, eval_batches
from mambaout_jax.tasks.classification.transforms import EvalExample
from tests.data.photos import NumberedSource
if __name__ == "__main__":
    transform = EvalExample(EvalTransform((24, 24), channels=1), max_labels=1)
    batches = eval_batches(NumberedSource(330), transform, batch_size=32, num_workers=2)
    print(len(list(itertools.islice(batches, int(sys.argv[1])))))
    if sys.argv[2] == "close":
        batches.close()
"""


@pytest.mark.run
@pytest.mark.parametrize(
    ("count", "end"), slow_but([(11, "close")], [(3, "close"), (11, "close"), (100, "leave")], "nightly")
)
def test_no_shared_memory_is_leaked(tmp_path, count, end):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = {"capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, str(tmp_path / "program.py"), str(count), end], check=False, **options)
    assert (done.returncode, done.stdout.strip()) == (0, str(min(count, 11)))
    assert "leaked" not in done.stderr


@pytest.mark.run
def test_batches_are_the_same_without_shared_memory(monkeypatch):
    batches = {}
    for fits in (True, False):
        monkeypatch.setattr(pipeline, "_fits_shared_memory", lambda *_, fits=fits: fits)
        batches[fits] = list(eval_batches(NumberedSource(100), EVAL, batch_size=32, num_workers=2))
    for batch, other in zip(batches[True], batches[False], strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, other[key])


def test_the_memory_of_docker_is_enough_for_small_batches_alone(monkeypatch):
    usage = pipeline.shutil.disk_usage("/")
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage._replace(free=64 * 2**20))
    sizes = [64 * side * side * 3 for side in (32, 224)]
    assert [pipeline._fits_shared_memory(size, 2, 2) for size in sizes] == [True, False]
