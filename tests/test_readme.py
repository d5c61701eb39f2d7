"""The README's blocks run, and what it names exists.

A fenced bash block right after the line ``<!-- runnable -->`` is run from the repository with this environment's
commands in PATH; one after ``<!-- runnable: slow -->`` only where the environment variable SLT_SLOW is 1.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^<!-- runnable(?P<slow>: slow)? -->\n+```(?:bash|sh)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
FOLDERS = "scripts|manifests|slurm|slt_plugin|tests"
# placeholders like manifests/<corpus>.py and patterns like slt_plugin/config/*.yaml are matched as patterns
PATH = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./*<>-]*[\w*>/])")
TOP_LEVEL = re.compile(
    r"(?<![\w./-])(constraints[\w-]*\.txt|setup\.py|pyproject\.toml|[A-Z]+\.md|CITATION\.cff|LICENSE)\b"
)
COMMAND = re.compile(r"(?<![\w./-])slt-(?!plugin\b)[a-z]+(?:-[a-z]+)*")
CONFIG = re.compile(r"--config-dir (\S+) --config-name (\S+)")


def runnable_blocks(text: str) -> list[tuple[str, bool]]:
    """(code, slow) of the marked blocks."""
    return [(match["code"], bool(match["slow"])) for match in BLOCK.finditer(text)]


def commands_of_setup_py() -> set[str]:
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no COMMANDS")


def missing_paths(text: str) -> list[str]:
    """Files and folders of the repository that the text names and that are not there."""
    named = {match[1] for pattern in (PATH, TOP_LEVEL) for match in pattern.finditer(text)}
    return sorted(name for name in named if not list(ROOT.glob(re.sub(r"<[^>]*>", "*", name).rstrip("/"))))


@pytest.mark.parametrize(
    ("code", "slow"), [pytest.param(*b, id=b[0].strip().splitlines()[0][:50]) for b in runnable_blocks(README)]
)
def test_block_runs(code, slow):
    if slow and os.environ.get("SLT_SLOW") != "1":
        pytest.skip("marked slow: set SLT_SLOW=1 to run it")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{code}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"


def test_every_marker_has_its_block():
    """A marker with a typing error, or not right before a bash block, would never run."""
    assert len(re.findall(r"<!--\s*runnable", README)) == len(runnable_blocks(README))


def test_the_two_commands_are_there():
    assert "bash scripts/quickstart.sh" in README
    assert "bash scripts/test.sh" in README


def test_every_path_named_exists():
    assert missing_paths(README) == []


def test_every_command_named_exists():
    assert set(COMMAND.findall(README)) <= commands_of_setup_py()


def test_every_config_named_exists():
    named = [Path(folder) / f"{name}.yaml" for folder, name in CONFIG.findall(README)]
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_runnable_blocks_are_extracted():
    text = """
<!-- runnable -->
```bash
echo a
echo b
```
```bash
not me
```
<!-- runnable: slow -->

```sh
echo c
```
<!-- runnable -->
text
```bash
nor me
```
"""
    assert runnable_blocks(text) == [("echo a\necho b\n", False), ("echo c\n", True)]


def test_missing_paths_are_found():
    text = "scripts/test.sh, `slt_plugin/config/`, scripts/nothing.sh. ../shared/scripts/x.sh LICENSE manifests/*.zip"
    assert missing_paths(text) == ["manifests/*.zip", "scripts/nothing.sh"]
    assert COMMAND.findall("pip install slt-plugin; slt-doctor, slt-import-checkpoint x.slt-y") == [
        "slt-doctor",
        "slt-import-checkpoint",
    ]


def test_links_within_the_readme_lead_somewhere():
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", README, flags=re.S), flags=re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links and links <= anchors, links - anchors
