"""A tiny sign_clip with a tiny text encoder, batches for it, and updates as fairseq's trainer makes them."""

from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import OmegaConf
from torch import distributed
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from slt_plugin.criterions.mae_contrastive import MAEContrastive, MAEContrastiveConfig
from slt_plugin.models.sign_clip import SignCLIP, SignCLIPConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
FRAMES, SIZE = 32, 64  # of tiny_32x64
TASK = SimpleNamespace(cfg=SimpleNamespace(clip_frames=FRAMES, clip_size=SIZE), weights_follow=False)


def write_tokenizer(folder: Path) -> Path:
    """Letters that stand alone are tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}')
    return folder


def write_bert(folder: Path, dropout: float = 0.0) -> Path:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(write_tokenizer(folder))
    return folder


def write_t5(folder: Path) -> Path:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, pad_token_id=0, dropout_rate=0.0,
        decoder_start_token_id=0, eos_token_id=3,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(write_tokenizer(folder))
    return folder


def clip_model(tower: Path, *, no_mae=False, no_contrastive=False, seed: int = 0, **options) -> SignCLIP:
    given = {
        "variant": "tiny_32x64", "mask_ratio": 0.75, "text_tower": str(tower), "text_max_tokens": 16, "embed_dim": 16,
        "no_mae": no_mae, "no_contrastive": no_contrastive,
    }  # fmt: skip
    torch.manual_seed(seed)
    return SignCLIP.build_model(OmegaConf.merge(OmegaConf.structured(SignCLIPConfig), {**given, **options}), TASK)


def clip_criterion(**options) -> MAEContrastive:
    given = {"update_freq": [1], "gradnorm_min_lr": 1e-2, "best_checkpoint_metric": "loss"}
    cfg = OmegaConf.merge(OmegaConf.structured(MAEContrastiveConfig), {**given, **options})
    return MAEContrastive.build_criterion(cfg, None)


def clip_batch(clips: int, seed: int = 0, first: int = 0) -> dict:
    """Clips of random lengths and coarse patterns, each with a text of its own; clip i is the same in every batch."""
    pixels, seeds, texts, ids = [], [], [], list(range(first, first + clips))
    for i in ids:
        generator = torch.Generator().manual_seed(1000 * seed + i)
        length = 2 * int(torch.randint(4, FRAMES // 2 + 1, (1,), generator=generator))
        pattern = torch.randint(200, (3, 4, 4), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
        noise = torch.randint(56, (length, 3, SIZE, SIZE), generator=generator)
        pixels.append((pattern + noise).to(torch.uint8))
        seeds.append(int(torch.randint(2**62, (1,), generator=generator)))
        count = int(torch.randint(1, 9, (1,), generator=generator))
        texts.append(" ".join(WORDS[5 + int(torch.randint(26, (1,), generator=generator))] for _ in range(count)))
    lengths = [len(clip) for clip in pixels]
    return {
        "id": torch.tensor(ids),
        "nsentences": clips,
        "ntokens": sum(lengths),
        "row_ids": [f"row-{i}" for i in ids],
        "net_input": {
            "src_tokens": torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True),
            "src_lengths": torch.tensor(lengths),
            "mask_seeds": torch.tensor(seeds),
            "texts": texts,
        },
    }


def adam(model, lr: float = 1e-3, eps: float = 1e-3) -> FairseqAdam:
    """With a large ``eps`` gradients that differ by rounding move weights alike."""
    given = {"lr": [lr], "tpu": False, "weight_decay": 0.05, "adam_eps": eps}
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqAdamConfig), given)
    return FairseqAdam(cfg, [parameter for parameter in model.parameters() if parameter.requires_grad])


def update(model, criterion, optimizer, sample: dict, number: int, *, ignore: bool = False) -> dict:
    """What fairseq's trainer does in one update: logged values, summed over ranks."""
    model.train()
    criterion.train()
    optimizer.zero_grad()
    torch.manual_seed(number)
    _, size, logged = criterion.accumulate_gradients(model, sample, optimizer, update_num=number, ignore_grad=ignore)
    logged = dict.fromkeys(logged, 0.0) if ignore else logged
    names, ranks = sorted(logged), 1
    sums = torch.tensor([0.0 if ignore else size, *(logged[name] for name in names)], dtype=torch.float64)
    if distributed.is_initialized():
        ranks = distributed.get_world_size()
        distributed.all_reduce(sums)
        if hasattr(model, "all_reduce_grads"):
            model.all_reduce_grads()  # the mean over ranks
    optimizer.multiply_grads(ranks / float(sums[0]))
    values = dict(zip(names, sums[1:].tolist(), strict=True))
    return {"size": float(sums[0]), **values}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
