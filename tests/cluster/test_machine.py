"""What keeps Ray from starting on this machine is named at once."""

import os

import pytest

from clue_ray.cluster.machine import check_temporary_folder, explain_start_error, usable_cpus
from clue_ray.errors import ClusterError


def test_a_path_too_long_for_a_socket_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    with pytest.raises(ClusterError, match=r"too long a path for a socket.*RAY_TMPDIR"):
        check_temporary_folder()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ClusterError, match="cannot be written: /dev/null belongs to"):
        check_temporary_folder()


def test_lasting_causes():
    assert explain_start_error(OSError("AF_UNIX path length cannot exceed 107 bytes: /x"))
    assert explain_start_error(PermissionError(13, "Permission denied", "/tmp/ray"))
    assert explain_start_error(TimeoutError("slow")) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_cpus_follow_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cpus() == 1
