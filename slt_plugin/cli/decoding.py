"""What the commands that decode share: checkpoints to models and their task, on the device that is there."""

from collections.abc import Sequence
from pathlib import Path


class Models:
    """The models of one checkpoint (or ensemble), their task, and where they run.

    Args:
        cfg: ``generation`` (fairseq's options of beam search) and ``common`` (cpu, fp16, bf16).
        task_options: options of the task that come from here instead of the checkpoint (data, limits).
        average: one model with the mean of the checkpoints' weights instead of an ensemble.

    Raises:
        CheckpointError: checkpoints of different models are to be averaged.
    """

    def __init__(self, paths: Sequence[Path], cfg, task_options: dict, *, average: bool = False):
        import torch
        from fairseq import checkpoint_utils

        from slt_plugin.checkpoints.averaging import average_checkpoints

        state = average_checkpoints(paths, task_options) if average else None
        self.models, _, self.task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path) for path in (paths[:1] if average else paths)], arg_overrides=task_options, state=state
        )
        self.device = "cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu"
        for model in self.models:
            if cfg.common.fp16:
                model.half()
            elif cfg.common.bf16:
                model.bfloat16()
            model.to(self.device).prepare_for_inference_(cfg)
        self.generator = self.task.build_generator(self.models, cfg.generation)

    def limits(self) -> tuple[int, int]:
        """The longest source (steps) and target (tokens) that task and models take."""
        from fairseq import utils

        return utils.resolve_max_positions(self.task.max_positions(), *[m.max_positions() for m in self.models])

    def generate_each(self, sample: dict, languages: Sequence[dict]) -> list[list[list[dict]]]:
        """`generate` of one batch for each of several languages; what can be encoded once, is.

        Args:
            languages: what the batch says of its language, see `SignDataset.language_tokens`.
        """
        import torch

        sample = self.on_device(sample)
        net_input = sample["net_input"]
        if len(languages) > 1 and len(self.models) == 1 and hasattr(self.models[0], "embed"):
            with torch.no_grad():
                net_input = {**net_input, "embedding": self.models[0].embed(net_input)}
        return [self.generate({**sample, **tokens, "net_input": net_input}) for tokens in languages]

    def on_device(self, sample: dict) -> dict:
        from fairseq import utils

        return utils.move_to_cuda(sample) if self.device == "cuda" else sample

    def generate(self, sample: dict) -> list[list[dict]]:
        """fairseq's hypotheses for each row of a batch, best first."""
        return self.task.inference_step(self.generator, self.models, self.on_device(sample))
