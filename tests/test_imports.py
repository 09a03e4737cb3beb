"""What must stay light, and what nothing may do. Who may import whom: `import-linter`, in pyproject.toml."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anchored

SOURCE = Path(anchored.__file__).parent


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("anchored.cli.main", ("torch", "numpy", "matplotlib", "rich")),
        ("anchored.data.catalog.registry", ("torch", "numpy", "yaml")),
        ("anchored.config.recipe", ("torch", "numpy")),
        ("anchored.config.settings", ("torch", "numpy", "yaml")),
        ("anchored.report.image_report", ("torchvision", "timm", "torch._dynamo", "matplotlib")),  # predict's
        ("anchored.study.evaluate", ("torchvision", "pytorch_lightning", "torch._dynamo")),
    ],
)
def test_light_modules_stay_light(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {banned!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_an_anchored_network_answers_without_the_compiler() -> None:
    """``torch._dynamo`` takes a second to import: who does not compile does not wait for it."""
    code = (
        "import sys, torch, anchored\n"
        "model = anchored.anchor(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()))\n"
        "model.set_references(torch.rand(5, 3, 8, 8))\n"
        "model.eval()(torch.rand(2, 3, 8, 8))\n"
        "print('torch._dynamo' in sys.modules, 'torchvision' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False False"


def test_one_process_asks_lightning_nothing() -> None:
    """Lightning knows torchrun's and SLURM's variables; without any of them an evaluation does not wait for it."""
    code = "import sys; from anchored.training import launch; print(launch.process_count(1), *sys.modules)"
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=known).stdout
    assert found.startswith("1 ")
    assert not {"lightning_fabric", "pytorch_lightning"} & set(found.split())


def test_nothing_unpickles() -> None:
    banned = ("pickle", "torch.load(", "torch.export.load(", "allow_pickle=True", "marshal", "shelve")
    offenders = {
        f"{path.name}: {word}" for path in SOURCE.rglob("*.py") for word in banned if f"{word}" in code_of(path)
    }
    allowed = {
        "checkpoint.py: torch.load(",  # others' weights, by the reader that takes tensors and plain data alone
        "checkpoint.py: pickle",  # the word in torch's message
        "programs.py: pickle",  # the word in a file's description, which is refused
        "programs.py: torch.export.load(",  # after that
        "export.py: torch.export.load(",  # of a file that was written just now
    }
    assert offenders == allowed
    assert "weights_only=True" in code_of(SOURCE / "models" / "checkpoint.py")
    assert "weights_only=False" not in "".join(map(code_of, SOURCE.rglob("*.py")))


def code_of(path: Path) -> str:
    """The file without docstrings and comments, as the parser sees it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def test_public_names_are_defined_once() -> None:
    """A name leads to one place: grep finds what it means."""
    homes: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
