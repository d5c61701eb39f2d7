"""Checkpoints that are decoded are read memory-mapped: a hook onto fairseq 0.12.3, put in place by ``install()``.

``checkpoint_utils.load_checkpoint_to_cpu`` opens the file and gives torch the stream, which torch cannot map. So while
a model for decoding is loaded, the name ``torch`` of that module is a stand-in whose ``load`` takes the file's path.
Training reads as before.
"""

import contextlib
import functools
import io
import types
import zipfile
from collections.abc import Iterator

import torch
from fairseq import checkpoint_utils

_fairseq_load = checkpoint_utils.load_checkpoint_to_cpu


def install() -> None:
    """Puts the hook in place; calling it again changes nothing."""
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


@functools.wraps(_fairseq_load)
def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
    """As fairseq's. Only what decodes gives overrides, be they empty."""
    if arg_overrides is None:
        return _fairseq_load(path, arg_overrides, load_on_all_ranks)
    with _mapped():
        return _fairseq_load(path, arg_overrides, load_on_all_ranks)


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    stand_in = types.SimpleNamespace(load=_load, device=torch.device, distributed=torch.distributed)
    checkpoint_utils.torch = stand_in
    try:
        yield
    finally:
        checkpoint_utils.torch = torch


def _load(file: io.BufferedReader, map_location=None):
    # files from before torch 1.6 are no archives and cannot be mapped
    if zipfile.is_zipfile(file.name):
        return torch.load(file.name, map_location=map_location, weights_only=True, mmap=True)
    return torch.load(file, map_location=map_location, weights_only=True)
