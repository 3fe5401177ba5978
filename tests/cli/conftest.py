"""The command line as a fixture."""

import pytest

from tests.cli.calling import call


@pytest.fixture
def run_cli(capsys):
    return lambda *arguments: call(*arguments, capsys=capsys)
