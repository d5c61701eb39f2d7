"""Model sign_to_text: presets, contracts with fairseq, CTC, freezing."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.optim.fp16_optimizer import FP16Optimizer

import slt_plugin.tasks  # noqa: F401
from slt_plugin.models.precision import Fp16Guard
from slt_plugin.models.sign_to_text import PRESETS, SignToTextModel, TinyConfig

CHANNELS = 12


def dictionary(symbols: int = 6) -> Dictionary:
    built = Dictionary()
    for i in range(symbols):
        built.add_symbol(f"s{i}")
    return built


def build(config=TinyConfig, symbols=6, **options) -> SignToTextModel:
    torch.manual_seed(0)
    cfg = config(**{"max_target_positions": 64, "source_encoder": "pose", **options})
    task = SimpleNamespace(
        target_dictionary=dictionary(symbols), source_channels=CHANNELS, cfg=SimpleNamespace(source="pose")
    )
    return SignToTextModel.build_model(cfg, task)


def batch():
    torch.manual_seed(1)
    return {
        "src_tokens": torch.randn(2, 21, CHANNELS),
        "src_lengths": torch.tensor([21, 12]),
        "prev_output_tokens": torch.tensor([[2, 4, 5, 6], [2, 7, 1, 1]]),
    }


# (vocabulary, parameters of the text side): the pretrained ones are the published counts of BART base, BART large and
# mBART-cc25; the others were counted once, so that a preset that takes another's size shows
TEXT_PARAMETERS = {
    "sign_to_text": (10, 7_902_464),
    "sign_to_text_tiny": (10, 2_524_224),
    "sign_to_text_small": (10, 7_902_464),
    "sign_to_text_base": (10, 44_145_664),
    "sign_to_text_bart_base": (50265, 139_420_416),
    "sign_to_text_bart_large": (50265, 406_291_456),
    "sign_to_text_mbart_large": (250027, 610_851_840),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_registered_with_their_own_size(name):
    assert name in MODEL_REGISTRY
    assert name in ARCH_MODEL_REGISTRY
    assert MODEL_DATACLASS_REGISTRY[name] is PRESETS[name]
    vocabulary, parameters = TEXT_PARAMETERS[name]
    with torch.device("meta"):
        model = build(PRESETS[name], symbols=vocabulary - 4)
    text = [*model.encoder.text_encoder.parameters(), *model.decoder.parameters()]
    assert sum(p.numel() for p in {id(p): p for p in text}.values()) == parameters


def test_encoder_output_follows_fairseq_and_ignores_padding():
    model, inputs = build().eval(), batch()
    out = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    states, mask = out["encoder_out"][0], out["encoder_padding_mask"][0]
    assert states.shape == (6, 2, 192)  # 21 steps / stride 4, T x B x C
    assert (~mask).sum(1).tolist() == [6, 3]
    alone = model.encoder(inputs["src_tokens"][1:, :12], inputs["src_lengths"][1:])["encoder_out"][0]
    torch.testing.assert_close(states[:3, 1], alone[:, 0], rtol=1e-4, atol=1e-5)
    assert model.max_positions() == (1024 * 4, 64)


def test_features_do_not_drown_the_positions_at_the_start():
    """fairseq multiplies embeddings by sqrt(width): the adapter begins that much smaller."""
    model = build(adapter_stride=1).eval()
    features, mask = model.encoder.source_encoder(batch()["src_tokens"], torch.zeros(2, 21, dtype=torch.bool))
    embedded = model.encoder.adapter(features, mask)[0] * model.encoder.text_encoder.embed_scale
    assert 0.5 < embedded.std() < 2


def test_incremental_decoding_equals_full():
    model, inputs = build().eval(), batch()
    encoder_out = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    tokens = inputs["prev_output_tokens"][:1].repeat(2, 1)
    full, _ = model.decoder(tokens, encoder_out=encoder_out)
    state: dict = {}
    steps = [
        model.decoder(tokens[:, : i + 1], encoder_out=encoder_out, incremental_state=state)[0][:, -1] for i in range(4)
    ]
    torch.testing.assert_close(torch.stack(steps, dim=1), full, rtol=1e-4, atol=1e-5)


def test_half_precision_input_is_cast():
    model, inputs = build().eval().bfloat16(), batch()
    logits, _ = model(**inputs)
    assert logits.dtype == torch.bfloat16


class TestCTC:
    def test_output_and_target_suit_the_criterion(self):
        model, inputs = build(ctc=True), batch()
        sample = {"target": torch.tensor([[4, 5, 6, 2], [7, 2, 1, 1]]), "target_lengths": torch.tensor([4, 2])}
        log_probs, lengths = model.get_ctc_output(model(**inputs), sample)
        assert log_probs.shape == (6, 2, 10) and lengths.tolist() == [6, 3]
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(6, 2))
        targets, target_lengths = model.get_ctc_target(sample)
        assert target_lengths.tolist() == [3, 1] and targets.size(1) == 3
        assert targets[0].tolist() == [4, 5, 6] and targets[1, 0] == 7

    def test_leading_bos_is_blank_and_left_out(self):
        sample = {"target": torch.tensor([[0, 4, 5, 2], [0, 7, 2, 1]]), "target_lengths": torch.tensor([4, 3])}
        targets, lengths = build(ctc=True).get_ctc_target(sample)
        assert lengths.tolist() == [2, 1] and targets.tolist() == [[4, 5], [7, 2]]

    def test_large_vocabularies_are_refused(self):
        with pytest.raises(ValueError, match="at most 5000"):
            build(ctc=True, symbols=5000)

    def test_criterion_without_projection_is_refused(self):
        model = build()
        with pytest.raises(ValueError, match=r"needs model\.ctc=true"):
            model.get_ctc_output(model(**batch()), {})


class TestFreezing:
    def test_always(self):
        model = build(freeze="source_encoder,text_decoder.layers.0")
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        expected = {
            name for name, _ in model.named_parameters()
            if name.startswith(("encoder.source_encoder.", "decoder.layers.0."))
        }  # fmt: skip
        assert frozen == expected and expected

    def test_for_some_updates(self):
        model = build(freeze="text_encoder.layers.1-2", freeze_updates=3)
        assert all(p.requires_grad for p in model.parameters())
        part = list(model.encoder.text_encoder.layers[1].parameters())
        for update, kept in [(0, False), (2, False), (3, True)]:
            model(**batch())[0].sum().backward()
            model.drop_frozen_gradients(update, optimizer=None)
            assert all((p.grad is not None) is kept for p in part)
            assert model.encoder.text_encoder.layers[0].fc1.weight.grad is not None

    def test_for_some_updates_needs_an_optimizer_that_leaves_them_alone(self):
        model = build(freeze="text_decoder", freeze_updates=3)
        with pytest.raises(ValueError, match="decays frozen weights"):
            model.drop_frozen_gradients(0, FP16Optimizer.__new__(FP16Optimizer))
        model.drop_frozen_gradients(3, FP16Optimizer.__new__(FP16Optimizer))

    @pytest.mark.parametrize(("spec", "message"), [
        ("decoder", "source_encoder, adapter, text_encoder, text_decoder"),
        ("text_decoder.layers.1-9", "text_decoder has layers 0-1"),
        ("adapter.layers.0", "adapter has no layers"),
        ("text_decoder.layers.a", "cannot read"),
    ])  # fmt: skip
    def test_wrong_parts_are_named(self, spec, message):
        with pytest.raises(ValueError, match=message):
            build(freeze=spec)


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        build(decoder_embed_dim=64)


def test_strides_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="pose_strides"):
        build(pose_strides="2x2")


def test_overflowing_models_refuse_fp16():
    class Overflowing(Fp16Guard, torch.nn.Linear):
        overflows_in_fp16 = True

    with pytest.raises(ValueError, match=r"use bf16"):
        Overflowing(2, 2).half()
    assert build().half().encoder.adapter.projection.weight.dtype == torch.float16
