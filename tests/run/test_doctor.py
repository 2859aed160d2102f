"""The doctor names what is wrong, and the host that differs from the others."""

import textwrap

import jax
import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.run import doctor
from mambaout_jax.run.doctor import Check
from tests.processes import run_python
from tests.train import tiny

MIXED = [f"--config={tiny.DIGITS}", "--config.augment.mixup_alpha=1.0", "--config.augment.mixup_prob=1.0"]


def look(data=None, workdir=None):
    return {line.name: line for line in doctor.run_checks(data, workdir)}


def test_a_sound_host_has_no_faults(tmp_path):
    lines = look(("digits", "train", None), tmp_path / "run")
    assert not any(line.faults for line in lines.values())
    assert lines["jax"].value == jax.__version__
    assert lines["hosts"].value == "1 of 1"
    assert lines["chips per host"].value == "1 x cpu"
    assert lines["collective"].value.endswith(" ms")
    assert lines["data"].value == "1,437 records of digits"
    assert "records/s" in lines["reading"].value
    assert not list((tmp_path / "run").iterdir())


def test_host_that_differs_from_the_majority_has_a_fault():
    findings = [Check("jax", version, must_match=True) for version in ("0.12", "0.10", "0.12")]
    line = doctor._compare(findings)
    assert line.value == "0.12"
    assert line.faults == ("process 1: 0.10 differs from 0.12 on most hosts; use the same on all",)


def test_values_that_may_differ_are_shown_for_all_hosts():
    line = doctor._compare([Check("reading", "5 records/s"), Check("reading", "7 records/s")])
    assert line == ("reading", "5 records/s, 7 records/s", ())


def test_missing_data_workdir_and_hosts_are_faults(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    lines = look(("digitz", "train", None), tmp_path / "file")
    assert "did you mean 'digits'" in lines["data"].faults[0]
    assert "it is not writable" in lines["workdir"].faults[0]
    assert lines["hosts"].faults == ("1 of 4 hosts joined; add --distributed on every host",)


def test_a_skewed_clock_is_a_fault(monkeypatch):
    times = iter(["1000.0", "1000.1", "1009.0"])
    monkeypatch.setattr(doctor.distributed, "allgather_strings", lambda name, value: list(times))
    monkeypatch.setattr(doctor.jax, "process_index", lambda: 2)
    (finding,) = doctor._clock()
    assert finding.value == "+8.90 s"
    assert "its clock differs by +8.9 s from the others" in finding.fault


def test_exit_code_and_last_line_depend_on_the_problems(tmp_path, capsys):
    assert main(["doctor", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("\nready to train\n")
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--workdir", str(tmp_path / "file")]) == 1
    out = capsys.readouterr().out
    assert out.endswith("\n1 problem found\n")
    assert "  problem: it is not writable" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.seed=1"], "--config.seed=1 changes a config but --config is missing; add --config=FILE"),
        (["--process-id=0"], "require --distributed"),
        (
            [f"--config={tiny.DIGITS}", "--config.mesh.fsdp=3"],
            "config.mesh.fsdp is 3; expected a divisor of the 1 device",
        ),
        (
            [*MIXED, "--config.augment.mixup_group=7"],
            "mixup_group is 7; expected a divisor of the 64 images per device",
        ),
    ],
)
def test_config_that_a_run_refuses_is_refused(capsys, words, sentence):
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_an_invalid_workdir_is_a_fault():
    for place in ("", "foo://b/x", "gs:/b/x", "gs://B!/x"):
        ((finding,),) = [doctor._workdir(place)]
        assert "expected" in finding.fault


@pytest.mark.run
def test_checks_compare_two_hosts(tmp_path):
    program = textwrap.dedent(f"""
        from etils import epath
        from mambaout_jax.run import doctor
        folder = epath.Path({str(tmp_path)!r}) / str(process)
        for line in [*doctor._on_all_hosts(doctor._devices), *doctor._on_all_hosts(doctor._collective)]:
            print(line.name, line.value, line.faults)
        print(doctor._on_all_hosts(lambda: doctor._workdir(folder)))
        folder = folder if process else epath.Path("/dev/null/run")
        print(doctor._on_all_hosts(lambda: doctor._workdir(folder)))
    """)
    for out in run_python(program, 2):
        assert "hosts 2 of 2 ()" in out
        assert "chips 2 ()" in out
        assert "it is a different folder on process 1" in out
        assert "process 0: it is not writable (Not a directory)" in out
