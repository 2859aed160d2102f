"""Processes meet, miss each other by name, and stop at the same place."""

import socket
import textwrap
import time

import jax
import pytest
from jax._src import distributed as jax_distributed

from mambaout_jax import distributed
from tests.processes import run_python


def test_alone_there_is_nobody_to_wait_for():
    assert distributed.allgather_strings("somewhere", "word") == ["word"]
    distributed.assert_same_on_all_hosts({"python": "3"})
    assert distributed.is_first()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("localhost:1234", None, 0), "--num_processes is missing"),
        ((None, 2, None), "--coordinator and --process_id is missing"),
        (("localhost", 2, 0), "HOST:PORT of process 0 is expected"),
        (("localhost:x", 2, 0), "HOST:PORT of process 0 is expected"),
        (("localhost:1234", 2, 2), "--process_id is 2 of --num_processes 2; 0 to 1 are expected"),
    ],
)
def test_a_place_that_does_not_fit_is_named(arguments, sentence):
    with pytest.raises(distributed.ParallelError, match=sentence):
        distributed.initialize(*arguments)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(distributed.ParallelError, match=f"port {port} of --coordinator cannot be had"):
            distributed.initialize(f"localhost:{port}", 2, 0)


def test_words_come_in_order_and_who_is_missing_is_named():
    program = textwrap.dedent("""
        import time
        print(distributed.allgather_strings("greeting", f"from {process}"), distributed.allgather_strings("greeting"))
        try:
            distributed.assert_same_on_all_hosts({"jax": "1" if process == 1 else "2", "python": "3"})
        except distributed.ParallelError as error:
            print(error)
        if process != 1:
            try:
                distributed.allgather_strings("saving step 5", seconds=5)
            except distributed.LostProcessError as error:
                print(error)
    """)
    for process, out in enumerate(run_python(program, 3)):
        greeting, fault, *missing = out.splitlines()
        assert greeting == "['from 0', 'from 1', 'from 2'] ['', '', '']"
        assert (
            fault == "the processes do not run the same: process 1 has jax '1' where process 0 has '2'; make them equal"
        )
        assert missing == ([] if process == 1 else ["saving step 5: process 1 of 3 did not come in 5 s"])


def test_who_left_after_a_failure_is_heard_of():
    program = (
        "print(distributed.shutdown_after_local_failure() if process == 1 "
        "else distributed.shutdown_after_remote_failure())"
    )
    assert run_python(program, 2) == ["True\n", "None\n"]


def test_arrays_are_placed_without_the_others():
    # One that stops earlier does not come: what a process does between its ticks, it does alone.
    program = textwrap.dedent("""
        import jax.numpy as jnp, numpy as np
        mesh = distributed.make_mesh(fsdp=2)
        described = distributed.sharded_shapes(lambda: jnp.zeros((2, 2**14)), placed=mesh)
        if process == 0:
            arrays = np.arange(3), np.zeros((2, 2**14), np.float32)
            whole, split = distributed.put_global(arrays, (distributed.replicated(mesh), described.sharding))
            print(np.asarray(whole.addressable_data(0)), split.shape, split.addressable_data(0).shape)
    """)
    assert run_python(program, 2) == ["[0 1 2] (2, 16384) (2, 8192)\n", ""]


def test_all_stop_after_the_same_tick_though_one_was_asked_and_one_is_slow():
    # What a tick does is done together: nobody is more than one ahead.
    program = textwrap.dedent("""
        import time
        ticks = distributed.StopCoordinator()
        done = 0
        while ticks.go_on():
            done += 1
            if process == 1 and done == 4:
                ticks.stop("SIGTERM")
            distributed.allgather_strings("a step")
            time.sleep(0.05 * process)
        print(done, ticks.over(), ticks.reason)
    """)
    outs = run_python(program, 3)
    assert len(set(outs)) == 1, outs
    done, over, *reason = outs[0].split()
    assert int(done) >= 4
    assert over == "True"
    assert " ".join(reason) == "SIGTERM of process 1"


@pytest.mark.parametrize("asked", ["go_on", "over"])
def test_stopping_that_fails_is_no_stop(asked, monkeypatch):
    # A process that took it for one would leave, and wait for the others to leave as well.
    class NoAnswer:
        def key_value_dir_get(self, _):
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no answer")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax_distributed.global_state, "client", NoAnswer())
    ticks = distributed.StopCoordinator()

    def ask():
        for _ in range(100):
            getattr(ticks, asked)()
            time.sleep(0.1)

    with pytest.raises(distributed.LostProcessError, match="agreeing to stop: DEADLINE_EXCEEDED: no answer"):
        ask()
