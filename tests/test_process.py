"""Calls, locks, signals and files end in one of two states, and never in between."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mambaout_jax import process


def test_a_call_in_time_returns_or_raises_what_the_function_does():
    assert process.within_seconds(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        process.within_seconds(5, lambda: 1 / 0)


def test_a_call_that_takes_too_long_is_given_up():
    released = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        process.within_seconds(0.05, lambda: released.wait(30))
    released.set()


def test_handlers_are_restored_once_and_for_all():
    before, heard = signal.getsignal(signal.SIGUSR1), []
    handlers = process.SignalHandlers((signal.SIGUSR1,), lambda number, _: heard.append(number))
    handlers.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    handlers.restore()
    handlers.restore()
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_unwinds_with_the_exit_code_of_a_shell():
    unwound = []

    def wait():
        with process.exit_on_signals(signal.SIGUSR1):
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(5)
            finally:
                unwound.append(True)

    with pytest.raises(SystemExit) as end:
        wait()
    assert end.value.code == 128 + signal.SIGUSR1
    assert unwound


def _is_locked(path, answers):
    with open(path, "a") as file:
        try:
            process.lock(file)
            answers.put(False)
        except BlockingIOError:
            answers.put(True)


def _ask_another_process(path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    other = context.Process(target=_is_locked, args=(path, answers))
    other.start()
    answer = answers.get(timeout=30)
    other.join()
    return answer


# Forking a process with threads warns, in Python 3.12 and in JAX; the child only opens a file.
@pytest.mark.run
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_lock_keeps_other_processes_out_until_the_file_is_closed(tmp_path):
    with open(tmp_path / "lock", "a") as file:
        process.lock(file)
        assert _ask_another_process(tmp_path / "lock")
    assert not _ask_another_process(tmp_path / "lock")


def test_a_file_that_cannot_be_finished_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    process.write_text_atomically(tmp_path / "a.json", "first")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(tmp_path), "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        process.write_text_atomically(tmp_path / "a.json", "second")
    assert (tmp_path / "a.json").read_text() == "first"


def test_a_scratch_folder_is_gone_afterwards_and_what_was_committed_stays(tmp_path):
    with process.scratch_folder(tmp_path / "model") as scratch:
        (scratch / "draft").mkdir()
        (scratch / "draft" / "weights").write_text("w")
        process.commit_folder(scratch / "draft", tmp_path / "model", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "w"


def test_a_file_that_appeared_meanwhile_is_replaced_only_if_asked(tmp_path):
    target = tmp_path / "weights"
    target.write_text("theirs")
    with process.scratch_folder(target) as scratch:
        (scratch / "draft").write_text("ours")
        with pytest.raises(FileExistsError):
            process.commit_file(scratch / "draft", target, replace=False)
        assert target.read_text() == "theirs"
        process.commit_file(scratch / "draft", target, replace=True)
    assert target.read_text() == "ours"


@pytest.mark.run
@pytest.mark.parametrize("form", ["script", "module"])
def test_a_program_starts_itself_again(form, tmp_path):
    code = "import json, sys\nfrom mambaout_jax.process import own_command\nprint(json.dumps(own_command()))\n"
    (tmp_path / "shows").mkdir()
    (tmp_path / "shows" / "__main__.py").write_text(code)
    (tmp_path / "shows.py").write_text(code)
    start = {"script": ["shows.py"], "module": ["-m", "shows"]}[form]
    if form == "module":
        (tmp_path / "shows.py").unlink()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    shown = subprocess.check_output([sys.executable, *start, "a b", "-x"], cwd=tmp_path, env=environment)
    assert json.loads(shown) == [*start, "a b", "-x"]
