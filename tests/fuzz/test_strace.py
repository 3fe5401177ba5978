"""What the system hears while libraries in C++ read hostile files, which no audit event tells."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.hostile import CANARY, LOOPBACK

ROOT = Path(__file__).parents[2]
READ = re.compile(rf"open(?:at)?\(.*O_RDONLY.*\) = \d+<[^>]*{re.escape(CANARY)}>")
CONNECTED = re.compile(r'connect\(.*sin6?_addr=inet_(?:addr|pton)\((?:AF_INET6?, )?"([^"]+)"')
TRACED = ("strace", "-f", "-qq", "-y", "-e", "trace=open,openat,connect")


def can_trace():
    """Return whether strace is here and may be used."""
    if not shutil.which("strace"):
        return False
    return not subprocess.run([*TRACED, "true"], capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or not allowed")
def test_no_library_opens_or_asks_anything_else(tmp_path):
    """Links are part of it: strace shows the file that a name led to."""
    trace, tests = tmp_path / "trace", ["tests/fuzz/test_binary.py", "tests/fuzz/test_trackers.py"]
    pytests = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*TRACED, "-o", str(trace), *pytests, *tests], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-2000:]
    lines = trace.read_text(errors="replace").splitlines()
    assert sum("openat(" in line for line in lines) > 1000  # or nothing was heard
    assert [line for line in lines if READ.search(line)] == []
    asked = {found[1] for line in lines if (found := CONNECTED.search(line))}
    assert asked <= set(LOOPBACK)


def test_the_patterns_hear_what_they_should():
    assert READ.search('7 openat(AT_FDCWD</x>, "in/a", O_RDONLY|O_CLOEXEC) = 3</tmp/y/secret.txt>')
    assert not READ.search('7 openat(AT_FDCWD</x>, "a", O_WRONLY|O_CREAT, 0666) = 3</y/secret.txt>')
    address = '{sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("192.0.2.1")}'
    line = f"7 connect(3, {address}, 16) = 0"
    assert CONNECTED.search(line)[1] == "192.0.2.1"
