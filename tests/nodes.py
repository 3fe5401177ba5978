"""A Ray cluster of a head and two workers, as processes of this machine with separate disks.

It runs in its own process (`python -m tests.nodes FOLDER`), so that a test can be a user outside
the cluster. It prints its addresses as a line of JSON and then obeys lines of its input: `kill` (a
worker node), `add` (a new one), `end`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
HEAD = {
    "num_cpus": 0,
    "resources": {"trial_slot": 4},
    "object_store_memory": 100_000_000,
    "include_dashboard": True,
    "dashboard_port": 0,
    "dashboard_agent_listen_port": 0,
}


class Nodes:
    """The cluster, seen by a test: a context that starts and ends it."""

    def __init__(self, **env: str):
        self.env, self.folder = env, Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))

    def __enter__(self) -> "Nodes":
        # jobs look for python there
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.nodes", str(self.folder)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PATH": path, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.addresses = self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("end")
        self.process.wait(timeout=120)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def dashboard(self) -> str:
        return f"http://{self.addresses['dashboard']}"

    @property
    def address(self) -> str:
        return self.addresses["address"]

    def answer(self) -> dict:
        return json.loads(next(line for line in self.process.stdout if line.startswith("{")))

    def ask(self, word: str) -> dict:
        """Send an order and return the answer."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.answer()

    def disks(self) -> list[Path]:
        """Temporary folders of the nodes."""
        return sorted(self.folder.glob("disk-*"))


def main(folder: Path) -> None:
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    count = 0

    def disk() -> dict:
        nonlocal count
        own = folder / f"disk-{count}"
        own.mkdir()
        count += 1
        return {"env_vars": {"TMPDIR": str(own)}, "temp_dir": str(own / "ray")}

    cluster = Cluster(initialize_head=True, head_node_args={**HEAD, **disk()})
    for _ in range(2):
        cluster.add_node(**NODE, **disk())
    cluster.wait_for_nodes()
    write_ray_address(
        cluster.address, str(folder / "disk-0" / "ray")
    )  # as `ray start` does: jobs look for their cluster there
    print(
        json.dumps({"address": cluster.address, "dashboard": cluster.head_node.webui_url}),
        flush=True,
    )
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
        elif line.strip() == "add":
            cluster.add_node(**NODE, **disk())
        print(json.dumps({"did": line.strip()}), flush=True)
        if line.strip() == "end":
            break
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
