"""Freezing parts of a model: for the whole training, or for its first updates."""

import re

from torch import nn

from slt_plugin.models.errors import OptionError

PARTS = {
    "source_encoder": "encoder.source_encoder",
    "adapter": "encoder.adapter",
    "text_encoder": "encoder.text_encoder",
    "text_decoder": "decoder",
}
SPEC = re.compile(r"(?P<part>[a-z_]+)(\.layers\.(?P<first>\d+)(-(?P<last>\d+))?)?")


def select_parameters(model: nn.Module, spec: str) -> list[nn.Parameter]:
    """The parameters that ``spec`` names, without repetition.

    Args:
        model: a ``sign_to_text`` model.
        spec: comma-joined parts (``source_encoder``, ``adapter``, ``text_encoder``, ``text_decoder``), each whole or
            narrowed to layers: ``text_decoder.layers.0-5``, ``text_encoder.layers.3``. Empty selects nothing.

    Raises:
        OptionError: an unknown part, or layers that the part does not have.
    """
    selected: dict[int, nn.Parameter] = {}
    for item in filter(None, (s.strip() for s in spec.split(","))):
        match = SPEC.fullmatch(item)
        if match is None or match["part"] not in PARTS:
            raise OptionError(
                f"model.freeze: cannot read {item!r}; expected one of {', '.join(PARTS)}, "
                "each optionally followed by layers such as text_decoder.layers.0-5"
            )
        module = model.get_submodule(PARTS[match["part"]])
        if match["first"] is not None:
            layers = getattr(module, "layers", None)
            first, last = int(match["first"]), int(match["last"] or match["first"])
            if layers is None or not first <= last < len(layers):
                count = "no layers" if layers is None else f"layers 0-{len(layers) - 1}"
                raise OptionError(f"model.freeze: {item!r} names layers that do not exist; {match['part']} has {count}")
            module = nn.ModuleList(layers[i] for i in range(first, last + 1))
        selected.update((id(p), p) for p in module.parameters())
    return list(selected.values())
