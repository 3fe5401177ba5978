"""Terminals and locales that are not UTF-8: names are found, and output never fails."""

import os
import subprocess
import sys

import pytest

LOG = """user_id,service,timestamp,text
\u00e91,a,1700000000,caf\u00e9
\u00fc2,b,1700000001,\u6771\u4eac
"""


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "caf\\xe9"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "caf\u00e9"),
    ],
)
def test_a_log_is_checked_in_any_locale(tmp_path, settings, shown):
    log = tmp_path / "gr\u00f6\u00dfe [x]" / "log \u6771.csv"
    log.parent.mkdir()
    log.write_text(LOG, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "clue_ray", "prepare", "--check", str(log.parent / "*.csv")],
        env={**os.environ, **settings},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert shown in ran.stdout.decode()
