"""The launchers for Compute Engine prepare and train like tpu_vm.sh; setup_host.sh installs what was tested."""

import re
import shlex

import pytest

from tests.launch.conftest import HERE, ROOT, TRAINING

pytestmark = pytest.mark.run

GROUP = ("--topology=2x2x2", *TRAINING)
TARS = ("--name=prepare", "--zone=us-west4-a", "--tars=gs://b/imagenet", "--data-dir=gs://b/datasets")


def test_preempted_group_is_created_again(cloud):
    text = cloud.play(
        "contrib/gce_mig.sh",
        *GROUP,
        "--spot",
        "--project=p",
        script={
            "boots": [["PROVISIONING", "STAGING"], []],
            "describe": ["", "", "UNAVAILABLE"],
            "follow": ["", "", "", "preempt"],
        },
        runs=[[100, ["hang", "hang"]], [200, [0, 0]]],
    )
    words = [call.split() for call in cloud.calls()]
    parts = [(word[1], *word[2:4]) for word in words if "ssh" not in word]
    made = [
        ("resource-policies", "create", "workload-policy"),
        ("instance-templates", "create", "tiny"),
        ("instance-groups", "managed", "create"),
    ]
    deleted = [
        ("instance-groups", "managed", "delete"),
        ("instance-templates", "delete", "tiny"),
        ("resource-policies", "delete", "tiny"),
    ]
    changes = [part for part in parts if "create" in part or "delete" in part]
    assert changes == [*made, *deleted, *made, *deleted]
    # In any order of the hosts.
    assert sorted(line for line in text.splitlines() if "| " in line) == [
        f"{host}| start {start} trains to step {100 * start + 100}" for host in range(2) for start in range(2)
    ]


@pytest.mark.parametrize(
    ("keep", "script", "sentence"),
    [
        (
            ["--keep"],
            {"follow": ["unreachable"] * 10},
            "(ssh: connect to host 192.0.2.1 port 22: Connection timed out); try 'gcloud compute ssh host0 --zone",
        ),
        (
            [],
            {"follow": ["unreachable"], "describe": ["", "", *["UNAVAILABLE: try later"] * 5]},
            "gcloud cannot read the state of tiny: (gcloud.compute.instance-groups.managed.list-instances) UNAVAILABLE",
        ),
    ],
)
def test_group_that_is_given_up_saves_unless_it_is_kept(keep, script, sentence, cloud):
    world = {"script": script, "runs": [[1, ["hang", "hang"]]]}
    text = cloud.play("contrib/gce_mig.sh", *GROUP, "--project=p", *keep, code=1, **world)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    for host in range(2):
        code = cloud.home / "hosts" / str(host) / "mambaout/run.code"
        assert not code.exists() if keep else code.read_text() == "75\n"
        assert (cloud.home / f"starts-{host}").read_text() == "1"


def test_quota_of_a_group_is_one_sentence(cloud):
    script = {"boots": [["PROVISIONING"] * 9], "error": "Quota 'TPUS_PER_TPU_FAMILY' exceeded"}
    text = cloud.play("contrib/gce_mig.sh", *GROUP, "--project=p", code=1, script=script)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "quota does not allow a TPU7x slice of 2x2x2 in us-west4-a" in errors[0]
    assert "(Quota 'TPUS_PER_TPU_FAMILY' exceeded)" in errors[0]
    assert "resource-policies delete" in cloud.calls()[-1]


@pytest.mark.parametrize("topology", ["16", "2x2", "2x2x", "2x3x1", "axbxc", "2x2x2x2", "0x4x4", "08x2x2"])
def test_invalid_topology_is_one_sentence(topology, cloud):
    text = cloud.play("contrib/gce_mig.sh", *GROUP, f"--topology={topology}", code=2)
    assert f"--topology is {topology}; expected chips along three axes" in text


