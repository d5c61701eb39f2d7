"""The import rule of the architecture and other rules that hold for every file, read from the sources with ast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slt_plugin"
LAYERS = (
    {"common"},
    {"data", "text", "modules", "scoring"},
    {"checkpoints"},
    {"models"},
    {"criterions"},
    {"tasks"},
    {"launch", "report", "extraction"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Which files may import a package (None: no file of the part); a file outside of every part's list may not either.
TRANSFORMERS = ("text/*.py", "models/hf*.py", "modules/sonar.py", "modules/clip.py", "scoring/bleurt.py")
ONE_FILE_EACH = ("peft", "submitit", "dlib", "cv2", "mediapipe", "gradio")
BANNED = {  # part -> packages that none of its files imports
    "modules": {"fairseq", "fairseq_cli", "hydra", "omegaconf"},
    "scoring": {"fairseq", "fairseq_cli", "torch", "transformers"},
    "data": {"fairseq_cli"},
    "text": {"fairseq_cli"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
OWN = [p for folder in ("slt_plugin", "scripts", "manifests", "tests") for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST, module: str) -> list[tuple[str, int, bool]]:
    """(absolute dotted name, line, inside a function) of every import statement and import_module("name") call.

    ``module`` is the dotted name of the file's own package, where relative imports start.
    """
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = module.split(".")[: len(module.split(".")) - child.level + 1] if child.level else []
                base = ".".join([*parts, child.module] if child.module else parts)
                found.extend((f"{base}.{alias.name}", child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.Call):
                called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
                first = child.args[0] if child.args else None
                if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                    found.append((str(first.value), child.lineno, lazy))
            visit(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, False)
    return found


def layer_violation(part: str, target: str) -> str | None:
    """Why a file of ``slt_plugin/<part>`` may not import ``target`` (dotted); None where it may."""
    names = target.split(".")
    if names[0] != "slt_plugin" or len(names) == 1 or names[1] == part or names[1] == "__version__":
        return None
    if names[1] not in LEVEL:
        return f"{target} is of no known part: add it to LAYERS"
    if LEVEL[names[1]] == LEVEL.get(part):
        return f"{part} and {names[1]} are siblings"
    if LEVEL[names[1]] > LEVEL.get(part, -1):
        return f"{names[1]} stands above {part or 'the package itself'}"
    return None


def parsed(path: Path) -> tuple[ast.AST, str, str]:
    """Tree, part ("" for the package's own __init__) and dotted package of a source file."""
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0] if len(relative.parts) > 1 else ""
    return ast.parse(path.read_text(encoding="utf-8")), part, ".".join(("slt_plugin", *relative.parts[:-1]))


def test_imports_go_leftwards_only():
    problems = []
    for path in SOURCES:
        tree, part, package = parsed(path)
        for target, line, _ in imports(tree, package):
            if problem := layer_violation(part, target):
                problems.append(f"{path}:{line}: {problem}")
    assert problems == []


def test_every_folder_with_code_is_a_known_part():
    parts = {path.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}
    assert parts <= set(LEVEL)


@pytest.mark.parametrize(
    ("part", "target", "allowed"),
    [
        ("tasks", "slt_plugin.models.encoders", True),
        ("models", "slt_plugin.tasks.sign_to_text", False),
        ("data", "slt_plugin.text.codec", False),
        ("data", "slt_plugin.data.errors", True),
        ("report", "slt_plugin.launch.run", False),
        ("checkpoints", "slt_plugin.models.sign_to_text", False),
        ("cli", "slt_plugin.checkpoints.importer", True),
        ("data", "slt_plugin.__version__", True),
        ("", "slt_plugin.tasks", False),
        ("data", "slt_plugin.unknown.x", False),
        ("data", "torch", True),
    ],
)
def test_the_layer_rule_itself(part, target, allowed):
    assert (layer_violation(part, target) is None) == allowed


