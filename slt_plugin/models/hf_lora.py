"""Low-rank adaptation (LoRA, Hu et al., 2021) of a Hugging Face model, with peft: the base is frozen and not saved.

What a checkpoint holds of the base is its identity, a checksum: adapters mean nothing on top of other weights.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import List, Optional  # noqa: UP035  fairseq reads option types of this form

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor, nn

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

IDENTITY = "lora_base"  # the buffer with the checksum of the base
ATTENTION_ENDINGS = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"))  # T5, BART and its kin, BERT
HASHED_VALUES = 2**22  # values converted at a time
MERGE = "slt-import-checkpoint merge-lora CHECKPOINT OUT --base PATH, whose result needs no base"  # for messages


@dataclass
class LoraOptions(FairseqDataclass):
    """Options of the adapters; names as in peft's LoraConfig."""

    r: int = field(default=16, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=32, metadata={"help": "the adapters' output is scaled by lora_alpha / r"})
    target_modules: Optional[List[str]] = field(  # noqa: UP006
        default=None,
        metadata={
            "help": "endings of the names of the linear layers that get adapters; default: queries and values of all "
            "attention (T5: [q,v], BART: [q_proj,v_proj])"
        },
    )
    lora_dropout: float = field(default=0.1, metadata={"help": "dropout of the adapters' input"})
    bias: ChoiceEnum(("none", "all", "lora_only")) = field(
        default="none",
        metadata={"help": "biases that are trained: none, all of the base, or those of the layers with adapters"},
    )


def apply_lora(hf_model: nn.Module, options: LoraOptions) -> nn.Module:
    """Freezes the model and puts trainable adapters into its linear layers, in place; returns the model.

    The adapters' output is 0 at the start (Hu et al., 2021, section 4.1).

    Raises:
        OptionError: values that cannot be, or ``target_modules`` that the model does not have.
    """
    if options.r < 1 or options.lora_alpha <= 0 or not 0 <= options.lora_dropout < 1:
        raise OptionError(
            f"model.lora_config: r={options.r}, lora_alpha={options.lora_alpha}, lora_dropout={options.lora_dropout}; "
            "expected r of at least 1, lora_alpha above 0 and lora_dropout from 0 up to, not including, 1"
        )
    peft = _peft()
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        target_modules=target_modules(hf_model, options.target_modules),
        lora_dropout=options.lora_dropout,
        bias=str(options.bias),
    )
    return peft.inject_adapter_in_model(config, hf_model)


def target_modules(hf_model: nn.Module, given: list[str] | None) -> list[str]:
    """The names that get adapters: those given, checked, or queries and values of the attention.

    Raises:
        OptionError: names of no linear layer of the model, or of one whose weight is another module's too; nothing
            given, and a model whose names are not known.
    """
    endings = {name.rsplit(".", 1)[-1] for name, module in hf_model.named_modules() if isinstance(module, nn.Linear)}
    if given is None:
        default = next((pair for pair in ATTENTION_ENDINGS if endings.issuperset(pair)), None)
        if default is None:
            raise OptionError(
                f"model.lora_config.target_modules is not set, and {type(hf_model).__name__} is a model without a "
                f"default here: choose from its linear layers, {listing(sorted(endings))}"
            )
        return list(default)
    linear = [name for name, module in hf_model.named_modules() if isinstance(module, nn.Linear)]
    chosen = {item: [name for name in linear if _is_meant(name, item)] for item in given}
    wrong = [item for item, names in chosen.items() if not names]
    if wrong or not given:
        what = f"no linear layer of {type(hf_model).__name__} is called {', '.join(wrong)}" if wrong else "it is empty"
        hint = did_you_mean(wrong[0], sorted(endings)) if wrong else ""
        raise OptionError(
            f"model.lora_config.target_modules={list(given)}: {what}{hint or '.'} Choose from "
            f"{listing(sorted(endings))}, or leave it out for queries and values"
        )
    _refuse_shared(hf_model, [name for names in chosen.values() for name in names])
    return list(given)


def _is_meant(name: str, item: str) -> bool:
    """As peft compares: the whole name, or its end after a dot."""
    return name == item or name.endswith(f".{item}")


