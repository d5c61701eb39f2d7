"""Guard against half precision where it is known to overflow."""

from slt_plugin.models.errors import OptionError


class Fp16Guard:
    """Mixin of models: refuses ``common.fp16`` when ``overflows_in_fp16`` is true (T5 and its relatives)."""

    overflows_in_fp16 = False

    def half(self):
        """Casts to fp16, as the trainer and fairseq-generate do under ``common.fp16``.

        Raises:
            OptionError: this model's activations are known to leave the range of fp16.
        """
        if self.overflows_in_fp16:
            raise OptionError(
                f"{type(self).__name__} overflows in fp16 (its loss becomes NaN after some updates): "
                "use bf16 (common.bf16=true) or fp32 instead of common.fp16=true"
            )
        return super().half()
