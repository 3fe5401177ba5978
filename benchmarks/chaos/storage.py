"""An S3 server (moto, in a process) behind a proxy that refuses, slows down or cuts connections."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import boto3

BUCKET = "lake"
CHUNK = 65_536
CUT_AFTER = 20_000
"""Bytes of a request or answer after which a cut connection ends: within most checkpoints."""
CUTS = {"cutting uploads": True, "cutting downloads": False}
"""Moods that cut a connection, and whether they cut its requests rather than its answers."""
MOODS = ("refusing", "slow", *CUTS)
SLOW_SECONDS = 0.3
"""Pause before each chunk while storage is slow."""
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Storage:
    """The server and its proxy; `mood` is well, or one of MOODS."""

    def __init__(self) -> None:
        os.environ.update(KEYS)
        self.mood, self.server_port, self.port = "well", free_port(), free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
        self.server = subprocess.Popen(
            [*command, str(self.server_port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.server_port}", region_name="us-east-1"
        )
        self._wait()
        self.client.create_bucket(Bucket=BUCKET)
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _wait(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.server_port), timeout=1).close()
                return
            time.sleep(0.1)
        raise TimeoutError("moto did not start within 60 s")

    def place(self, folder: str) -> str:
        """Return the URI of a folder, through the proxy."""
        query = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{BUCKET}/{folder}?{query}"

    def names(self, folder: str, ending: str) -> list[str]:
        """List the objects below a folder, past the proxy."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(name for name in found if name.endswith(ending))

    def truncate(self, name: str) -> None:
        """Replace an object by its first half."""
        content = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content[: len(content) // 2])

    def end(self) -> None:
        """End the server and the proxy."""
        self.listener.close()
        self.server.kill()
        self.server.wait()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass one connection on, in both directions."""
        if self.mood == "refusing":
            return client.close()
        with suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self.server_port))
            back = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
            back.start()
            self._pass(client, server, True)

    def _pass(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        """Pass bytes on until one side closes, as the mood allows."""
        passed = 0
        with suppress(OSError):
            while content := source.recv(CHUNK):
                cut = CUTS.get(self.mood) is is_request and passed + len(content) > CUT_AFTER
                if self.mood == "refusing" or cut:
                    target.sendall(content[: max(0, CUT_AFTER - passed)])
                    break
                if self.mood == "slow":
                    time.sleep(SLOW_SECONDS)
                target.sendall(content)
                passed += len(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
