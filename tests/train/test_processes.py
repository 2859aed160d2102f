"""A run of several processes equals a run of one, stops at one step, and resumes with any number."""

import os
import shutil
import signal
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mambaout_jax.run.teacher import fingerprint
from mambaout_jax.run.workdir import load_run
from tests.processes import finish_all, run_python, start_all
from tests.train import tiny
from tests.train.runs import assert_same_weights, records

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A finished run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    codes, said = finish_all(start_all(2, command(workdir)))
    assert codes == [0, 0], said
    return workdir


def command(workdir, **changes):
    return [*tiny.flags(**changes), f"--workdir={workdir}"]


def losses(workdir):
    return {record["step"]: record["loss"] for record in records(workdir, "train")}


def wait_for_step(workdir, step):
    deadline = time.monotonic() + 300
    while not any(reached >= step for reached in losses(workdir)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_equals_one_process(workdir, alone):
    """Compare losses and the predictions for every image."""
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-5)
    ours, theirs = (records(run, "eval")[-1]["ema"] for run in (workdir, alone))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours["count"] == 360
    ours, theirs = (np.load(run / "predictions.npz") for run in (workdir, alone))
    np.testing.assert_array_equal(ours["labels"], theirs["labels"])
    np.testing.assert_allclose(ours["probabilities"], theirs["probabilities"], rtol=1e-4)


def test_two_processes_equal_one_and_evaluate_every_image_once(unbroken, two_processes):
    assert_equals_one_process(two_processes, unbroken)


@pytest.mark.nightly
def test_four_processes_equal_one_and_evaluate_every_image_once(unbroken, tmp_path):
    codes, said = finish_all(start_all(4, command(tmp_path / "run")))
    assert codes == [0] * 4, said
    assert_equals_one_process(tmp_path / "run", unbroken)


def test_a_signal_to_one_stops_all_at_the_same_step_and_any_number_resumes(unbroken, two_processes, tmp_path):
    stopped, again = tmp_path / "stopped", tmp_path / "again"
    two = start_all(2, command(stopped, **{"data.num_workers": 1}))
    wait_for_step(stopped, 2)
    # As in a system shutdown: signal the process, its child that trains, and the data worker.
    (child,) = Path(f"/proc/{two[1].pid}/task/{two[1].pid}/children").read_text().split()
    os.killpg(int(child), signal.SIGTERM)
    time.sleep(0.2)
    two[1].send_signal(signal.SIGTERM)
    codes, said = finish_all(two)
    assert codes == [os.EX_TEMPFAIL] * 2, said
    assert all("stopped by SIGTERM of process 1; the state is saved" in text for text in said)
    assert 2 <= load_run(stopped, "raw").step < 10
    shutil.copytree(stopped, again)

    codes, said = finish_all(start_all(1, command(stopped)))
    assert codes == [0], said
    assert losses(stopped)[10] == pytest.approx(losses(unbroken)[10], rel=1e-5)

    codes, said = finish_all(start_all(2, command(again)))
    assert codes == [0, 0], said
    assert_same_weights(again, two_processes)


@pytest.mark.nightly
def test_a_signal_to_one_that_still_compiles_stops_all(tmp_path):
    # The other process has compiled and dispatched some steps; both finish those steps.
    program = textwrap.dedent(f"""
        import os, pathlib, signal, time
        from mambaout_jax.run import signals
        from mambaout_jax.run.errors import StoppedError
        from mambaout_jax.train.loop import train
        from mambaout_jax.train.trace import StepTrace
        from tests.train import tiny
        workdir = pathlib.Path({str(tmp_path)!r})
        compile_, before = signals.StopSignals.interruptible, StepTrace.before
        def tell_before_a_step(trace, step):
            (workdir / "stepping").touch()
            before(trace, step)
        def compile_slowly(stop, work, sentence):
            signals.StopSignals.interruptible = compile_
            while not (workdir / "stepping").exists():
                time.sleep(0.1)
            signal.raise_signal(signal.SIGTERM)
            return compile_(stop, lambda: time.sleep(2) or work(), sentence)
        if process == 0:
            StepTrace.before = tell_before_a_step
        else:
            signals.StopSignals.interruptible = compile_slowly
        try:
            train(tiny.config(), workdir)
        except StoppedError as error:
            print(error, flush=True)
            distributed.shutdown()
            os._exit(0)
    """)
    assert [out.splitlines()[-1] for out in run_python(program, 2)] == ["stopped by SIGTERM of process 1"] * 2
    assert 1 <= load_run(tmp_path, "raw").step < 10


def test_a_killed_process_ends_the_other_and_is_named(tmp_path):
    workdir = tmp_path / "run"
    two = start_all(2, command(workdir, num_epochs=400, eval_every_epochs=400))
    wait_for_step(workdir, 2)
    two[1].kill()  # its child, which trains, ends too
    codes, said = finish_all(two)
    assert codes == [os.EX_TEMPFAIL, -signal.SIGKILL]
    assert "lost process 1: no heartbeat" in said[0]


def test_differences_between_processes_are_named(tmp_path):
    both = start_all(2, command(tmp_path / "run"), flags=lambda process: [f"--config.seed={process}"])
    codes, said = finish_all(both)
    assert codes == [2, 2], said
    assert all(
        "process 1 has config.seed '1' where process 0 has '0'; use the same on all hosts" in text for text in said
    )
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
    codes, said = finish_all(start_all(2, tiny.flags(), flags=lambda process: [f"--workdir={tmp_path / str(process)}"]))
    assert codes == [2, 2], said
    assert all(" on process 1 is not the folder of process 0" in text for text in said)


def test_every_process_loads_the_weights_of_another_run(unbroken):
    program = (
        "from mambaout_jax.run.teacher import fingerprint\n"
        "from mambaout_jax.run.workdir import restore_run\n"
        f"print(fingerprint(restore_run({str(unbroken)!r}).variables))\n"
        "distributed.shutdown()"
    )
    alone = fingerprint(load_run(unbroken).variables)
    assert [text.split()[-1] for text in run_python(program, 2)] == [alone, alone]
