"""Containers may not change their own files, and every place that they write to is a volume."""

import re
import shutil
import subprocess

import pytest

from tests.manifests import FOLDER, MANIFESTS, ROOT, change, cluster_of, load

WRITTEN = {"/tmp", "/home/ray", "/scratch"}
"""Ray's sessions, the home folder (~/.ray, ~/.cache), and TMPDIR of the manifests."""


def writable(pod, container):
    """Return the paths of a container that lie on empty volumes of its pod."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {
        mount["mountPath"]
        for mount in container["volumeMounts"]
        if not mount.get("readOnly") and "emptyDir" in volumes[mount["name"]]
    }


def check_read_only(manifest):
    """Check each container of a manifest: of Ray, the autoscaler's, and the job submitter's."""
    cluster = cluster_of(manifest)
    head = cluster["headGroupSpec"]["template"]["spec"]
    helpers = [(head, cluster["autoscalerOptions"])]
    if "submitterPodTemplate" in manifest["spec"]:
        pod = manifest["spec"]["submitterPodTemplate"]["spec"]
        helpers += [(pod, container) for container in pod["containers"]]
    for pod, container in helpers:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert writable(pod, container) >= {"/tmp", "/home/ray"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            places = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert {places["TMPDIR"], places["RAY_TMPDIR"], *WRITTEN} <= writable(pod, container)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_root_of_every_container_is_read_only(name):
    manifest = load(name)
    check_read_only(manifest)
    where = ("spec", "rayClusterSpec") if manifest["kind"] == "RayJob" else ("spec",)
    pod = (*where, "workerGroupSpecs", 1, "template", "spec")
    container = (*pod, "containers", 0)
    for path, value in (
        ((*container, "securityContext", "readOnlyRootFilesystem"), False),
        ((*container, "volumeMounts", 1, "mountPath"), "/elsewhere"),
        ((*pod, "volumes", 0), {"name": "scratch", "configMap": {"name": "x"}}),
        ((*where, "autoscalerOptions", "securityContext", "readOnlyRootFilesystem"), False),
        ((*where, "autoscalerOptions", "volumeMounts"), []),
    ):
        with pytest.raises(AssertionError):
            check_read_only(change(manifest, *path, value=value))


def test_the_image_writes_nothing_after_it_stops_being_root():
    text = (FOLDER / "Dockerfile").read_text()
    before, user, after = text.rpartition("\nUSER ")
    assert user
    assert not re.search(r"^(RUN|COPY|ADD)\b", after, re.MULTILINE)
    assert "chmod" not in before
    home = re.search(r"^WORKDIR (\S+)$", after, re.MULTILINE)[1]
    assert home in WRITTEN


@pytest.mark.slow
def test_the_image_runs_without_root_on_a_read_only_disk():
    docker = shutil.which("docker") or shutil.which("podman")
    if not docker:
        pytest.skip("neither docker nor podman is installed, so the image cannot be built here")
    if subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip(f"{docker} does not work here, so the image cannot be built")
    tag = "clue-ray:read-only-check"
    subprocess.run([docker, "build", "-f", FOLDER / "Dockerfile", "-t", tag, ROOT], check=True)
    mounts = [word for place in sorted(WRITTEN) for word in ("--tmpfs", f"{place}:mode=1777")]
    command = [docker, "run", "--rm", "--read-only", "--cap-drop=ALL", *mounts, tag]
    script = (
        "import os, clue_ray; from clue_ray.cluster.session import connect; "
        "assert os.getuid() == 1000; "
        "ctx = connect(); ctx.__enter__(); ctx.__exit__(None, None, None); print('ran')"
    )
    found = subprocess.run([*command, "python", "-c", script], capture_output=True, text=True)
    assert "ran" in found.stdout, found.stderr[-500:]
