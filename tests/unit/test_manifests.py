"""What ships for Kubernetes, containers and SLURM: valid against the published schemas, and as locked down as it says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.cluster.environment import read_constraints
from deploy.config.recipe import load_recipe
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

RAYJOB = ROOT / "deploy" / "kuberay" / "rayjob.yaml"
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
CRDS = Path(os.environ.get("BVBLEND_KUBERAY_CRDS", ROOT.parent / "shared" / "data" / "kuberay"))
"""KubeRay's CustomResourceDefinitions, `ray.io_rayjobs.yaml`."""


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(RAYJOB.read_text())}


@pytest.fixture(scope="module")
def rayjob_schema() -> dict[str, Any]:
    path = CRDS / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip(f"no KubeRay schemas in {CRDS}; BVBLEND_KUBERAY_CRDS names another place")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def unknown_fields(value: Any, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Fields that the schema does not have: the API server would drop them without a word."""
    if isinstance(value, dict) and "properties" in schema:
        for name, child in value.items():
            if name in schema["properties"]:
                yield from unknown_fields(child, schema["properties"][name], f"{place}.{name}")
            elif not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{place}.{name}"
    elif isinstance(value, list) and "items" in schema:
        for number, child in enumerate(value):
            yield from unknown_fields(child, schema["items"], f"{place}[{number}]")


def test_the_ray_job_fits_the_published_schema(documents: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    job = documents["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    jsonschema.validate(job, rayjob_schema)
    # apiVersion, kind and metadata are Kubernetes' own.
    assert list(unknown_fields(job["spec"], rayjob_schema["properties"]["spec"])) == []


def test_the_schema_check_finds_a_misspelt_field(documents: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    spec = documents["RayJob"]["spec"] | {"shutdownAfterJobFinish": True}
    assert list(unknown_fields(spec, rayjob_schema["properties"]["spec"])) == [".shutdownAfterJobFinish"]


def pods(job: Mapping[str, Any]) -> dict[str, Any]:
    """Pod templates by name."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], "submitter": job["spec"]["submitterPodTemplate"], **workers}


def test_every_pod_is_bounded_unprivileged_and_behind_the_policy_and_the_token(documents: dict[str, Any]) -> None:
    job, policy = documents["RayJob"], documents["NetworkPolicy"]
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert set(pods(job)) == {"head", "submitter", "learner", "rollout"}
    for name, template in pods(job).items():
        assert selected <= template["metadata"]["labels"].items(), name
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True, name
        for container in template["spec"]["containers"]:
            assert container["resources"]["limits"] and container["resources"]["requests"], name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            if name != "submitter":
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), name
                assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"], name
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    claim = documents["PersistentVolumeClaim"]["metadata"]["name"]
    volumes = pods(job)["head"]["spec"]["volumes"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": claim}} in volumes


def test_the_entrypoint_is_a_run_that_the_cluster_can_hold(documents: dict[str, Any]) -> None:
    spec = documents["RayJob"]["spec"]
    program, command, recipe, *options = spec["entrypoint"].split()
    assert (program, command) == ("bvblend", "train")
    options.remove("--wait-for-nodes")  # the autoscaler brings them when the run asks
    overrides = [value for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "--set"]
    config = load_recipe(ROOT / recipe.removeprefix("/opt/bvblend/"), overrides)
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    gpus = {name: int(pods(documents["RayJob"])[name]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for name in groups}  # fmt: skip
    assert config.learner.world_size * config.learner.gpus <= groups["learner"]["replicas"] * gpus["learner"]
    assert config.rollout.actors * config.rollout.gpus <= groups["rollout"]["maxReplicas"] * gpus["rollout"]
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" == f"ray{read_constraints()['ray']}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_hold_what_they_copy(path: Path) -> None:
    lines = [line.split() for line in path.read_text().splitlines()]
    users = [line[1] for line in lines if line[:1] == ["USER"]]
    assert users[-1] == "1000"
    for source in (word for line in lines if line[:1] == ["COPY"] for word in line[1:-1]):
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (hadolint := shutil.which("hadolint", path=beside_python)) is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_is_bash_and_tells_its_usage() -> None:
    script = ROOT / "deploy" / "slurm" / "bvblend.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
