"""Which tests are slow: they train for long, kill processes, start clusters or load large networks of others.

``make test-fast`` leaves them out. They go first, the longest files before the others, so that no worker waits for
another one's last file in the end.
"""

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = (
    "config/test_recipes.py", "study/test_ray_cluster.py", "study/test_study.py", "training/test_distributed.py",
    "test_end_to_end.py", "study/test_own_study.py", "study/test_crash.py", "evaluation/test_holdout.py",
    "study/test_workers.py", "study/test_robustness.py", "study/test_lightning.py", "models/test_export.py",
    "study/test_evaluate.py", "training/test_fit.py", "training/test_checkpoints.py", "training/test_ddp.py",
    "test_security.py", "test_fuzz.py", "models/test_architectures.py", "report/test_report.py", "report/test_page.py",
    "test_evaluate_page.py", "test_examples.py", "study/test_given.py", "study/test_machines.py", "test_claims.py",
    "metrics/test_torchmetrics.py", "study/test_calibrate.py", "models/test_sources.py", "models/test_timm_folder.py",
    "models/test_hidden_folder.py", "test_regression_page.py", "study/test_references_study.py",
    "study/test_evaluate_folder.py",
)  # fmt: skip

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and put them first."""
    here, place = Path(__file__).parent, {name: number for number, name in enumerate(SLOW)}

    def rank(item: pytest.Item) -> int:
        return place.get(item.path.relative_to(here).as_posix(), len(SLOW)) if item.path.is_relative_to(here) else 0

    for item in items:
        if rank(item) < len(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def few_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw one picture a report where a test is about work, folders and rows: all take as long as all the rest.

    So in ``study/``, and in modules that say ``PICTURES = False``; not in those that say ``PICTURES = True``.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "PICTURES", "study" not in request.path.parent.parts):
            from anchored.report import page

            draw = page.draw_pictures
            patch.setattr(page, "draw_pictures", lambda summary: itertools.islice(draw(summary), 1))
        yield
