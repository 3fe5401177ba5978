"""Calls of the command line in this process, and what a user's mistake must look like."""

import sys

from clue_ray.cli.main import main


def call(*arguments, capsys=None):
    """Run the command line in this process; return exit code, stdout, stderr."""
    kept = sys.argv
    sys.argv = ["clue-ray", *map(str, arguments)]
    try:
        main()
    except SystemExit as done:
        code = done.code or 0
    finally:
        sys.argv = kept
    out = capsys.readouterr()
    return code, out.out, out.err


def assert_mistake(result, *words):
    code, _, err = result
    assert code == 2, result
    assert err.startswith("clue-ray: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
