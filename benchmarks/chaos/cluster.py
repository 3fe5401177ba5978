"""A head without cores and nodes of one core each, as processes of this machine."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
HEAD = {**NODE, "num_cpus": 0, "resources": {"trial_slot": 8}, "include_dashboard": False}


class Machines:
    """The cluster; each start of the head has its own temporary folder."""

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.count, self.starts = folder, nodes, 0
        self.start()

    def start(self) -> None:
        """Start the head and all nodes."""
        self.starts += 1
        temporary = self.folder / f"r{self.starts}"
        # The GCS keeps its state on this disk, so that it alone may die without its cluster.
        state = self.folder / f"gcs{self.starts}"
        state.mkdir()
        os.environ.update({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(state)})
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**HEAD, "temp_dir": str(temporary)}
        )
        for _ in range(self.count):
            self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return self.cluster.address

    def processes(self, *words: str) -> list[psutil.Process]:
        """List the living processes of the cluster whose title holds one of some words."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())[:200]
                if title.startswith("ray::") and any(word in title for word in words):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def kill_node(self, number: int) -> None:
        """Kill the raylet of a node, clear up after it, and add another node."""
        node = sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)[number]
        for info in node.all_processes["raylet"]:
            os.kill(info.process.pid, signal.SIGKILL)
        time.sleep(2)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**NODE)

    def kill_gcs(self) -> None:
        """Kill the head's GCS, and start it again with the state on disk."""
        head = self.cluster.head_node
        os.kill(head.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        time.sleep(2)
        head.kill_gcs_server(check_alive=False)
        head.start_gcs_server()

    def kill_head(self) -> None:
        """Kill the head, without which Ray's nodes end too, and start the cluster again."""
        for kind in ("gcs_server", "raylet"):
            for info in self.cluster.head_node.all_processes[kind]:
                os.kill(info.process.pid, signal.SIGKILL)
        time.sleep(2)
        self.end()
        self.start()

    def end(self) -> None:
        """End all processes of the cluster."""
        with suppress(Exception):  # some of them are dead already, which Ray reports as errors
            self.cluster.shutdown()
