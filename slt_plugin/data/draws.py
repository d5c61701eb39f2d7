"""Random generators of everything that pretraining draws."""

from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What is drawn. Numbers stay as they are: a resumed training goes on with the same draws."""

    ORDER = 1  # of an epoch's rows: (epoch)
    BATCHES = 2  # order of batches filled by frames: (epoch)
    PART = 3  # the rows of a manifest that an epoch has a fraction of: (epoch, manifest)
    CLIP = 4  # place, mask and augmentation of a clip in training: (epoch, row, copy)
    VALIDATION_CLIP = 5  # place and mask of a row's clip: (row)


def generator(draw: Draw, seed: int, *key: int) -> np.random.Generator:
    """A generator that depends on the arguments alone; `Draw` says which ``key`` each draw has.

    Without the leading number keys of several lengths would share their draws: numpy fills them up with zeros.
    """
    return np.random.default_rng((int(draw), seed, *key))
