"""tpu_vm.sh finishes a run on preemptible slices and leaves no resources that cost money."""

import itertools
import json
import re
import signal

import pytest

from tests.launch.conftest import HERE, TRAINING

pytestmark = pytest.mark.run

SLICE = ("--accelerator=v5litepod-16", *TRAINING)
WAITING = ["WAITING_FOR_RESOURCES", "PROVISIONING"]


def verbs(calls):
    """Return the verbs of the calls to the queue and to the hosts."""
    found = []
    for call in calls:
        if match := re.match(r"compute tpus queued-resources (create|delete)", call):
            found.append(match[1])
        elif match := re.search(r"(setup_host|on_host\.sh (?:step|start|running|stop))", call):
            found.append(match[1].removeprefix("on_host.sh "))
    return found


def test_preempted_and_requeued_run_finishes(cloud):
    text = cloud.play(
        "tpu_vm.sh",
        *SLICE,
        "--spot",
        "--config.data.data_dir=gs://b/data sets",
        # The second start: host 0 loses the run and its exit code, as in a reboot.
        script={"boots": [WAITING, WAITING], "follow": ["", "", "preempt", "", "killed"]},
        runs=[[100, ["hang", "hang"]], [200, ["hang", 75]], [300, [0, 0]]],
    )
    attempt = ["create", "setup_host", "step", "start"]
    assert verbs(cloud.calls()) == [*attempt, "delete", *attempt, "step", "start", "delete"]
    states = [line.removeprefix("tiny is ") for line in text.splitlines() if line.startswith("tiny is ")]
    assert states == [*(("ABSENT", *WAITING, "ACTIVE", "LOST") * 2)[:-1]]
    # In any order of the hosts.
    assert sorted(line for line in text.splitlines() if "| " in line) == [
        f"{host}| start {start} trains to step {100 * start + 100}" for host in range(2) for start in range(3)
    ]
    for host in range(2):
        for start in range(3):
            assert json.loads((cloud.home / f"command-{host}-{start}.json").read_text()) == [
                "gs://b/runs/compiled",
                "main.py",
                "--config=configs/imagenet.py:mambaout_tiny",
                "--workdir=gs://b/runs/tiny",
                "--distributed",
                "--config.data.data_dir=gs://b/data sets",
            ]


def test_permanent_exit_code_is_the_launchers(cloud):
    # The code of the host that failed takes precedence.
    text = cloud.play("tpu_vm.sh", *SLICE, code=3, runs=[[0, [75, 3]]])
    assert "the run ended with exit code 3" in text
    assert verbs(cloud.calls())[-2:] == ["start", "delete"]


def test_starts_without_a_new_checkpoint_are_bounded(cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, "--restarts=2", code=1, runs=[[10, [75, 75]], *[[0, [75, 75]]] * 9])
    assert verbs(cloud.calls()).count("start") == 4  # the one that saved, then two without a checkpoint
    assert "no new checkpoint after step 10 in gs://b/runs/tiny (starts without one: " in text
    assert verbs(cloud.calls())[-1] == "delete"


def test_quota_is_one_sentence(cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, code=1, script={"create": ["quota"]})
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "quota does not allow v5litepod-16 in us-west4-a" in errors[0]
    assert "Limit: 8" in errors[0]


def test_request_that_failed_says_why_and_is_deleted(cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, code=1, script={"boots": [["FAILED"]], "error": "no such image"})
    assert "error: v5litepod-16 in us-west4-a is not available: no such image" in text
    assert verbs(cloud.calls()) == ["create", "delete"]


def test_slice_that_cannot_be_deleted_is_an_error(cloud):
    text = cloud.play(
        "tpu_vm.sh", *SLICE, code=1, script={"delete": ["PERMISSION_DENIED: not yours"]}, runs=[[1, [0, 0]]]
    )
    assert "error: tiny could not be deleted and costs money" in text
    assert "PERMISSION_DENIED: not yours)" in text


def test_ssh_that_fails_for_good_is_one_sentence(cloud):
    world = {"script": {"start": ["cut"], "follow": ["unreachable"] * 9}, "runs": [[1, ["hang", "hang"]]]}
    text = cloud.play("tpu_vm.sh", *SLICE, code=1, **world)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "by ssh fail (ssh: connect to host 192.0.2.1 port 22: Connection timed out)" in errors[0]
    assert "gcloud compute tpus tpu-vm ssh tiny --zone=us-west4-a" in errors[0]
    attempt = ["step", "start"]
    assert verbs(cloud.calls()) == ["create", "setup_host", *attempt, *attempt, "stop", "delete"]
    assert (cloud.home / "starts-0").read_text() == "1"  # the second found it running


def test_ssh_that_fails_once_starts_nothing_twice(cloud):
    cloud.play("tpu_vm.sh", *SLICE, script={"follow": ["unreachable", "unready"]}, runs=[[1, [0, 0]]])
    assert verbs(cloud.calls()) == ["create", "setup_host", "step", "start", "delete"]


