"""The sample html-template: its own tests, run by Node.js where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[3] / "functions" / "html-template"


def test_template_does_what_its_own_tests_say():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    ran = subprocess.run([node, "--test", "template.test.js"], cwd=SAMPLE, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# pass 0" not in ran.stdout
