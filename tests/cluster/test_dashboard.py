"""The Grafana dashboard shows the metrics that a study exports, and no others."""

import json
import re

import pytest
from ray.util.metrics import Gauge

from clue_ray.study.metrics import METRICS, Metric
from tests.manifests import FOLDER

DASHBOARD = FOLDER / "grafana.json"
EXPORTED = {metric.exported(name): metric for name, metric in METRICS.items()}


def expressions(node):
    """Yield every query of a dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "query"} and "clue_ray" in str(value):
                yield value
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def check(queries):
    """Raise where queries and metrics differ in names or labels."""
    shown = set()
    for query in queries:
        (name,) = re.findall(r"ray_clue_ray_\w+", query)
        labels = set(re.findall(r"(\w+)=~|by \(([\w, ]+)\)", query))
        used = {label.strip() for pair in labels for part in pair for label in part.split(",")}
        assert name in EXPORTED, f"{name} is not a metric"
        assert used - {""} <= {"study", *EXPORTED[name].tags}
        shown.add(name)
    assert shown == set(EXPORTED)


def test_the_dashboard_shows_every_metric_under_its_exported_name():
    check(expressions(json.loads(DASHBOARD.read_text())))


@pytest.mark.parametrize(
    ("old", "new"),
    [("runs_ended_total", "runs_ended"), ("clue_ray_loss", "clue_ray_los"), (", status)", ", x)")],
)
def test_a_dashboard_with_a_wrong_name_or_label_is_noticed(old, new):
    text = DASHBOARD.read_text()
    assert old in text
    with pytest.raises(AssertionError):
        check(expressions(json.loads(text.replace(old, new))))


def test_a_gauge_keeps_its_name():
    assert Metric(Gauge, "").exported("clue_ray_loss") == "ray_clue_ray_loss"
