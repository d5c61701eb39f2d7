"""Registration with fairseq: through --user-dir, from any folder, and when the package is already imported."""

import subprocess
import sys

import pytest
from conftest import ROOT

REGISTERED = """
from fairseq.tasks import TASK_REGISTRY
from fairseq.models import MODEL_REGISTRY
assert "sign_to_text" in TASK_REGISTRY and "sign_to_text_mbart_large" in MODEL_REGISTRY
from fairseq import checkpoint_utils
assert hasattr(checkpoint_utils.load_checkpoint, "__wrapped__")  # the hooks of checkpoints.safe
"""
THROUGH_USER_DIR = """
import sys
from argparse import Namespace
from fairseq.utils import import_user_module
import_user_module(Namespace(user_dir=sys.argv[1]))
"""
ONE_LINER = "import slt_plugin; print(slt_plugin.__path__[0])"


def run(script: str, *arguments: str, cwd=ROOT) -> str:
    words = [sys.executable, "-c", script, *arguments]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_relative_user_dir_in_the_repository():
    run(THROUGH_USER_DIR + REGISTERED, "slt_plugin")


def test_installed_path_from_another_folder(tmp_path):
    path = run(ONE_LINER, cwd=tmp_path)
    run(THROUGH_USER_DIR + REGISTERED, path, cwd=tmp_path)


def test_documented_one_liner_is_this_one():
    assert f'python -c "{ONE_LINER}"' in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("import_line", ["import slt_plugin.tasks", "from slt_plugin.tasks import sign_to_text"])
def test_already_imported(import_line, tmp_path):
    """fairseq then imports nothing itself: the import must have registered everything."""
    path = run(ONE_LINER)
    run(import_line + THROUGH_USER_DIR + REGISTERED, path, cwd=tmp_path)
