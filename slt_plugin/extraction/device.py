"""Where a model runs, and what it says when it does not fit there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slt_plugin.extraction.errors import ExtractionError
from slt_plugin.extraction.options import model_threads

logger = logging.getLogger(__name__)


def prepare_device(device: torch.device, dtype: str, workers: int) -> None:
    """Sets precision and threads of torch for a model that runs beside ``workers`` loading processes."""
    if device.type == "cuda" and dtype == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, with 10 bits of mantissa
        logger.info("dtype=fp32 leaves the GPU's matrix units unused; dtype=bf16 uses them")
    if device.type == "cpu":
        torch.set_num_threads(model_threads(workers, torch.get_num_threads()))


@contextmanager
def fitting(device: torch.device, batch: str, remedy: str) -> Iterator[None]:
    """Around the computation of a batch, "8 windows": raises ExtractionError where the GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ExtractionError(f"{batch} do not fit into the memory of {device}; {remedy}, or use dtype=bf16") from error
