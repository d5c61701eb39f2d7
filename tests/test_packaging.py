"""setup.py, the constraints files and the metadata files agree with each other and with the code."""

import ast
import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slt_plugin

ROOT = Path(__file__).parents[1]
CUDA12 = {"torch": "2.7.1", "torchvision": "0.22.1", "torchaudio": "2.7.1"}
CHECKED = {  # DESIGN's set: seen to install and import together
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "torchaudio": "2.11.0",
    "ve-fairseq": "0.12.3",
    "hydra-core": "1.3.8",
    "submitit": "1.5.4",
}
INSTALLED_BY_SCRIPTS = ("hf", "prep", "track", "dev")
CLI_HELPERS = {  # files without a command of their own
    "__init__", "adopt_features", "decoding", "errors", "evaluation_checks", "import_sonar", "overrides", "progress",
    "reconstruct", "training", "training_options", "translation_file", "launching", "sweep_report", "training_launch",
    "compare_report", "demo_guard", "demo_html", "demo_page", "demo_service", "html_report", "score_input",
    "translator", "import_ssvp", "merge_lora", "output", "scoring_settings",
}  # fmt: skip
COMMAND_FILES = sorted(p for p in (ROOT / "slt_plugin/cli").glob("*.py") if p.stem not in CLI_HELPERS)


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs)
    assert len({canonicalize_name(key) for key, _ in pairs}) == len(pairs)
    return {canonicalize_name(key): version for key, version in pairs}


@pytest.fixture(scope="module")
def setup_arguments() -> dict:
    """The arguments that setup.py gives to setuptools, without running a command."""
    import setuptools

    received = {}
    original, setuptools.setup = setuptools.setup, received.update
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
    return received


def test_commands_and_cli_modules_match(setup_arguments):
    points = setup_arguments["entry_points"]["console_scripts"]
    commands = dict(re.fullmatch(r"(slt-[\w-]+)=slt_plugin\.cli\.(\w+):main", point).groups() for point in points)
    modules = {path.stem for path in COMMAND_FILES}
    assert set(commands.values()) == modules
    assert all(command == f"slt-{module.replace('_', '-')}" for command, module in commands.items())


@pytest.mark.parametrize("path", COMMAND_FILES, ids=lambda path: path.stem)
def test_every_command_has_a_main(path):
    functions = {n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
    main = functions["main"]
    assert [a.arg for a in main.args.posonlyargs + main.args.args][len(main.args.defaults) :] == []


def test_pins_are_within_the_ranges_of_setup_py(setup_arguments):
    extras = setup_arguments["extras_require"]
    wanted = setup_arguments["install_requires"] + [r for name in INSTALLED_BY_SCRIPTS for r in extras[name]]
    for name in ("constraints.txt", "constraints-cuda12.txt"):
        pinned = pins(name)
        for requirement in map(Requirement, wanted):
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{name}: {requirement} but {version}"


def test_constraints_files_differ_in_torch_only():
    new, old = pins("constraints.txt"), pins("constraints-cuda12.txt")
    assert {name: version for name, version in old.items() if new.get(name) != version} == CUDA12
    assert set(new) == set(old)
    assert CHECKED.items() <= new.items()


def test_constraints_leave_the_cuda_libraries_to_torch():
    assert not [name for name in pins("constraints.txt") if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_everything_that_is_installed_for_us_is_pinned():
    """Follows the requirements from slt-plugin: a package that nothing pins could change under us."""
    pinned = pins("constraints.txt")
    todo = [("slt-plugin", extra) for extra in ("", *INSTALLED_BY_SCRIPTS)]
    seen = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                child = canonicalize_name(requirement.name)
                todo += [(child, wanted) for wanted in ("", *requirement.extras)]
    needed = {n for n, _ in seen} - {"slt-plugin"}
    assert needed - set(pinned) == set()


def test_versions_agree(setup_arguments):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert setup_arguments["version"] == slt_plugin.__version__ == citation["version"]
    assert f"## {slt_plugin.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert setup_arguments["python_requires"] == ">=3.11,<3.13"


def test_a_built_package_has_all_code_and_configs(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path), "build_py"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*.*")}
    sources = [p for kind in ("*.py", "*.yaml", "report/assets/*") for p in (ROOT / "slt_plugin").rglob(kind)]
    assert built == {str(path.relative_to(ROOT)) for path in sources}
