"""Benchmarks at tiny size: every line gives its figures, once, and what fails ends its own line alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.benchmarks import benchmark


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    return benchmark("gpu", monkeypatch)


def test_every_line_runs_and_is_measured_once(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--tiny", "--turns", "1", "--out", str(tmp_path / "gpu.json")]
    with torch.compiler.set_stance("force_eager"):  # the compiler itself would take minutes
        assert gpu.main(words) == 0, capsys.readouterr().out
    first = json.loads((tmp_path / "gpu.json").read_text())
    assert {name.partition("/")[0] for name in first["lines"]} == set(gpu.SECTIONS)
    assert all(len(figures) > 1 and "error" not in figures for figures in first["lines"].values())
    assert first["made"]["torch"]
    assert "anchored ÷ standard" in capsys.readouterr().out
    assert gpu.main(words) == 0
    assert json.loads((tmp_path / "gpu.json").read_text()) == first


def test_what_fails_is_noted_and_tried_again(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    words = ["--device", "cpu", "--tiny", "--sections", "metrics", "--out", str(tmp_path / "gpu.json")]
    with monkeypatch.context() as patch:
        patch.setattr(gpu.gpu_evaluation.detection, "auroc", refuse)
        assert gpu.main(words) == 1
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert lines["metrics/AUROC"]["error"] == "out of memory"
    assert [name for name, figures in lines.items() if "error" in figures] == ["metrics/AUROC"]
    assert gpu.main(words) == 0


def test_another_machine_s_file_is_not_gone_on_with(gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"made": {"torch": "1.0"}, "lines": {}}))
    words = ["--device", "cpu", "--tiny", "--sections", "peaks", "--out", str(tmp_path / "gpu.json")]
    assert gpu.main(words) == 2
    with pytest.raises(SystemExit):
        gpu.main(["--sections", "peak"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])


def test_every_line_beside_peers_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two peers are not among what tests install: their lines say so, and the next call tries them again."""
    cpu = benchmark("cpu", monkeypatch)
    monkeypatch.delenv("LLNL_ANCHORING", raising=False)
    cpu.main(["--tiny", "--turns", "1", "--out", str(tmp_path / "cpu.json")])
    lines = json.loads((tmp_path / "cpu.json").read_text())["lines"]
    assert {name.partition("/")[0] for name in lines} == set(cpu.SECTIONS)
    failed = {name: figures["error"] for name, figures in lines.items() if "error" in figures}
    assert all(error.startswith("NotHere: ") for error in failed.values()), failed
    assert all("LLNL" in name or "torch-uncertainty" in name for name in failed)
    assert all(len(figures) > 1 for figures in lines.values())
    assert "anchored ÷ standard" in capsys.readouterr().out


def test_growth_is_measured_along_every_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every work at its least size; the processes of the points are left out."""
    growth = benchmark("growth", monkeypatch)
    threads = torch.get_num_threads()
    for work, sizes in growth.AXES.values():
        work(sizes[0])
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(growth, "AXES", {name: growth.AXES[name] for name in ("classes, linear probe",)})
    monkeypatch.setattr(growth, "point", lambda axis, size: {"size": size, "seconds": size**2 / 10, "MiB": 1.0})
    growth.main(["--tiny", "--out", str(tmp_path / "g.json"), "--picture", str(tmp_path / "g.png")])
    assert json.loads((tmp_path / "g.json").read_text())["points"]["classes, linear probe"][1]["seconds"] == 6.4
    assert (tmp_path / "g.png").stat().st_size > 10_000
    assert "2.00" in capsys.readouterr().out  # time grows with the square
