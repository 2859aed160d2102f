"""A run in a bucket ends as a local run does, and an unusable bucket is reported in one sentence."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time

import fsspec
import pytest
from etils import epath

from mambaout_jax.report.html import write_report
from mambaout_jax.run import files, logs, workdir
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import find_write_error
from mambaout_jax.run.logs import LogFolder
from mambaout_jax.run.workdir import claim_workdir, open_workdir
from mambaout_jax.train.loop import train
from tests.fake_bucket import bucket
from tests.processes import ROOT, finish_all, start_all
from tests.train import tiny
from tests.train.runs import assert_same_weights, command


@pytest.fixture
def served(monkeypatch):
    """Serve an empty bucket to this process and its children, and return its objects."""
    pytest.importorskip("gcsfs", reason="buckets need etils[epath-gcs]")
    with bucket() as (objects, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        forget_clients()
        yield objects
        forget_clients()


def forget_clients():
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture
def silent(monkeypatch):
    """Make remote paths hang, with a short timeout."""
    for method in ("exists", "mkdir"):
        monkeypatch.setattr(type(epath.Path("gs://bucket")), method, lambda *_, **__: threading.Event().wait(5))
    for module in (files, workdir):
        monkeypatch.setattr(module, "REMOTE_SECONDS", 0.05)


def test_logs_of_a_local_run_are_in_its_workdir(tmp_path):
    folder = LogFolder(epath.Path(tmp_path), ["metrics.jsonl"])
    (folder.path / "metrics.jsonl").write_text("1\n")
    folder.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n"


def test_logs_of_a_remote_run_are_copied_on_request_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "is_remote", lambda path: True)
    (tmp_path / "board").mkdir()  # not needed in a bucket
    (tmp_path / "metrics.jsonl").write_text("1\n")
    folder = LogFolder(epath.Path(tmp_path), ["metrics.jsonl"])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    (folder.path / "board").mkdir()
    (folder.path / "board" / "events").write_bytes(b"\0")
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n"
    folder.copy()
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n"
    assert (tmp_path / "board" / "events").read_bytes() == b"\0"
    (folder.path / "metrics.jsonl").write_text("3\n")
    folder.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "3\n"
    assert not folder.path.exists()


def close_after(folder, ending):
    """Close the logs after an exception, as a failed run does."""
    with contextlib.ExitStack() as end:
        end.callback(folder.close)
        raise ending


def test_logs_that_cannot_be_copied_do_not_hide_what_ended_the_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(logs, "is_remote", lambda path: True)

    def cut_off(self):
        raise OSError("no network")

    monkeypatch.setattr(LogFolder, "copy", cut_off)
    folders = [LogFolder(epath.Path(tmp_path), ["metrics.jsonl"]) for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        close_after(folders[0], ZeroDivisionError())
    assert "could not be copied" in capfd.readouterr().err
    with pytest.raises(OSError, match="no network"):
        folders[1].close()
    assert not any(folder.path.exists() for folder in folders)


def test_a_bucket_that_does_not_respond_is_an_error(silent):
    with pytest.raises(RunError, match=r"workdir gs://bucket/run cannot be reached \(no answer within 0.05 s\)"):
        open_workdir("gs://bucket/run")
    assert find_write_error(epath.Path("gs://bucket/run")) == "no answer within 0.05 s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "is not writable (the bucket does not exist, or the permission storage.buckets.get is missing)"),
        ("unseen", "is not writable (the bucket does not exist, or the permission storage.buckets.get is missing)"),
        ("forbidden", "cannot be reached (Forbidden: b/forbidden/o someone does not have storage.objects.list access"),
        ("private", "401: gcloud auth application-default login); check its name"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_sentence(served, name, words, caplog):
    with pytest.raises(RunError) as refusal:
        claim_workdir(f"gs://{name}/run", tiny.config())
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not caplog.text


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs:/bucket/run", "gs://", "gs://bucket", "gs://two words/run"])
def test_what_is_neither_a_folder_nor_a_bucket_is_refused(name):
    with pytest.raises(RunError, match=f"{name} is not a valid workdir; expected a folder or gs://BUCKET/"):
        open_workdir(name)


def records(objects):
    return [json.loads(line) for line in objects["run/metrics.jsonl"][1].decode().splitlines()]


def whole_steps(objects):
    """List the steps whose checkpoints are complete."""
    return [
        int(name.split("/")[2]) for name in objects if re.fullmatch(r"run/checkpoints/\d+/commit_success.txt", name)
    ]


def start():
    """Start a run in the bucket."""
    typed = command("gs://bucket/run", save_every_steps=2)
    return subprocess.Popen(typed, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.run
def test_a_run_that_is_stopped_damaged_and_killed_ends_as_a_local_one(served, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/compiled")
    stopped = start()
    assert any(line.startswith("step 4/10") for line in stopped.stderr)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate()[1]
    assert stopped.returncode == os.EX_TEMPFAIL, said

    newest = max(whole_steps(served))
    assert newest >= 4
    for name in [name for name in served if name.startswith(f"run/checkpoints/{newest}/params/")]:
        del served[name]
    killed = start()
    said = "".join(itertools.takewhile(lambda line: "resumed from step" not in line, killed.stderr))
    assert f"gs://bucket/run/checkpoints/{newest} cannot be read" in said
    while not any(name.startswith(f"run/checkpoints/{newest}/") for name in served):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()  # during a save
    killed.communicate()

    out, said = start().communicate()
    assert "report: gs://bucket/run/report.html" in out, said
    before = dict(served)
    train(tiny.config(save_every_steps=2), "gs://bucket/run")
    assert served == before

    train(tiny.config(), tmp_path / "local")
    write_report(tmp_path / "local")
    for name, (_, content) in served.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert_same_weights(tmp_path / "run", tmp_path / "local")
    names = {path.name for path in (tmp_path / "run").iterdir()} - {f"unreadable.{newest}"}
    assert names == {path.name for path in (tmp_path / "local").iterdir()} - {".lock"}
    assert {2, 4, 5, 6, 8, 10} <= {record["step"] for record in records(served) if record["kind"] == "train"}
    assert [record["step"] for record in records(served) if record["kind"] == "eval"][-2:] == [5, 10]
    assert "has not finished" not in (tmp_path / "run" / "report.html").read_text()
    assert list((tmp_path / "compiled").iterdir())


@pytest.mark.nightly
def test_two_processes_share_a_bucket(served):
    short = tiny.flags(num_epochs=1, **{"optim.warmup_epochs": 0})
    codes, said = finish_all(start_all(2, [*short, "--workdir=gs://bucket/run"]))
    assert codes == [0, 0], said
    for process in (0, 1):
        assert any(f"ocdbt.process_{process}" in name for name in served)
    assert [record["kind"] for record in records(served)] == ["train", "train", "train", "eval", "save"]
