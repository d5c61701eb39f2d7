"""Model sign_to_text_hf of every family: starts, languages, loss, cache and search, against Hugging Face's own."""

import functools
import tempfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hf_helpers import FAMILIES, LANGUAGES, tiny_model
from hf_training import hf_model, hf_task, whole_batch, write_corpus
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor

from slt_plugin.report.occlusion import token_log_probabilities

LIMIT = 12
# what the decoder is given first, by the release of each family
STARTS = {"t5": "pad", "t5_v1_1": "pad", "mt5": "pad", "byt5": "pad", "pegasus": "pad", "bart": "eos",
          "mbart_cc25": "language", "mbart50": "eos", "m2m100": "eos", "nllb": "eos"}  # fmt: skip
PREFIXED = ("mbart50", "m2m100", "nllb")


@functools.cache
def folders(family: str) -> tuple[Path, Path]:
    """Corpus and model of a family, for all tests."""
    root = Path(tempfile.mkdtemp(prefix=f"hf_{family}_"))
    return write_corpus(root / "corpus", family), tiny_model(family, root / "model")


@functools.cache
def built(family: str):
    """task, model, batch: see `hf_training`; tests must not change them."""
    corpus, folder = folders(family)
    task = hf_task(corpus, folder)
    model = hf_model(task, folder)
    return task, model, whole_batch(task)


def encoded(model, batch) -> dict:
    source = {name: batch["net_input"][name] for name in ("src_tokens", "src_lengths")}
    with torch.no_grad():
        return model.encoder(**source)