def test_temporary_failures_of_gcloud_end_nothing(cloud):
    down = "UNAVAILABLE: The service is currently unavailable"
    # The queue and, where it says ACTIVE, the node: four times in a row before there are hosts, and four afterwards.
    told = ["", *[down] * 4, "", down, "", "", down, "", down, down]
    script = {"boots": [["PROVISIONING"]], "describe": told, "follow": ["unreachable"]}
    cloud.play("tpu_vm.sh", *SLICE, script=script, runs=[[1, [0, 0]]])
    assert not json.loads((cloud.home / "script.json").read_text())["describe"]
    assert verbs(cloud.calls()) == ["create", "setup_host", "step", "start", "delete"]


def test_gcloud_that_always_fails_is_one_sentence(cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, code=1, script={"describe": ["UNAUTHENTICATED: Log in first"]})
    assert text.startswith("error: gcloud cannot read the state of tiny: (gcloud.")
    assert text.count("\n") == 1
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_has_the_run_save_and_deletes_the_slice(number, cloud):
    process = cloud.start("tpu_vm.sh", *SLICE, runs=[[1, ["hang", "hang"]]])
    cloud.wait_for("command-1-0.json")
    process.send_signal(number)
    text = cloud.finish(process, 75)
    assert "Stopping; the run saves a checkpoint" in text
    assert verbs(cloud.calls())[-2:] == ["stop", "delete"]
    for host in range(2):
        checkout = cloud.home / "hosts" / str(host) / "mambaout"
        assert checkout.joinpath("run.code").read_text() == "75\n"
        assert checkout.joinpath("run.log").read_text().endswith("saved\n")


def test_kept_run_is_found_again(cloud):
    process = cloud.start("tpu_vm.sh", *SLICE, "--keep", runs=[[1, ["hang", "hang"]]])
    cloud.wait_for("command-1-0.json")
    process.send_signal(signal.SIGINT)
    assert "its run continue and cost money" in cloud.finish(process, 75)
    before = len(cloud.calls())
    script = {"exists": True, "running": ["unreachable"], "follow": ["", "preempt"]}
    world = {"script": script, "runs": [[1, ["hang"] * 2], [2, [0, 0]]]}
    assert "Found the run" in cloud.play("tpu_vm.sh", *SLICE, **world)
    again = verbs(cloud.calls()[before:])
    assert again == ["running", "running", "delete", "create", "setup_host", "step", "start", "delete"]


def test_run_on_an_existing_slice_saves_before_the_slice_is_given_up(cloud):
    for host in range(2):
        (cloud.home / "hosts" / str(host)).mkdir(parents=True)
    cloud.play("tpu_vm.sh", *SLICE, code=1, script={"exists": True, "running": ["unreachable"] * 5})
    assert verbs(cloud.calls()) == [*["running"] * 5, "stop", "delete"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--accelerator=tpu7x-8"], "use launch/contrib/gce_mig.sh"),
        (["--accelerator=h100"], "expected v4-N, v5litepod-N, v5p-N or v6e-N"),
        (["--accelerator=v5litepod-banana"], "expected v4-N, v5litepod-N, v5p-N or v6e-N"),
        (["--workdir=runs/tiny"], "expected gs://BUCKET/"),
        (["--workdir=gs://b/"], "expected gs://BUCKET/"),  # its cache folder would be in another bucket
        (["--config=configs/none.py"], "--config is configs/none.py"),
        (["--config=tests/train/tiny.py"], "--config is tests/train/tiny.py"),
        (["--name=--quiet"], "--name is --quiet; expected lowercase letters"),
        (["--restarts=many"], "--restarts is many"),
        (["--zone="], "--zone is missing"),
        (["--spott"], "--spott is not an option of tpu_vm.sh"),
        (["--name"], "--name requires a value"),
    ],
)
def test_invalid_options_are_one_sentence(change, sentence, cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, *change, code=2)
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert sentence in text
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("accelerator", "image"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_image_is_chosen_for_the_accelerator(accelerator, image, cloud):
    text = cloud.play("tpu_vm.sh", *SLICE, f"--accelerator={accelerator}", "--dry-run")
    assert f"--accelerator-type={accelerator} --runtime-version={image}\n" in text


def test_dry_run_is_the_golden_one(cloud):
    text = cloud.play(
        "tpu_vm.sh", *SLICE, "--spot", "--project=p", "--config.data.data_dir=gs://b/datasets", "--dry-run"
    )
    assert text == (HERE / "golden/tpu_vm.txt").read_text()
    assert not cloud.calls()


def test_dry_run_prints_the_commands_that_run(cloud):
    printed = cloud.play("tpu_vm.sh", *SLICE, "--dry-run")
    cloud.play("tpu_vm.sh", *SLICE, runs=[[1, [0, 0]]])
    # They quote differently.
    bare = str.maketrans("", "", "'\"\\")
    commands = re.findall(r"^\+ gcloud (.*)$", printed, re.MULTILINE)
    calls = [call for call, _ in itertools.groupby(cloud.calls())]  # a slow run is polled more than once
    assert [command.translate(bare) for command in commands] == [call.translate(bare) for call in calls]
