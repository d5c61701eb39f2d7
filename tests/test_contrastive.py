"""The contrastive loss against a plain computation, its bound, and retrieval on embeddings made by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from slt_plugin.modules import contrastive
from slt_plugin.modules.contrastive import (
    LOG_SCALE_INIT,
    LOG_SCALE_MAX,
    contrastive_gradients,
    contrastive_loss,
    gather_rows,
    retrieval_metrics,
    sum_over_ranks,
)
from slt_plugin.modules.hiera_layout import ModuleShapeError


def embeddings(n: int, dim: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(n, dim, generator=generator), dim=1) for _ in range(2)]


def plain_loss(video, text, scale: float) -> float:
    """Row by row in double precision."""
    video, text = (np.asarray(x, dtype=np.float64) for x in (video, text))
    total = 0.0
    for i in range(len(video)):
        for own, others in ((video[i], text), (text[i], video)):
            scores = np.exp(scale * others @ own)
            total -= math.log(scores[i] / scores.sum()) / 2
    return total / len(video)


def test_constants_of_clip():
    assert math.exp(LOG_SCALE_INIT) == pytest.approx(1 / 0.07) and math.exp(LOG_SCALE_MAX) == pytest.approx(100)


@pytest.mark.parametrize("n", [2, 7])
def test_loss_is_the_symmetric_cross_entropy(n):
    video, text = embeddings(n)
    found = contrastive_loss(video, text, torch.tensor(LOG_SCALE_INIT))
    assert found.item() == pytest.approx(plain_loss(video, text, 1 / 0.07), rel=1e-5)
    swapped = contrastive_loss(text, video, torch.tensor(LOG_SCALE_INIT))
    assert swapped.item() == pytest.approx(found.item(), rel=1e-6)


def test_a_single_clip_has_no_loss():
    video, text = embeddings(1)
    found = contrastive_gradients(video, text, torch.tensor(1.0))
    assert found.loss == 0 and not any(d.any() for d in (found.video, found.text, found.log_scale))


def test_half_precision_is_computed_in_float32():
    video, text = embeddings(9)
    half = [x.bfloat16() for x in (video, text)]
    assert contrastive_loss(*half, torch.tensor(2.0)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(video, text, torch.tensor(2.0))
    assert inside.item() == contrastive_loss(video, text, torch.tensor(2.0)).item()


def test_gradients_are_those_of_autograd_through_the_embeddings():
    video, text = (x.requires_grad_() for x in embeddings(5))
    scale = torch.tensor(1.5, requires_grad=True)
    loss = contrastive_loss(video, text, scale)
    loss.backward()
    with torch.no_grad():
        found = contrastive_gradients(video, text, scale)
    for got, wanted in zip(found, (loss, video.grad, text.grad, scale.grad), strict=True):
        torch.testing.assert_close(got, wanted.detach())
        assert not got.requires_grad


@pytest.mark.parametrize("over", [0.0, 0.7])
def test_the_scale_stops_at_its_bound_and_comes_back(over):
    video, text = embeddings(6)
    scale = torch.tensor(LOG_SCALE_MAX + over)
    bound = contrastive_loss(video, text, torch.tensor(LOG_SCALE_MAX))
    assert contrastive_loss(video, text, scale).item() == bound.item()
    wrong = contrastive_gradients(video, text, scale)  # random pairs: a smaller scale is better
    below = contrastive_gradients(video, text, torch.tensor(LOG_SCALE_MAX - 1e-4))
    assert wrong.log_scale.item() == pytest.approx(below.log_scale.item(), rel=1e-2) and wrong.log_scale > 0
    angles = 0.1 * torch.arange(4)
    same = torch.stack([angles.cos(), angles.sin()], dim=1)
    right = contrastive_gradients(same, same, scale)  # right pairs: a larger one would be better, and is not to be
    assert contrastive_gradients(same, same, torch.tensor(LOG_SCALE_MAX - 1e-4)).log_scale < 0
    assert right.log_scale == 0 and right.video.any()


def test_what_is_not_a_pair_is_refused():
    video, text = embeddings(4)
    for function in (
        lambda: contrastive_loss(video, text[:3], torch.tensor(1.0)),
        lambda: retrieval_metrics(video, text.T),
    ):
        with pytest.raises(ModuleShapeError, match=r"as many embeddings of videos as of texts.*\(4, 6\)"):
            function()


def test_one_process_gathers_its_own():
    rows = torch.randn(3, 2, requires_grad=True)
    gathered, first = gather_rows(rows)
    assert torch.equal(gathered, rows) and first == 0 and not gathered.requires_grad
    assert torch.equal(sum_over_ranks(rows), rows)


# retrieval


def test_retrieval_of_a_permutation():
    """Items 0 and 1 are swapped: of 12 queries each way, 10 find their own first."""
    video = torch.eye(12)
    text = video[[1, 0, *range(2, 12)]]
    # all cosines but one are 0, so a swapped query's own stands among 10 others
    found = retrieval_metrics(3 * video, text)
    for way in ("v2t", "t2v"):
        assert found[f"{way}_r1"] == pytest.approx(100 * 10 / 12)
        assert found[f"{way}_r5"] == pytest.approx(100 * (10 + 2 * 4 / 11) / 12)  # 4 places for 11 of them
        assert found[f"{way}_r10"] == pytest.approx(100 * (10 + 2 * 9 / 11) / 12)
        assert found[f"{way}_median_rank"] == 1


def test_both_ways_differ():
    """Both videos are nearest to text 0; both texts are nearest to their own video."""
    video = normalize(torch.tensor([[1.0, 0.1], [1.0, 0.4]]), dim=1)
    text = normalize(torch.tensor([[1.0, 0.2], [0.0, 1.0]]), dim=1)
    found = retrieval_metrics(video, text)
    assert (found["v2t_r1"], found["v2t_median_rank"]) == (50, 1.5)
    assert (found["t2v_r1"], found["t2v_median_rank"]) == (100, 1)
    assert found["v2t_r5"] == found["t2v_r10"] == 100


def test_ranks_of_a_known_order():
    """Video i is nearest to text 0, then 1, 2, ...: rank of its own is i + 1; 21 pairs."""
    text = normalize(torch.stack([torch.ones(21), torch.arange(21) / 20], dim=1), dim=1)
    found = retrieval_metrics(torch.tensor([[1.0, 0.0]]).expand(21, 2), text)
    assert found["v2t_r1"] == pytest.approx(100 / 21) and found["v2t_r5"] == pytest.approx(500 / 21)
    assert found["v2t_r10"] == pytest.approx(1000 / 21) and found["v2t_median_rank"] == 11


def test_one_embedding_for_everything_is_chance():
    same = torch.ones(20, 4)
    found = retrieval_metrics(same, same)
    assert found["v2t_r1"] == pytest.approx(5) and found["t2v_r5"] == pytest.approx(25)
    assert found["v2t_r10"] == pytest.approx(50) and found["v2t_median_rank"] == 10.5


def test_rounding_does_not_decide_between_equal_texts():
    video = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    text = video + torch.tensor([[0.0, 1e-4], [0.0, 0.0], [0.0, 0.0]])  # cosine 1 - 5e-9
    found = retrieval_metrics(video, text)
    assert found["v2t_r1"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)


def test_no_numbers_come_last():
    video, text = embeddings(30)
    found = retrieval_metrics(torch.full_like(video, float("nan")), text)
    assert found["v2t_r1"] == found["t2v_r10"] == 0 and found["v2t_median_rank"] == 30
    text[3] = float("nan")
    some = retrieval_metrics(video, text)
    assert all(math.isfinite(value) for value in some.values()) and some["v2t_r1"] < 100


def test_chunks_change_nothing(monkeypatch):
    video, text = embeddings(23)
    text = normalize(video + 0.7 * text, dim=1)
    whole = retrieval_metrics(video, text)
    monkeypatch.setattr(contrastive, "CHUNK", 5)
    assert retrieval_metrics(video, text) == whole and 0 < whole["v2t_r1"] < 100


def test_nothing_to_retrieve():
    assert all(math.isnan(value) for value in retrieval_metrics(torch.zeros(0, 4), torch.zeros(0, 4)).values())
