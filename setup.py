"""Packaging of slt_plugin: version ranges here, the checked exact set in constraints*.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "slt_plugin/__init__.py").read_text())[1]

COMMANDS = {
    "slt-pretrain": "pretrain",
    "slt-extract": "extract",
    "slt-finetune": "finetune",
    "slt-evaluate": "evaluate",
    "slt-translate": "translate",
    "slt-score": "score",
    "slt-report": "report",
    "slt-manifest": "manifest",
    "slt-import-checkpoint": "import_checkpoint",
    "slt-doctor": "doctor",
    "slt-demo": "demo",
}

setup(
    name="slt-plugin",
    version=VERSION,
    description="Sign language translation from video and landmarks, as a fairseq plugin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["slt_plugin", "slt_plugin.*"]),
    package_data={"slt_plugin": ["config/**/*.yaml", "report/assets/*"]},
    install_requires=[
        # fairseq main, repackaged for current Python: fairseq's own last release cannot be imported on 3.11
        "ve-fairseq==0.12.3",
        "torch>=2.7,<2.12",
        "torchvision>=0.22,<0.27",
        "torchaudio>=2.7,<2.12",
        "timm>=1.0.20,<2",
        "av>=18.1,<19",
        "sentencepiece>=0.2,<0.3",
        "sacrebleu>=2.5,<3",
        "submitit>=1.5,<2",
        "hydra-submitit-launcher>=1.2,<2",  # fairseq-hydra-train -m hydra/launcher=submitit_slurm
        "hydra-core>=1.3.2,<1.4",
        "numpy>=2,<3",
        "pose-format>=0.14,<0.16",
        "jiwer>=4,<5",
        "rouge-score>=0.1.2,<0.2",
        "absl-py",  # of rouge-score
        "sacremoses>=0.1,<0.3",  # truecasing
        "regex",
        "matplotlib>=3.10,<4",
        "safetensors>=0.5,<1",
        "tqdm>=4.66",
    ],
    extras_require={
        "hf": ["transformers>=5.20,<6", "peft>=0.19,<1", "protobuf>=5"],
        "prep": [
            "spoken-to-signed>=0.4,<0.5",
            "dlib-bin>=20,<21",
            "face-recognition-models>=0.3,<0.4",
            "opencv-python-headless>=4.10,<6",
        ],
        "demo": ["gradio>=6,<7"],
        "track": ["tensorboard>=2.17", "tensorboardX>=2.6", "wandb>=0.18"],
        "bleurt": ["transformers>=5.20,<6"],
        "dev": [
            "pytest>=8",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "playwright>=1.50,<2",
            "bleurt-pytorch>=0.0.1",  # what our BLEURT is compared with
        ],
    },
    entry_points={"console_scripts": [f"{cmd}=slt_plugin.cli.{mod}:main" for cmd, mod in COMMANDS.items()]},
)
