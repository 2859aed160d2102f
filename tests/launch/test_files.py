"""Pinned versions satisfy the requirements, and the YAML files agree with the launchers."""

import re
import string
import tomllib

import yaml  # ml_collections requires it
from packaging.requirements import Requirement

from tests.launch.conftest import ROOT

VALUES = {
    "NAME": "tiny",
    "IMAGE": "image",
    "SERVICE_ACCOUNT": "trainer",
    "BUCKET": "b",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CHIPS": "4",
    "CONFIG": "configs/imagenet.py:mambaout_tiny",
}
REQUEUE = 75


def by_name(lines):
    """Return requirements by their names."""
    found = map(Requirement, lines)
    return {re.sub("[-_.]+", "-", requirement.name.lower()): requirement for requirement in found}


def pinned():
    lines = (ROOT / "launch/constraints.txt").read_text().splitlines()
    found = by_name(line for line in lines if not line.startswith("#"))
    return {name: next(iter(requirement.specifier)) for name, requirement in found.items()}


def test_every_version_is_exact():
    assert {specifier.operator for specifier in pinned().values()} == {"=="}


def test_versions_satisfy_what_the_program_requires():
    versions = pinned()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, requirement in by_name([*project["dependencies"], *extras["train"], *extras["hub"]]).items():
        if name == "mambaout-jax":
            assert requirement.extras == {"hub"}
            continue
        assert name in versions
        assert requirement.specifier.contains(versions[name].version), requirement


def test_versions_include_packages_for_tpus_and_buckets():
    assert {"jaxlib", "libtpu", "gcsfs", "requests"} <= set(pinned())


def load(name):
    text = (ROOT / "launch" / name).read_text()
    return yaml.safe_load(string.Template(text).substitute(VALUES) if name == "contrib/gke_jobset.yaml" else text)


def test_jobset_runs_one_pod_per_host_and_restarts_after_75_and_disruptions():
    jobset = load("contrib/gke_jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 4, 4, 0)
    code, disruption = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert code == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [REQUEUE]},
    }
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    again, other = jobset["spec"]["failurePolicy"]["rules"]
    assert (again["action"], again["onJobFailureReasons"]) == ("RestartJobSet", ["PodFailurePolicy"])
    assert other["action"] == "FailJobSet"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    # Required by a policy for exit codes.
    assert pod["restartPolicy"] == "Never"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm"}


def test_jobset_and_skypilot_train_as_the_other_launchers_do():
    (replicated,) = load("contrib/gke_jobset.yaml")["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    words = [".venv/bin/python", "main.py", "--config=configs/imagenet.py:mambaout_tiny", "--workdir=gs://b/runs/tiny"]
    words += ["--distributed", "--config.data.data_dir=gs://b/datasets", "--config.model.dtype=bfloat16"]
    assert container["command"] == words
    (cache,) = container["env"]
    assert cache == {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/runs/compiled"}
    run = string.Template(load("contrib/skypilot.yaml")["run"].replace('"', "").replace("\\\n", " ")).substitute(VALUES)
    export, command = run.strip().splitlines()
    assert export == f"export {cache['name']}={cache['value']}"
    assert command.split() == words


def test_every_variable_of_the_jobset_is_explained():
    text = (ROOT / "launch/contrib/gke_jobset.yaml").read_text()
    head, body = text.split("apiVersion", 1)
    assert set(re.findall(r"\$\{(\w+)\}", body)) == set(VALUES)
    for name in VALUES:
        assert re.search(rf"export .*\b{name}=", head)


def test_skypilot_uses_spot_capacity_and_restarts_after_75():
    task = load("contrib/skypilot.yaml")
    resources = task["resources"]
    assert resources["use_spot"]
    assert resources["job_recovery"]["recover_on_exit_codes"] == [REQUEUE]
    assert resources["accelerators"] == "tpu-v5litepod-16"
    assert resources["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert task["setup"] == "launch/setup_host.sh"
    assert task["envs"] == {"NAME": None, "BUCKET": None, "CONFIG": VALUES["CONFIG"]}
