"""Which parameters of a SignHiera to train, and how fast: groups by depth."""

from torch import nn

from slt_plugin.modules.hiera import SignHiera
from slt_plugin.modules.hiera_layout import ModuleShapeError


def layer_groups(encoder: SignHiera) -> list[tuple[str, list[nn.Parameter]]]:
    """All parameters by depth, lowest first: ("embeddings", ...), ("blocks.0", ...), ..., ("head", ...).

    Each parameter is in one group. "head" is the final norm and the classifier; features depend on all other groups.
    """
    embeddings = [*encoder.parameters(recurse=False), *encoder.patch_embed.parameters()]  # positions, then patches
    blocks = [(f"blocks.{i}", list(block.parameters())) for i, block in enumerate(encoder.blocks)]
    return [("embeddings", embeddings), *blocks, ("head", [*encoder.norm.parameters(), *encoder.head.parameters()])]


def layer_rates(encoder: SignHiera, decay: float) -> dict[str, float]:
    """Learning-rate factors of ``layer_groups``: 1 for the last block, times ``decay`` for each group further down.

    With the embeddings as group 0, group g of an encoder of L blocks has ``decay ** (L - g)``, as in layer-wise
    fine-tuning of masked autoencoders (BEiT, arXiv 2106.08254). The head, which features do not pass, has 1.
    """
    if not 0 < decay <= 1:
        raise ModuleShapeError(f"layer-wise learning-rate decay must be above 0 and at most 1; got {decay}")
    top = len(encoder.blocks)
    return {name: decay ** max(0, top - depth) for depth, (name, _) in enumerate(layer_groups(encoder))}


def freeze_all_but_last(encoder: SignHiera, blocks: int | None) -> None:
    """Sets ``requires_grad`` of every parameter, for training on features.

    Args:
        encoder: the encoder, changed in place.
        blocks: how many of the last blocks are trained: 0 freezes the encoder, ``len(encoder.blocks)`` trains all
            blocks and keeps patch and position embeddings, None trains these too.

    The final norm and the classifier are always frozen: features are taken before them, so they get no gradient, and
    distributed training would wait for it. Frozen blocks at the bottom keep no activations. Freezing does not change
    the training mode: a frozen block with a ``drop_path_rate`` above 0 still drops branches in ``train()``.
    """
    count = len(encoder.blocks)
    if blocks is not None and not 0 <= blocks <= count:
        raise ModuleShapeError(
            f"cannot train the last {blocks} blocks of an encoder with {count}; expected 0 to {count}"
        )
    first = 0 if blocks is None else 1 + count - blocks  # number of the lowest group that is trained
    for depth, (_, parameters) in enumerate(layer_groups(encoder)):
        for parameter in parameters:
            parameter.requires_grad_(first <= depth <= count)
