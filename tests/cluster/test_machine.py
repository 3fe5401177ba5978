"""What keeps Ray from starting on this machine is named at once."""

import os

import pytest
import ray

from clue_ray.cluster import machine, session
from clue_ray.cluster.machine import check_temporary_folder, explain_start_error, usable_cpus
from clue_ray.errors import ClusterError


def test_a_path_too_long_for_a_socket_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    with pytest.raises(ClusterError, match=r"too long a path for a socket.*RAY_TMPDIR"):
        check_temporary_folder()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ClusterError, match="cannot be written: /dev/null is not a folder"):
        check_temporary_folder()


def test_lasting_causes():
    assert explain_start_error(OSError("AF_UNIX path length cannot exceed 107 bytes: /x"))
    assert explain_start_error(PermissionError(13, "Permission denied", "/tmp/ray"))
    assert explain_start_error(TimeoutError("slow")) is None


@pytest.mark.parametrize(("cpus", "kept"), [(2, "8"), (64, "64")])
def test_a_session_keeps_idle_workers_of_each_kind(monkeypatch, cpus, kept):
    seen, limit = [], "RAY_num_workers_soft_limit"
    monkeypatch.delenv(limit, raising=False)
    monkeypatch.setattr(session, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda *_, **how: seen.append((how["num_cpus"], os.environ[limit]))
    )
    with session.connect():
        pass
    assert seen == [(cpus, kept)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_cpus_follow_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cpus() == 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_cpus_follow_cgroups_of_both_versions(monkeypatch, tmp_path, files, cpus):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_cgroup_folders", lambda: [tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable_cpus() == cpus
