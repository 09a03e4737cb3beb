"""Which tests are slow: they train for long, kill processes or start clusters. ``make test-fast`` leaves them out."""

from pathlib import Path

import pytest

SLOW = {
    "config/test_recipes.py", "evaluation/test_holdout.py", "models/test_architectures.py", "models/test_export.py",
    "report/test_report.py", "study/test_crash.py", "study/test_evaluate.py", "study/test_given.py",
    "study/test_lightning.py", "study/test_own_study.py", "study/test_ray_cluster.py", "study/test_robustness.py",
    "study/test_study.py", "study/test_workers.py", "test_claims.py", "test_end_to_end.py", "test_evaluate_page.py",
    "test_examples.py", "test_fuzz.py", "test_security.py", "training/test_checkpoints.py", "training/test_ddp.py",
    "training/test_distributed.py", "training/test_fit.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
