"""The files in `cluster/` are valid for Ray, AWS and KubeRay, and offer what a study requests.

Nothing is started. Each check must also reject a broken copy.
"""

import copy
import json
import logging
import re
import shlex
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from typing import Any

import jsonschema
import pytest
import ray
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from clue_ray.cli.main import app
from clue_ray.cluster.placement import count_workers_on
from clue_ray.spec.specs import ResourcesSpec, RunSpec, TrainSpec
from clue_ray.study.tune import trial_resources
from tests.manifests import (
    FOLDER,
    LAUNCHERS,
    MANIFESTS,
    ROOT,
    change,
    cluster_of,
    images,
    load,
    pod_specs,
    strict,
)
from tests.vulnerabilities import read_pins

VERSION = version("clue-ray")
SCHEMAS = ROOT.parent / "shared" / "kuberay-crds"
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
"""A free string in KubeRay's schema; its operator rejects other values at run time."""
ASKED = [
    ResourcesSpec(),
    ResourcesSpec(workers=8),
    ResourcesSpec(gpus_per_worker=0.25),
    ResourcesSpec(gpus_per_worker=1, cpus_per_worker=8),
    ResourcesSpec(gpus_per_worker=1, cpus_per_worker=8, workers=8),
]
"""What studies request: cores, fractions of GPUs, GPUs; for runs of one worker and of several."""


