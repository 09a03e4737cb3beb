"""A fast part of the sweep over timm's families; the whole is ``scripts/sweep_architectures.py``."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import markers
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep_architectures.py"
FAST = (
    "levit",  # batch norm inside linear layers, a distilled head's kin
    "mambaout",
    "mobilevit",
    "nfnet",  # standardised weights
    "regnet",
    "repghost",
    "sequencer",  # its classifier is given positions, channels last
    "starnet",
    "vision_transformer_relpos",
)


@pytest.fixture(scope="module")
def sweep() -> Any:
    spec = importlib.util.spec_from_file_location("sweep_architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", FAST)
def test_anchored_and_folded_exactly(sweep: Any, family: str) -> None:
    result = sweep.examine(family)
    assert result.error == ""
    assert max(result.anchored, result.folded, result.fused) <= 1e-5
    assert result.features.isdigit()  # timm's own


def test_the_table_in_the_docs_is_the_sweeps(sweep: Any) -> None:
    table = markers.split(sweep.DOCS, sweep.MARKER)[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == sorted(sweep.FAMILIES)
    for family, network, *_ in rows:
        assert network == sweep.FAMILIES[family][0]
