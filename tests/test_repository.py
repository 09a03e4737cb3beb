"""Files about the project agree with one another: versions, Pythons, dependencies, pinned actions, forms."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA_NAMES = {
    "torch": "pytorch", "matplotlib": "matplotlib-base", "huggingface-hub": "huggingface_hub",
    "typing-extensions": "typing_extensions",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no .github")


def read(path: Path) -> Any:
    """What a YAML file holds; the key ``on`` of a workflow is True, by YAML 1.1."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    """Steps of a workflow, and jobs that are another workflow."""
    for job in workflow["jobs"].values():
        yield from job.get("steps", [job])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_and_ask_for_little(path: Path) -> None:
    workflow, text = read(path), path.read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 90
        assert set(job.get("permissions", {}).values()) <= {"write"}  # each one asked for, with its reason
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    pins = re.findall(r"uses: ([\w./-]+@[0-9a-f]{40})  # v\d+\.\d+\.\d+\n", text)
    assert [name for name in used if not name.startswith("./")] == pins
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", "")  # text of others would become a command


def test_one_hash_stands_for_one_version_of_an_action() -> None:
    pins = {
        pin
        for path in WORKFLOWS
        for pin in re.findall(r"uses: (\S+)@(\w{40})  # (\S+)", path.read_text(encoding="utf-8"))
    }
    assert len({name for name, _, _ in pins}) == len(pins)


def test_make_has_what_workflows_run() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {
        word
        for path in WORKFLOWS
        for step in steps(read(path))
        for word in re.findall(r"make (\S+)", step.get("run", ""))
    }
    assert asked <= made


def test_each_python_that_is_named_is_tested() -> None:
    named = [text.rpartition(" ")[2] for text in PYPROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", text)]
    matrix = read(GITHUB / "workflows" / "tests.yml")["jobs"]["gate"]["strategy"]["matrix"]["python"]
    assert named == matrix
    assert PYPROJECT["project"]["requires-python"] == f">={named[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == named[0]


def test_one_version_is_worked_on() -> None:
    citation = read(ROOT / "CITATION.cff")
    ahead = PYPROJECT["tool"]["hatch"]["version"]["fallback-version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\.dev0", ahead)
    assert Version(ahead).release >= Version(citation["version"]).release
    assert citation["repository-code"] == PYPROJECT["project"]["urls"]["Source"]
    assert citation["license"] == "Apache-2.0"
    for place in ("docker/install.sh", "Dockerfile", "conda/recipe.yaml"):
        assert ahead in (ROOT / place).read_text(encoding="utf-8"), place


def test_conda_asks_for_the_same_packages() -> None:
    wanted = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    expected = [f"{CONDA_NAMES.get(each.name, each.name)} {each.specifier}" for each in wanted]
    recipe = read(ROOT / "conda" / "recipe.yaml")
    assert recipe["requirements"]["run"][1:] == expected
    assert recipe["about"]["homepage"] == PYPROJECT["project"]["urls"]["Homepage"]
    command, _, target = recipe["build"]["python"]["entry_points"][0].partition(" = ")
    assert PYPROJECT["project"]["scripts"] == {command: target}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_with_names(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in asked} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert len({field["id"] for field in asked}) == len(asked)
    assert all(field["attributes"]["label"] for field in asked)


def test_the_script_of_the_image_is_a_script() -> None:
    script = ROOT / "docker" / "install.sh"
    subprocess.run([shutil.which("sh") or "sh", "-n", script], check=True)
    copied = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "sh /source/docker/install.sh /source /opt/anchored" in copied
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {"docker/install.sh", "src", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"}


def test_the_readme_has_whole_addresses_on_pypi() -> None:
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / hook["fragments"][0]["path"]).read_text(encoding="utf-8")
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    addresses = re.findall(r"\]\(([^)\s]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert len(addresses) > 3
    assert [each for each in addresses if not each.startswith(("https://", "#"))] == []


def test_the_changelog_keeps_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\S*\] - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert not [line for line in lines if line.startswith("#### ")]
