"""A short run of ``scripts/crash_test.py``: a study that is killed three times ends as one that was left alone."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "crash_test.py"


def test_a_study_that_is_killed_again_and_again_ends_the_same() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--kills", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills over" in done.stdout
    assert done.stdout.rstrip().endswith("0 differ")
