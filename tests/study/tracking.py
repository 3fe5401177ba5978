"""Stand-ins of MLflow and W&B with the calls that clue-ray makes: they remember what they get."""

import re
from collections import defaultdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class StandIn(ModuleType):
    """A module of a tracker that is not installed.

    Attributes:
        runs: settings, points, artefacts and status of each run that was sent, by its name.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.runs: dict[str, dict[str, Any]] = defaultdict(
            lambda: {"settings": {}, "points": [], "files": [], "status": None, "sent": 0}
        )

    def start(self, name: str, **settings: Any) -> dict[str, Any]:
        run = self.runs[name]
        run["sent"] += 1
        run["settings"] |= settings
        return run


def wandb() -> StandIn:
    module = StandIn("wandb")

    class Run:
        def __init__(self, run: dict[str, Any]):
            self.run, self.summary = run, {}

        def log(self, numbers, step):
            self.run["points"] += [(step, name, value) for name, value in numbers.items()]

        def log_artifact(self, artifact):
            self.run["files"] += artifact.files

        def finish(self, exit_code=0):
            self.run["status"] = exit_code

    class Artifact:
        def __init__(self, name, type):
            self.files: list[str] = []

        def add_dir(self, folder, name):
            self.files += [f"{name}/{file.name}" for file in Path(folder).iterdir()]

        def add_file(self, file):
            self.files.append(Path(file).name)

    def init(*, project, name, reinit, id=None, config=None, job_type=None):
        assert reinit == "create_new"
        assert id in (None, name)
        return Run(module.start(name, project=project, **(config or {})))

    module.init, module.Artifact = init, Artifact
    return module


def mlflow() -> StandIn:
    module = StandIn("mlflow")
    module.active: dict[str, str] = {}  # status of each run that was not deleted, by its id
    experiments: dict[str, SimpleNamespace] = {}

    class MlflowClient:
        def get_experiment_by_name(self, name):
            return experiments.get(name)

        def create_experiment(self, name):
            experiments[name] = SimpleNamespace(experiment_id=f"id of {name}")
            return experiments[name].experiment_id

        def create_run(self, experiment_id, run_name, start_time, tags):
            started = module.start(run_name, project=experiment_id.removeprefix("id of "))
            run_id = f"{run_name}/{started['sent']}"
            module.active[run_id] = "RUNNING"
            assert tags == {"clue_ray": run_name}
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def search_runs(self, experiment_ids, filter_string):
            asked = re.fullmatch(
                r"tags.clue_ray = '(.+)' and attributes.status = '(.+)'", filter_string
            )
            return [
                SimpleNamespace(info=SimpleNamespace(run_id=run_id))
                for run_id, status in module.active.items()
                if (run_id.partition("/")[0], status) == asked.groups()
            ]

        def delete_run(self, run_id):
            del module.active[run_id]

        def log_batch(self, run_id, metrics=(), params=()):
            assert len(metrics) <= 1000
            run = sent(run_id)
            run["points"] += [(m.step, m.key, m.value) for m in metrics]
            run["settings"] |= {param.key: param.value for param in params}

        def set_tag(self, run_id, key, value):
            sent(run_id)["settings"][key] = value

        def set_terminated(self, run_id, status="FINISHED", end_time=None):
            module.active[run_id] = status
            sent(run_id)["status"] = int(status != "FINISHED")

        def log_artifacts(self, run_id, folder, name):
            files = [f"{name}/{file.name}" for file in Path(folder).iterdir()]
            sent(run_id)["files"] += files

        def log_artifact(self, run_id, file):
            sent(run_id)["files"].append(Path(file).name)

    def sent(run_id):
        return module.runs[run_id.partition("/")[0]]

    def metric(key, value, timestamp, step):
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    def param(key, value):
        return SimpleNamespace(key=key, value=value)

    module.MlflowClient = MlflowClient
    module.entities = SimpleNamespace(Metric=metric, Param=param)
    return module