@pytest.mark.parametrize("family", FAMILIES)
def test_start_language_and_target(family):
    task, _, batch = built(family)
    codec, dictionary = task.codec, task.target_dictionary
    languages = [codec.language_id(code) for code in LANGUAGES.get(family, ()) * 3]
    start = {"pad": dictionary.pad(), "eos": dictionary.eos()}.get(STARTS[family])
    expected = languages if start is None else [start] * 6
    assert batch["start_tokens"].tolist() == batch["net_input"]["prev_output_tokens"][:, 0].tolist() == expected
    assert ("prefix_tokens" in batch) == (family in PREFIXED)
    if family in PREFIXED:
        assert batch["prefix_tokens"].squeeze(1).tolist() == batch["target"][:, 0].tolist() == languages
    if family == "bart":
        assert (batch["target"][:, 0] == dictionary.bos()).all()
    assert [codec.decode(row) for row in batch["target"]] == batch["texts"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mbart_cc25"])  # whose labels are not what is written
def test_loss_is_that_of_hugging_face(family):
    task, model, batch = built(family)
    labels = batch["target"].masked_fill(batch["target"] == task.target_dictionary.pad(), -100)
    source = batch["net_input"]
    encoder_out = encoded(model, batch)
    with torch.no_grad():
        logits = model(**source)
        ours = model.get_normalized_probs(logits, log_probs=True)
        x, mask = model.encoder.adapter(source["src_tokens"], encoder_out["encoder_padding_mask"][0])
        theirs = model.hf(inputs_embeds=x, attention_mask=(~mask).long(), labels=labels)
    kept = labels >= 0
    loss = -ours.gather(2, batch["target"].unsqueeze(2)).squeeze(2)[kept].mean()
    torch.testing.assert_close(loss, theirs.loss)
    assert ours.size(2) == len(task.target_dictionary) < theirs.logits.size(2)
    # report.occlusion: what the decoder is given is the start and the tokens before
    scores = token_log_probabilities([model], source, source["prev_output_tokens"], batch["target"])
    torch.testing.assert_close(-scores[kept].mean().float(), loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_incremental_logits_are_those_of_the_whole_sequence_whatever_beams_go_on(family):
    task, model, batch = built(family)
    generator = torch.Generator().manual_seed(0)
    rows, beam = len(batch["id"]), 2
    order = torch.arange(rows).repeat_interleave(beam)
    encoder_out = model.encoder.reorder_encoder_out(encoded(model, batch), order)
    whole, state = dict(encoder_out), {}
    tokens = batch["start_tokens"].repeat_interleave(beam).unsqueeze(1)
    for step in range(6):
        with torch.no_grad():
            last, _ = model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
            full, _ = model.decoder(tokens, encoder_out=whole)
        assert last.size(1) == 1
        torch.testing.assert_close(last[:, -1], full[:, -1], atol=1e-5, rtol=1e-5)
        size = len(tokens) - beam * (step % 2)  # a sentence ends at every other step
        order = torch.randint(len(tokens), (size,), generator=generator).sort().values
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoder_out = whole = model.encoder.reorder_encoder_out(encoder_out, order)
        following = torch.randint(3, len(task.target_dictionary), (size, 1), generator=generator)
        tokens = torch.cat([tokens[order], following], dim=1)


def one_language(task) -> dict:
    """The rows of the first batch: mBART-cc25 begins with the language, and fairseq has one start a batch."""
    task.load_dataset("test")
    dataset = task.dataset("test")
    rows = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=1000)[0]
    return dataset.collater([dataset[i] for i in rows])


def ends_early(model, eos: int) -> None:
    """Random models hardly ever write the end: it becomes likelier, for whoever asks the model."""

    def likelier(_module, _inputs, logits):
        logits = logits / logits.std(-1, keepdim=True)
        logits[..., eos] = logits.amax(-1) - 0.2
        return logits

    model.hf.get_output_embeddings().register_forward_hook(likelier)


class Allow(LogitsProcessor):
    """The first token of each row, with its own probability (forced_bos_token_id would give it probability 1)."""

    def __init__(self, first, beam):
        self.first = first.repeat_interleave(beam, dim=0)

    def __call__(self, input_ids, scores):
        if input_ids.size(1) > 1:
            return scores
        return torch.full_like(scores, -torch.inf).scatter(1, self.first, scores.gather(1, self.first))


@pytest.mark.parametrize("family", FAMILIES)
def test_search_equals_generate_for_hypotheses_that_end_before_the_limit(family):
    """Beyond, fairseq forces the end and Hugging Face does not; and fairseq never writes padding."""
    corpus, _ = folders(family)
    beam, compared = 3, 0
    for seed in range(4):
        with tempfile.TemporaryDirectory() as folder:
            folder = tiny_model(family, Path(folder), seed=10 + seed)
            task = hf_task(corpus, folder)
            model = hf_model(task, folder)
        batch, dictionary = one_language(task), task.target_dictionary
        ends_early(model, dictionary.eos())
        found = task.inference_step(
            task.build_generator([model], Namespace(beam=beam, max_len_a=0, max_len_b=LIMIT)), [model], batch
        )
        first = batch.get("prefix_tokens")
        if task.codec.prepend_bos:
            first = torch.full_like(batch["start_tokens"], dictionary.bos()).unsqueeze(1)
        encoder_out = encoded(model, batch)
        source = batch["net_input"]["src_tokens"]
        x, mask = model.encoder.adapter(source, encoder_out["encoder_padding_mask"][0])
        theirs = model.hf.generate(
            inputs_embeds=x.detach(),
            attention_mask=(~mask).long(),
            decoder_start_token_id=int(batch["start_tokens"][0]),
            logits_processor=[] if first is None else [Allow(first, beam)],
            suppress_tokens=[dictionary.pad(), *range(len(dictionary), model.hf.config.vocab_size)],
            num_beams=beam,
            early_stopping=True,
            min_new_tokens=1,  # fairseq writes a token before the end
            max_new_tokens=LIMIT + 1,
            length_penalty=1.0,
            do_sample=False,
            forced_eos_token_id=None,
            forced_bos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            # without it transformers makes room for as many layers as the encoder has
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        )
        eos = dictionary.eos()
        for row, sequence in enumerate(theirs.sequences[:, 1:].tolist()):
            ours = found[row][0]["tokens"].tolist()
            if eos not in sequence or any(len(hypothesis["tokens"]) > LIMIT for hypothesis in found[row]):
                continue
            assert ours == sequence[: sequence.index(eos) + 1]
            assert float(found[row][0]["score"]) == pytest.approx(float(theirs.sequences_scores[row]), abs=1e-4)
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("family", LANGUAGES)
def test_hypotheses_are_in_the_language_of_the_row_and_without_its_code(family):
    task, model, batch = built(family)
    generator = task.build_generator([model], Namespace(beam=2, max_len_a=0, max_len_b=LIMIT))
    found = task.inference_step(generator, [model], batch) if family in PREFIXED else None
    if family == "mbart_cc25":
        batch = one_language(task)
        assert sorted(batch["id"].tolist()) in ([0, 2, 4], [1, 3, 5])
        found = task.inference_step(generator, [model], batch)
    for row, hypotheses in enumerate(found):
        tokens = hypotheses[0]["tokens"].tolist()
        if family in PREFIXED:
            assert tokens[0] == batch["prefix_tokens"][row, 0]
        text = task.codec.decode(tokens)
        assert not any(code in text for code in LANGUAGES[family] if len(code) > 2)
        assert task.codec.decode_symbols(task.target_dictionary.string(tokens)) == text


def test_one_fixed_language_for_all_rows():
    corpus, folder = folders("nllb")
    task = hf_task(corpus, folder, target_lang="fra_Latn")
    hf_model(task, folder)
    assert whole_batch(task)["target"][:, 0].tolist() == [task.codec.language_id("fra_Latn")] * 6
