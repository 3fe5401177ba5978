"""The files in `cluster/` for tests: loading, broken copies, pods, images, strict schemas."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster"
LAUNCHERS = ("launcher-onprem.yaml", "launcher-aws.yaml")
MANIFESTS = {"rayjob.yaml": "ray.io_rayjobs.yaml", "raycluster.yaml": "ray.io_rayclusters.yaml"}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def change(document: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    """Copy a document with one value replaced, or deleted if the new value is None."""
    broken = copy.deepcopy(document)
    node = broken
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return broken


def strict(schema: Any) -> Any:
    """Make a schema of KubeRay reject unknown fields, and translate Kubernetes's extensions."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema = {**schema, "type": ["integer", "string"]}
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        schema["additionalProperties"] = False
    return schema


def images(document: Any) -> Iterator[str]:
    """Yield every image that a file names."""
    if isinstance(document, dict):
        yield from (
            value for key, value in document.items() if key == "image" and isinstance(value, str)
        )
        yield from (image for value in document.values() for image in images(value))
    elif isinstance(document, list):
        yield from (image for value in document for image in images(value))


def pod_specs(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(manifest)
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    if "submitterPodTemplate" in manifest["spec"]:
        yield manifest["spec"]["submitterPodTemplate"]["spec"]