def test_dry_run_of_a_group_is_the_golden_one(cloud):
    text = cloud.play("contrib/gce_mig.sh", *GROUP, "--reservation=ours", "--project=p", "--dry-run")
    assert text == (HERE / "golden/gce_mig.txt").read_text()


def test_one_host_needs_no_policy(cloud):
    text = cloud.play("contrib/gce_mig.sh", *GROUP, "--topology=2x2x1", "--dry-run")
    assert "--size=1 " in text
    assert "workload-policy" not in text


def test_imagenet_is_prepared_and_the_machine_deleted(cloud):
    script = {"boots": [["PROVISIONING", "STAGING"]], "describe": ["", "", "UNAVAILABLE"]}
    # The fake host has no dataset to prepare: its gcloud and its Python are fakes.
    text = cloud.play("prepare_imagenet.sh", *TARS, script=script, runs=[[0, [0, 0]]])
    assert text.count("prepare is ") == 4
    assert "Done" in text
    calls = cloud.calls()
    assert "cp --no-clobber" in next(call for call in calls if "storage" in call)
    assert calls[-1].startswith("compute instances delete prepare")
    command = (cloud.home / "command-0-0.json").read_text()
    assert '"-m", "mambaout_jax", "prepare", "imagenet", "--tars", "imagenet", "--data-dir=gs://b/datasets"]' in command


def test_dry_run_of_the_preparation_is_the_golden_one(cloud):
    text = cloud.play("prepare_imagenet.sh", *TARS, "--dry-run")
    assert text == (HERE / "golden/prepare_imagenet.txt").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--tars=/data"], "--tars is /data; expected gs://BUCKET/FOLDER"),
        (["--data-dir=datasets"], "--data-dir is datasets"),
        (["--config.seed=1"], "--config.seed=1 is an option of training runs"),
    ],
)
def test_invalid_options_of_the_preparation_are_one_sentence(change, sentence, cloud):
    text = cloud.play("prepare_imagenet.sh", *TARS, *change, code=2)
    assert sentence in text
    assert text.count("\n") == 1


def test_host_gets_the_tested_versions(cloud):
    text = cloud.play("setup_host.sh", "--dry-run")
    assert "uv venv --quiet --python=3.12 " in text
    assert "--constraint=CHECKOUT/launch/constraints.txt --editable 'CHECKOUT[train]' 'jax[tpu]'" in text
    assert "curl" not in text  # uv is already installed
    assert "--editable 'CHECKOUT[train]' jax 'etils[epath-gcs]'" in cloud.play(
        "setup_host.sh", "--dry-run", "--jax=cpu"
    )
    assert "--jax is gpu; expected tpu or cpu" in cloud.play("setup_host.sh", "--jax=gpu", code=2)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "contrib/gce_mig.sh", "prepare_imagenet.sh", "setup_host.sh"])
def test_help_lists_every_option_and_variable(script, cloud):
    text = cloud.play(script, "--help")
    source = (ROOT / "launch" / script).read_text()
    parsed = source.split('parse "')[1].split('"$@"')[0] if 'parse "' in source else "--jax"
    for option in (*parsed.replace('"', " ").replace("\\", " ").split(), "--dry-run", "--help"):
        assert f"\n  {option} " in text
    assert ("MAMBAOUT_POLL_SECONDS" in text) == (script != "setup_host.sh")


def test_commands_of_the_page_are_understood(cloud):
    text = (ROOT / "docs/pods.md").read_text().replace("\\\n", " ")
    typed = [shlex.split(line) for line in re.findall(r"^launch/.*\.sh .*", text, re.MULTILINE)]
    assert {words[0] for words in typed} == {
        "launch/prepare_imagenet.sh",
        "launch/tpu_vm.sh",
        "launch/contrib/gce_mig.sh",
    }
    for launcher, *arguments in typed:
        assert "\nDone\n" in cloud.play(launcher.removeprefix("launch/"), *arguments, "--dry-run")
