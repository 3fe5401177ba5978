"""Fields that came after the hashes of corpora and runs: at their defaults they change no hash."""

from typing import Any

from clue_ray.spec.yaml import Spec

NEW_FIELDS = ("timestamp_format", "separator", "items")
"""Optional fields of logs that are younger than PREPARATION of corpora."""
NEW_IN_RUNS = {"train": ("past_future",), "encoder": ("time",)}
"""Fields of runs younger than RECIPE: at their defaults they are not part of a run's id."""


def without_new_fields(spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out fields that came later and are not set, so that older corpora keep their key."""
    return {k: v for k, v in spec.items() if v is not None or k not in NEW_FIELDS}


def without_new_in_runs(part: str, spec: Spec) -> dict[str, Any]:
    """Return the values of a part of a run, without younger fields that are at their defaults."""
    fields = type(spec).model_fields
    new = {n for n in NEW_IN_RUNS[part] if getattr(spec, n) == fields[n].default}
    return spec.model_dump(mode="json", exclude=new)