@pytest.fixture(scope="module", params=MANIFESTS)
def manifest_and_schema(request):
    file = SCHEMAS / MANIFESTS[request.param]
    if not file.exists():
        pytest.skip(f"KubeRay's schema is not at {file}")
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (served,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return load(request.param), jsonschema.Draft202012Validator(schema)


def test_manifests_follow_kuberays_schema(manifest_and_schema):
    manifest, validator = manifest_and_schema
    assert [error.message for error in validator.iter_errors(manifest)] == []
    cluster = cluster_of(manifest)
    for broken in (
        change(cluster, "workerGroupSpecs", 0, "minReplica", value=1),
        change(cluster, "headGroupSpec", "template", value=None),
        change(cluster, "authOptions", "mode", value="password"),
        change(cluster, "enableInTreeAutoscaling", value="yes"),
        change(
            cluster,
            "workerGroupSpecs",
            1,
            "template",
            "spec",
            "containers",
            0,
            "securityContex",
            value={},
        ),
    ):
        where = ("spec", "rayClusterSpec") if manifest["kind"] == "RayJob" else ("spec",)
        assert list(validator.iter_errors(change(manifest, *where, value=broken)))


def check_launcher(document: dict[str, Any]) -> dict[str, Any]:
    """Check a launcher file as `ray up` and AWS do; return it with defaults filled in."""
    config = prepare_config(copy.deepcopy(document))
    validate_config(config)
    if document["provider"]["type"] == "aws":
        for kind in document["available_node_types"].values():
            check_instance(kind["node_config"])
    return config


@cache
def instance_shape() -> Any:
    """Return AWS's description of the API call by which Ray starts a machine."""
    session = pytest.importorskip(
        "botocore.session", reason="botocore is not installed"
    ).get_session()
    return session.get_service_model("ec2").operation_model("RunInstances").input_shape


def check_instance(node: dict[str, Any]) -> None:
    """Check a machine against AWS's description."""
    shape = instance_shape()
    from botocore.validate import validate_parameters

    validate_parameters({**node, "MinCount": 1, "MaxCount": 1}, shape)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_pass_rays_own_validator(name):
    document = load(name)
    check_launcher(document)
    broken = [
        change(document, "upscaling_sped", value=2),
        change(document, "provider", "type", value=None),
    ]
    if name == "launcher-aws.yaml":
        node = ("available_node_types", "data")
        broken += [
            change(document, *node, "resource", value={"CPU": 1}),
            change(document, *node, "node_config", "InstanceTyp", value="m7i.large"),
            change(
                document,
                *node,
                "node_config",
                "MetadataOptions",
                "HttpPutResponseHopLimit",
                value="two",
            ),
        ]
    for each in broken:
        with pytest.raises(Exception, match=r"upscaling_sped|type|resource|InstanceTyp|HopLimit"):
            check_launcher(each)


def nodes_of(name: str, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the resources and labels of each kind of node, as Ray reads them from a file."""
    if name in MANIFESTS:
        logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
        cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": cluster_of(document)}
        kinds = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
        return {
            kind: {"resources": each["resources"], "labels": each["labels"]}
            for kind, each in kinds.items()
        }
    kinds = document.get("available_node_types")
    if kinds:
        return {
            kind: {"resources": each["resources"], "labels": each["labels"]}
            for kind, each in kinds.items()
        }
    head = " ".join(
        document["head_start_ray_commands"]
    )  # the file does not know the resources of hosts
    slots = json.loads(re.search(r"--resources='(\{.*?\})'", head)[1])
    assert "--num-cpus=0" in head
    assert re.search(r"--labels=pool=", document["worker_start_ray_commands"][-1])
    hosts = {"CPU": 64, "GPU": 8}
    return {
        "head": {"resources": {"CPU": 0, **slots}, "labels": {}},
        "data": {"resources": {"CPU": 16}, "labels": {"pool": "data"}},
        "train": {"resources": hosts, "labels": {"pool": "train"}},
    }


def check_nodes(kinds: dict[str, dict[str, Any]]) -> None:
    """Check that kinds of nodes offer everything that a study can request."""
    offered = [kind["resources"] for kind in kinds.values()]
    for resources in ASKED:
        holds = trial_resources(RunSpec(train=TrainSpec(steps=1), resources=resources))
        assert any(all(node.get(name, 0) >= n for name, n in holds.items()) for node in offered), (
            holds
        )
        assert sum(count_workers_on(node, resources) for node in offered) >= resources.workers, (
            resources
        )
    (head,) = (kind for kind in kinds.values() if "trial_slot" in kind["resources"])
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["trial_slot"] >= 8
    pools = {kind["labels"].get("pool"): kind["resources"] for kind in kinds.values()}
    assert not pools["data"].get("GPU")
    assert pools["data"]["CPU"]
    assert pools["train"]["GPU"]


@pytest.mark.parametrize("name", [*LAUNCHERS, *MANIFESTS])
def test_every_resource_that_a_study_asks_for_exists(name):
    document = load(name)
    kinds = nodes_of(name, document)
    check_nodes(kinds)
    for kind, resource in (("head", "trial_slot"), ("train", "GPU"), ("data", "CPU")):
        (found,) = (each for each in kinds if kind in each)
        with pytest.raises((AssertionError, ValueError, KeyError)):
            check_nodes(change(kinds, found, "resources", resource, value=None))
    if name in MANIFESTS:
        where = ("rayClusterSpec",) if document["kind"] == "RayJob" else ()
        path = ("spec", *where, "headGroupSpec", "rayStartParams", "resources")
        with pytest.raises(AssertionError, match="trial_slot"):
            check_nodes(nodes_of(name, change(document, *path, value=None)))


def check_secure(manifest: dict[str, Any]) -> None:
    """Check that pods fit Kubernetes's restricted profile, have limits, and require a token."""
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    containers = [cluster["autoscalerOptions"]]
    for pod in pod_specs(manifest):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(
            set(volume) <= {"name", "emptyDir", "configMap"} for volume in pod.get("volumes", [])
        )
        containers += pod["containers"]
    for container in containers:
        context = container["securityContext"]
        assert context["runAsNonRoot"]
        assert not context["allowPrivilegeEscalation"]
        assert not context.get("privileged")
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(
            container["resources"]["limits"]
        )


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_restricted_limited_and_ask_for_a_token(name):
    manifest = load(name)
    check_secure(manifest)
    where = ("spec", "rayClusterSpec") if manifest["kind"] == "RayJob" else ("spec",)
    pod = (*where, "workerGroupSpecs", 1, "template", "spec")
    for path, value in (
        ((*where, "authOptions", "mode"), "disabled"),
        ((*pod, "hostNetwork"), True),
        ((*pod, "volumes", 0), {"name": "host", "hostPath": {"path": "/"}}),
        ((*pod, "containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        ((*pod, "containers", 0, "securityContext", "capabilities"), None),
        ((*pod, "containers", 0, "resources", "limits"), None),
        ((*where, "autoscalerOptions", "securityContext", "seccompProfile"), None),
    ):
        with pytest.raises((AssertionError, KeyError)):
            check_secure(change(manifest, *path, value=value))


def check_job(manifest: dict[str, Any]) -> None:
    """Check that a job has a valid command and its study file, and is deleted when it ends."""
    spec = manifest["spec"]
    assert spec["submissionMode"] in SUBMISSION_MODES
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["backoffLimit"] == 0, "an error would be repeated on a new cluster"
    shell, _, line = shlex.split(
        spec["entrypoint"]
    )  # otherwise KubeRay's own shell would interpret &&
    change_to, folder, _, python, _, module, name, *words = shlex.split(line)
    assert (shell, change_to, python, module) == ("sh", "cd", "python", "clue_ray")
    command = typer.main.get_command(app).commands[name]
    parsed = command.make_context(name, words).params
    assert parsed["address"] == "auto"
    assert parsed["storage"]
    mounts = cluster_of(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    assert folder in {mount["mountPath"] for mount in mounts}
    assert parsed["study"].parent.name == ""


def test_the_jobs_command_is_one_of_ours():
    manifest = load("rayjob.yaml")
    check_job(manifest)
    command = manifest["spec"]["entrypoint"]
    for path, value, words in (
        ("submissionMode", "Magic", "Magic"),
        ("shutdownAfterJobFinishes", False, "False"),
        ("backoffLimit", 2, "an error would be repeated"),
        ("entrypoint", command.replace("--storage", "--store"), "No such option: --store"),
        ("entrypoint", command.replace(" run ", " walk "), "walk"),
        ("entrypoint", command.replace("cd /study", "cd /elsewhere"), "/elsewhere"),
    ):
        with pytest.raises(Exception, match=words):
            check_job(change(manifest, "spec", path, value=value))


def check_versions(document: dict[str, Any]) -> None:
    """Check that a file names the installed versions of Ray and of the package."""
    found = list(images(document))
    assert {image.rpartition(":")[2] for image in found} == {VERSION}, found
    if "kind" in document:
        assert cluster_of(document)["rayVersion"] == ray.__version__


@pytest.mark.parametrize("name", [*LAUNCHERS, *MANIFESTS])
def test_versions_are_those_installed(name):
    document = load(name)
    check_versions(document)
    text = (FOLDER / name).read_text()
    stale = [text.replace(f":{VERSION}", ":0.0.9", 1)]
    stale += [text.replace(f'"{ray.__version__}"', '"2.9.0"')] if name in MANIFESTS else []
    for each in stale:
        with pytest.raises(AssertionError):
            check_versions(yaml.safe_load(each))


def check_dockerfile(text: str) -> None:
    """Check that an image has this Python and pinned versions, and does not run as root."""
    base = re.search(r"^FROM python:(\S+)$", text, re.MULTILINE)[1]
    assert base.split(".")[:2] == [str(sys.version_info.major), str(sys.version_info.minor)]
    assert re.match(r"\d+\.\d+\.\d+-", base)
    installs = re.findall(r"^RUN pip install .+$", text, re.MULTILINE)
    assert installs
    own = "--no-deps --no-build-isolation ."
    assert all("-c constraints.txt" in i or "--require-hashes" in i or own in i for i in installs)
    assert sum("--no-deps --require-hashes -r requirements.txt" in line for line in installs) == 1
    assert int(re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1]) >= 1000
    assert f"clue-ray:{VERSION} " in text
    assert {"openssh-client", "rsync", "wget"} <= set(
        text.split()
    )  # Ray's launcher, KubeRay's probes
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / each).exists() for each in source.split())


def test_the_image_is_pinned_and_not_root():
    text = (FOLDER / "Dockerfile").read_text()
    check_dockerfile(text)
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().split()
    for old, new in (
        ("USER 1000", "USER 0"),
        (" openssh-client", ""),
        ("-c constraints.txt --index", "--index"),
        ("--require-hashes ", ""),
        ("--no-deps --no-build-isolation ", ""),
        ("python:3.11.7-slim-bookworm", "python:3-slim"),
        (f":{VERSION} ", ":latest "),
        ("COPY constraints.txt", "COPY constraint.txt"),
    ):
        assert old in text
        with pytest.raises((AssertionError, ValueError)):
            check_dockerfile(text.replace(old, new))


def test_every_package_of_the_image_but_torch_has_hashes_and_the_tested_version():
    locked = (FOLDER / "requirements.txt").read_text().split("\n")
    pins = read_pins((ROOT / "constraints.txt").read_text())
    found = read_pins("\n".join(line.rstrip(" \\") for line in locked))
    assert {name: pins[name] for name in found if name in pins} == {
        name: version for name, version in found.items() if name in pins
    }
    for at, line in enumerate(locked):
        if "==" in line:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", locked[at + 1]), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["train"], *extras["cluster"], *extras["aws"]]
    names = {canonicalize_name(Requirement(each).name) for each in wanted}
    assert names - {"torch"} <= set(found), "run make lock"


@pytest.mark.parametrize("name", [*LAUNCHERS, *MANIFESTS, "Dockerfile"])
def test_files_open_with_when_to_use_them(name):
    lines = (FOLDER / name).read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert lines[1].startswith("# Use it ")
    assert not lines[3].startswith("#")
    assert name in (FOLDER / "README.md").read_text()
