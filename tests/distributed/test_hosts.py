"""Processes exchange values, name missing processes, and stop after the same operation."""

import socket
import textwrap
import time

import jax
import pytest
from jax._src import distributed as jax_distributed

from mambaout_jax import distributed
from tests.processes import run_python


def test_a_single_process_does_not_wait():
    assert distributed.allgather_strings("somewhere", "value") == ["value"]
    distributed.assert_same_on_all_hosts({"python": "3"})
    assert distributed.is_first()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("localhost:1234", None, 0), "missing --num-processes"),
        ((None, 2, None), "missing --coordinator and --process-id"),
        (("localhost", 2, 0), "expected HOST:PORT of process 0"),
        (("localhost:x", 2, 0), "expected HOST:PORT of process 0"),
        (("localhost:1234", 2, 2), "--process-id is 2; expected 0 to 1 with --num-processes=2"),
    ],
)
def test_an_invalid_address_is_named(arguments, sentence):
    with pytest.raises(distributed.DistributedError, match=sentence):
        distributed.initialize(*arguments)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(distributed.DistributedError, match=f"port {port} of --coordinator is not available"):
            distributed.initialize(f"localhost:{port}", 2, 0)


@pytest.mark.run
def test_values_are_in_order_and_missing_processes_are_named():
    program = textwrap.dedent("""
        import time
        print(distributed.allgather_strings("greeting", f"from {process}"), distributed.barrier("greeting"))
        try:
            distributed.assert_same_on_all_hosts({"jax": "1" if process == 1 else "2", "python": "3"})
        except distributed.DistributedError as error:
            print(error)
        if process != 1:
            try:
                distributed.barrier("saving step 5", seconds=5)
            except distributed.LostProcessError as error:
                print(error)
    """)
    for process, out in enumerate(run_python(program, 3)):
        greeting, fault, *missing = out.splitlines()
        assert greeting == "['from 0', 'from 1', 'from 2'] None"
        assert fault == "the processes differ: process 1 has jax '1' where process 0 has '2'; use the same on all hosts"
        assert missing == ([] if process == 1 else ["saving step 5: process 1 of 3 did not arrive within 5 s"])


@pytest.mark.run
def test_a_failure_of_another_process_is_noticed():
    program = (
        "print(distributed.shutdown_after_local_failure() if process == 1 "
        "else distributed.shutdown_after_remote_failure())"
    )
    assert run_python(program, 2) == ["True\n", "None\n"]


@pytest.mark.run
def test_put_global_does_not_wait_for_other_processes():
    # Processes that stop earlier do not take part: between counted operations there is no communication.
    program = textwrap.dedent("""
        import jax.numpy as jnp, numpy as np
        mesh = distributed.make_mesh(fsdp=2)
        described = distributed.sharded_shapes(lambda: jnp.zeros((2, 2**14)), sharding=mesh)
        if process == 0:
            arrays = np.arange(3), np.zeros((2, 2**14), np.float32)
            whole, split = distributed.put_global(arrays, (distributed.replicated(mesh), described.sharding))
            print(np.asarray(whole.addressable_data(0)), split.shape, split.addressable_data(0).shape)
    """)
    assert run_python(program, 2) == ["[0 1 2] (2, 16384) (2, 8192)\n", ""]


@pytest.mark.run
def test_all_stop_after_the_same_operation_if_one_is_signalled_and_one_is_slow():
    # A counted operation is collective: no process is more than one ahead.
    program = textwrap.dedent("""
        import time
        coordinator = distributed.StopCoordinator()
        done = 0
        while coordinator.should_continue():
            done += 1
            if process == 1 and done == 4:
                coordinator.request_stop("SIGTERM")
            distributed.barrier("a step")
            time.sleep(0.05 * process)
        print(done, coordinator.finished(), coordinator.reason)
    """)
    outs = run_python(program, 3)
    assert len(set(outs)) == 1, outs
    done, finished, *reason = outs[0].split()
    assert int(done) >= 4
    assert finished == "True"
    assert " ".join(reason) == "SIGTERM of process 1"


@pytest.mark.parametrize("method", ["should_continue", "finished"])
def test_a_failed_agreement_is_not_a_stop(method, monkeypatch):
    # A process that stopped would exit and wait for the others to exit as well.
    class NoAnswer:
        def key_value_dir_get(self, _):
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no answer")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax_distributed.global_state, "client", NoAnswer())
    coordinator = distributed.StopCoordinator()

    def call():
        for _ in range(100):
            getattr(coordinator, method)()
            time.sleep(0.1)

    words = r"could not agree on a step to stop at \(DEADLINE_EXCEEDED: no answer\)"
    with pytest.raises(distributed.LostProcessError, match=words):
        call()