def test_imports_sees_lazy_relative_and_computed_ones():
    source = """
import torch
from . import pose
from ..text.codec import build_codec
def f():
    import peft
    importlib.import_module("gradio")
"""
    assert imports(ast.parse(source), "slt_plugin.data") == [
        ("torch", 2, False),
        ("slt_plugin.data.pose", 3, False),
        ("slt_plugin.text.codec.build_codec", 4, False),
        ("peft", 6, True),
        ("gradio", 7, True),
    ]


def test_restricted_packages():
    problems, users = [], {name: set() for name in ONE_FILE_EACH}
    for path in SOURCES:
        tree, part, package = parsed(path)
        relative = path.relative_to(PACKAGE)
        for target, line, lazy in imports(tree, package):
            top = target.split(".")[0]
            if top in BANNED.get(part, set()) and relative != Path("scoring/bleurt.py"):
                problems.append(f"{relative}:{line}: {part} does not import {top}")
            if top == "transformers" and not any(relative.match(pattern) for pattern in TRANSFORMERS):
                problems.append(f"{relative}:{line}: transformers is imported in {', '.join(TRANSFORMERS)} only")
            if top in users:
                users[top].add(str(relative))
                if not lazy:
                    problems.append(f"{relative}:{line}: import {top} inside the function that needs it")
    problems += [f"{name} is imported in {sorted(files)}: one file" for name, files in users.items() if len(files) > 1]
    assert problems == []


def test_heavy_optional_packages_are_imported_lazily():
    """The package works without the extras hf and bleurt."""
    problems = []
    for path in SOURCES:
        if path.relative_to(PACKAGE).match("models/hf*.py"):
            continue  # imported themselves only where such a model is asked for
        tree, _, package = parsed(path)
        for target, line, lazy in imports(tree, package):
            if target.split(".")[0] in {"transformers", "bleurt_pytorch"} and not lazy:
                problems.append(f"{path}:{line}: import {target} inside the function that needs it")
    assert problems == []


def test_importing_the_package_is_cheap():
    code = "import slt_plugin, sys; print(sorted({'torch', 'fairseq', 'numpy', 'hydra'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_no_file_is_longer_than_400_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in OWN}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def forbidden(tree: ast.AST, *, printing: bool) -> list[tuple[int, str]]:
    """(line, what) of calls and definitions that the project does not allow."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "print" and not printing:
                found.append((node.lineno, "print outside cli: use logging"))
            if name in ("pickle.load", "pickle.loads"):
                found.append((node.lineno, f"{name} runs code from the file"))
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg == "weights_only" and value is not True:
                    found.append((node.lineno, "weights_only must be True"))
                if keyword.arg == "shell" and value is not False:
                    found.append((node.lineno, "shell=True"))
                if keyword.arg == "allow_pickle" and value is not False:
                    found.append((node.lineno, "allow_pickle must be False"))
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg:
            found.append((node.lineno, "a constructor with **kwargs accepts and ignores mistyped options"))
    return found


def test_forbidden_calls():
    problems = []
    for path in OWN:
        if path.is_relative_to(ROOT / "tests"):
            continue  # tests provoke what the project refuses
        printing = not path.is_relative_to(PACKAGE) or path.is_relative_to(PACKAGE / "cli")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        problems += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in forbidden(tree, printing=printing)]
    assert problems == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("print(1)", 1),
        ("torch.load(p, weights_only=False)", 1),
        ("torch.load(p, weights_only=flag)", 1),
        ("torch.load(p, weights_only=True)", 0),
        ("pickle.loads(b)", 1),
        ("subprocess.run(c, shell=True)", 1),
        ("np.load(p, allow_pickle=True)", 1),
        ("class A:\n    def __init__(self, **kwargs): ...", 1),
        ("def f(**kwargs): ...", 0),
    ],
)
def test_the_forbidden_rule_itself(source, count):
    assert len(forbidden(ast.parse(source), printing=False)) == count
