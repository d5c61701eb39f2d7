"""CTC head and compression: one state for each symbol read, gradients, fairseq's contracts."""

import pytest
import torch
from test_sign_to_text_model import batch, build

from slt_plugin.models.errors import OptionError
from slt_plugin.modules.ctc_compression import compress

BLANK = 0


def test_runs_are_averaged_and_blanks_left_out():
    states = torch.arange(12, dtype=torch.float).reshape(2, 6, 1)
    symbols = torch.tensor([[5, 5, 0, 5, 7, 0], [0, 3, 3, 9, 9, 9]])
    padding_mask = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    compressed, mask = compress(states, padding_mask, symbols, BLANK)
    # row 0: a double letter stays two; row 1: padding counts for nothing
    assert compressed[0, :, 0].tolist() == [0.5, 3, 4]
    assert compressed[1, 0, 0] == 7.5 and mask.tolist() == [[False] * 3, [False, True, True]]


def test_a_row_of_blanks_keeps_the_mean_of_its_steps():
    states = torch.tensor([[[1.0], [3.0], [100.0]]])
    compressed, mask = compress(
        states, torch.tensor([[False, False, True]]), torch.zeros(1, 3, dtype=torch.long), BLANK
    )
    assert compressed.tolist() == [[[2.0]]] and mask.tolist() == [[False]]


def test_every_used_step_gets_its_share_of_the_gradient():
    states = torch.zeros(1, 4, 2, requires_grad=True)
    compressed, _ = compress(states, torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[4, 4, 0, 6]]), BLANK)
    compressed.sum().backward()
    assert states.grad[0, :, 0].tolist() == [0.5, 0.5, 0, 1]


def test_the_decoder_sees_symbols_and_the_criterion_all_steps():
    plain, model = build(ctc=True).eval(), build(ctc=True, ctc_compression=True).eval()
    model.load_state_dict(plain.state_dict())
    inputs = batch()
    a, b = (m.encoder(inputs["src_tokens"], inputs["src_lengths"]) for m in (plain, model))
    assert torch.equal(a["ctc_scores"][0], b["ctc_scores"][0])
    read = a["ctc_scores"][0].argmax(-1).T.masked_fill(a["encoder_padding_mask"][0], BLANK)
    runs = [int(torch.unique_consecutive(row[row != BLANK]).numel()) for row in read]
    assert b["encoder_out"][0].shape[0] == max(1, *runs) < a["encoder_out"][0].shape[0]
    log_probs, lengths = model.get_ctc_output(model(**inputs), {})
    assert log_probs.shape[:2] == a["encoder_out"][0].shape[:2]
    assert lengths.tolist() == (~a["encoder_padding_mask"][0]).sum(1).tolist()


def test_beam_search_reorders_the_compressed_states():
    model = build(ctc=True, ctc_compression=True).eval()
    inputs = batch()
    encoder_out = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    order = torch.tensor([1, 1, 0])
    reordered = model.encoder.reorder_encoder_out(encoder_out, order)
    assert torch.equal(reordered["encoder_out"][0], encoder_out["encoder_out"][0][:, order])
    assert torch.equal(reordered["encoder_padding_mask"][0], encoder_out["encoder_padding_mask"][0][order])


def test_compression_without_ctc_is_refused():
    with pytest.raises(OptionError, match=r"needs model\.ctc=true"):
        build(ctc_compression=True)


def test_checkpoints_of_version_0_1_load():
    model = build(ctc=True)
    old = {name.replace("encoder.ctc_head.projection", "ctc_projection"): v for name, v in model.state_dict().items()}
    assert "ctc_projection.weight" in old
    other = build(ctc=True)
    with torch.no_grad():
        other.encoder.ctc_head.projection.weight.zero_()
    other.load_state_dict(old)
    assert torch.equal(other.encoder.ctc_head.projection.weight, model.encoder.ctc_head.projection.weight)