def _refuse_shared(hf_model: nn.Module, chosen: list[str]) -> None:
    """Raises OptionError where an adapter, once merged, would change another module: an output projection that is the
    table of the input tokens."""
    names: dict[int, list[str]] = {}
    for name, parameter in hf_model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for name in chosen:
        others = [other for other in names[id(hf_model.get_submodule(name).weight)] if other != name]
        if others:
            raise OptionError(
                f"model.lora_config.target_modules: the weight of {name} is shared with {', '.join(others)} in this "
                f"{type(hf_model).__name__} (its token tables are tied), so that merging its adapter would change "
                f"these as well: leave {name.rpartition('.')[2]} out"
            )


def base_identity(hf_model: nn.Module) -> Tensor:
    """SHA-256 of the names and values of all parameters, (32,) uint8; the same in whatever format they are stored.

    To be taken before ``apply_lora``, and before the model is cast to half precision.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(hf_model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        for values in parameter.detach().reshape(-1).split(HASHED_VALUES):
            digest.update(values.to("cpu", torch.float32).contiguous().numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def merge_lora(model: nn.Module) -> nn.Module:
    """Adds the adapters into the weights that they adapt and removes them, in place; returns the model."""
    layer_type = _peft_layer_type()
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, layer_type)]
    for name, module in adapted:
        module.merge(safe_merge=True)  # safe: refuses values that are not finite
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    return model


class LoraCheckpoints:
    """Mixin of models around a Hugging Face model with adapters: their checkpoints leave the frozen base out.

    Everything that is not the base is saved, trained or not: it comes from nowhere else.
    """

    def keep_base_out(self, hf_model: nn.Module, identity: Tensor) -> None:
        """Has the frozen parameters of ``hf_model``, a submodule with adapters, left out of ``state_dict``.

        Args:
            identity: of the base, from ``base_identity``.
        """
        base = {id(p) for p in hf_model.parameters() if not p.requires_grad}
        self.base_names = {name for name, p in self.named_parameters(remove_duplicate=False) if id(p) in base}
        self.register_buffer(IDENTITY, identity)

    def forget_base(self) -> None:
        """Has everything saved: the adapters are folded into the base (``merge_lora``)."""
        del self._buffers[IDENTITY]

    @property
    def leaves_base_out(self) -> bool:
        return IDENTITY in self._buffers

    def state_dict(self, *args, **kwargs):
        """As torch's, without the base where there are adapters."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        if self.leaves_base_out:
            for name in self.base_names:
                state.pop(prefix + name, None)
        return state

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's; what a checkpoint leaves out of the base is that of this model.

        Raises:
            CheckpointError: adapters of another base, or adapters on one side alone.
        """
        check_base(state_dict, self)
        if self.leaves_base_out:
            own = nn.Module.state_dict(self) | dict(self.named_parameters(remove_duplicate=False))
            state_dict = {**{name: own[name].detach() for name in self.base_names}, **state_dict}
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def check_base(state: Mapping[str, Tensor], model: LoraCheckpoints) -> None:
    """Raises CheckpointError where ``state`` does not belong on the base of ``model``."""
    stored = state.get(IDENTITY)
    if (stored is not None) != model.leaves_base_out:
        theirs, ours = ("with", "without") if stored is not None else ("without", "with")
        raise CheckpointError(
            f"the checkpoint was trained {theirs} LoRA, this model is {ours}: set model.use_lora="
            f"{str(stored is not None).lower()}, or fold the adapters with slt-import-checkpoint merge-lora first"
        )
    if stored is None:
        return
    own = getattr(model, IDENTITY).cpu()
    if not torch.equal(stored.cpu(), own):
        raise CheckpointError(
            f"the checkpoint's adapters belong to a base model with checksum {_hexadecimal(stored)}, but "
            f"{model.cfg.hf_model} has {_hexadecimal(own)}: give the base of the training, to train as "
            f"model.hf_model=PATH, to decode with {MERGE}"
        )


def log_parameters(model: nn.Module) -> tuple[int, int]:
    """Logs, and returns, how many parameters are trained and how many there are in all."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("trainable parameters: %s of %s (%.2f %%)", f"{trained:,}", f"{total:,}", 100 * trained / max(total, 1))
    return trained, total


def _hexadecimal(identity: Tensor) -> str:
    return bytes(identity.tolist()).hex()[:16]


def _peft():
    try:
        import peft
    except ImportError as error:
        raise OptionError(f"model.use_lora=true needs peft ({error}): pip install 'slt-plugin[hf]'") from error
    return peft


def _peft_layer_type() -> type:
    return _peft().tuners.tuners_utils.BaseTunerLayer
