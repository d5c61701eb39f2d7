"""BLEURT on tiny random checkpoints that the tests make: names of weights, pieces, arithmetic, refusals."""

import importlib.util
import json
import logging
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from slt_plugin.scoring import bleurt
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.intervals import confidence, paired
from slt_plugin.scoring.report import score, signatures
from slt_plugin.scoring.settings import Settings

pytest.importorskip("transformers")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "##s", "hello", "world", ".", ","]
REFERENCES = ["The cats sat on a mat.", "Hello, world", "a dog sat on the mat, a cat sat on the mat"]
HYPOTHESES = ["the cat sat", "hello world", "The dog"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu_new",  # what follows is no default of any class
    "layer_norm_eps": 0.01,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def original():
    """The package's own network. transformers 5 lacks four things that it uses; none of them computes a score."""
    if importlib.util.find_spec("bleurt_pytorch") is None:
        pytest.skip("needs bleurt-pytorch, whose network ours is compared with")
    import transformers.pytorch_utils

    patch = pytest.MonkeyPatch()
    patch.setattr(transformers.pytorch_utils, "find_pruneable_heads_and_indices", None, raising=False)
    tokenisation = types.ModuleType("transformers.models.bert.tokenization_bert_fast")
    tokenisation.BertTokenizerFast = object
    patch.setitem(sys.modules, tokenisation.__name__, tokenisation)
    from bleurt_pytorch import BleurtConfig, BleurtForSequenceClassification
    from bleurt_pytorch.bleurt.modeling_bleurt import BleurtModel

    def additive(self, mask, shape):
        return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min

    patch.setattr(BleurtModel, "get_extended_attention_mask", additive, raising=False)
    patch.setattr(BleurtModel, "get_head_mask", lambda self, mask, layers: [None] * layers, raising=False)

    def network(**sizes):
        made = BleurtForSequenceClassification(BleurtConfig(**SIZES, **sizes)).eval()
        with torch.no_grad():
            for weights in made.parameters():  # the library's own small ones give every pair nearly the same score
                weights.normal_(std=0.5)
        return made

    yield network
    patch.undo()


def write_checkpoint(folder, network, *, safetensors: bool = True) -> None:
    folder.mkdir(parents=True)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if safetensors:
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    config = {key: getattr(network.config, key) for key in ("vocab_size", "embedding_size", *SIZES)}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bleurt", "pad_token_id": 0}))


@pytest.fixture
def wordpiece(tmp_path, original):
    """As bleurt-tiny-512: BERT and WordPiece. The folder and the original network."""
    torch.manual_seed(1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    network = original(vocab_size=len(special) + len(WORDS))
    write_checkpoint(tmp_path / "tiny", network, safetensors=False)
    (tmp_path / "tiny" / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    return tmp_path / "tiny", network


@pytest.fixture
def sentencepiece(tmp_path, original):
    """As BLEURT-20: narrow embeddings, sentencepiece, cased."""
    import sentencepiece

    torch.manual_seed(2)
    network = original(vocab_size=60, embedding_size=8)
    write_checkpoint(tmp_path / "tiny20", network)
    (tmp_path / "tiny20" / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    (tmp_path / "text.txt").write_text("\n".join([*REFERENCES, *HYPOTHESES] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tiny20" / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    return tmp_path / "tiny20", network


def by_hand(network, start, end, encode, hypothesis, reference) -> float:
    """One pair at a time, without padding, through the original network."""
    first, second = [start, *encode(reference), end], [*encode(hypothesis), end]
    kinds = torch.tensor([[0] * len(first) + [1] * len(second)])
    with torch.inference_mode():
        return network(torch.tensor([first + second]), torch.ones_like(kinds), kinds).logits.item()


def test_wordpiece_checkpoint_scores_as_the_original_network(wordpiece):
    folder, network = wordpiece
    number = {word: 5 + i for i, word in enumerate(WORDS)}

    def encode(text):  # lower-cased, signs split off, "cats" is cat ##s
        for sign in ".,":
            text = text.replace(sign, f" {sign} ")
        return [number[word] for word in text.lower().replace("cats", "cat ##s").split()]

    expected = [by_hand(network, 2, 3, encode, h, r) for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert len({round(value, 2) for value in expected}) == 3  # the network can tell the pairs apart
    ours = score(HYPOTHESES, REFERENCES, ["bleurt"], Settings(bleurt=folder))["bleurt"]
    assert ours == pytest.approx(100 * sum(expected) / 3, abs=1e-3)
    swapped = [by_hand(network, 2, 3, encode, r, h) for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert ours != pytest.approx(100 * sum(swapped) / 3, abs=1e-2)  # and which is the reference matters


def test_sentencepiece_checkpoint_scores_as_the_original_network(sentencepiece):
    import sentencepiece as library

    folder, network = sentencepiece
    processor = library.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    special = [processor.piece_to_id(piece) for piece in ("[CLS]", "[SEP]")]
    expected = [by_hand(network, *special, processor.encode, h, r) for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert len({round(value, 2) for value in expected}) == 3
    loaded = bleurt.load(folder)
    assert loaded(HYPOTHESES, REFERENCES) == pytest.approx(expected, abs=1e-5)
    assert loaded.longest == 32
    # batches and their padding change nothing
    many = [f"{'the cat ' * (i % 7)}sat" for i in range(40)]
    each = [bleurt.load(folder)([text], ["a dog"])[0] for text in many]
    bleurt.load.cache_clear()
    assert bleurt.load(folder)(many, ["a dog"] * 40) == pytest.approx(each, abs=1e-5)


def test_a_pair_goes_through_the_network_once(wordpiece, monkeypatch):
    folder, _ = wordpiece
    bleurt.load.cache_clear()
    seen = []
    run = bleurt.Network._run
    monkeypatch.setattr(bleurt.Network, "_run", lambda self, batch: seen.append(len(batch)) or run(self, batch))
    settings = Settings(bleurt=folder)
    hypotheses, references = HYPOTHESES * 20, REFERENCES * 20
    value = score(hypotheses, references, ["bleurt"], settings)["bleurt"]
    interval = confidence(hypotheses, references, ["bleurt"], settings)["bleurt"]
    assert interval.low < value < interval.high
    others = [*HYPOTHESES[1:], HYPOTHESES[0]] * 20
    compared = paired(hypotheses, {"same": hypotheses, "other": others}, references, ["bleurt"], settings)
    assert compared["same"]["bleurt"].p_value == 1
    assert compared["other"]["bleurt"].p_value < 1
    assert seen == [3, 3]  # three different pairs each


def test_long_pairs_are_cut_from_the_longer_side(wordpiece, caplog):
    network = bleurt.load(wordpiece[0])
    cat, sat = 5 + WORDS.index("cat"), 5 + WORDS.index("sat")
    with caplog.at_level(logging.WARNING, logger="slt_plugin.scoring.bleurt"):
        numbers, kinds = network.pieces("sat " * 10, "cat " * 50)
    assert numbers == [2, *[cat] * 19, 3, *[sat] * 10, 3]  # 32 in all
    assert kinds == [0] * 21 + [1] * 11
    assert "longer pair is cut" in caplog.text


def test_lower_case_and_weights_show_in_the_signature(wordpiece, sentencepiece):
    texts = [signatures(["bleurt"], Settings(bleurt=folder))["bleurt"] for folder in (wordpiece[0], sentencepiece[0])]
    assert texts[0].startswith("nrefs:1|case:mixed|model:tiny-")
    assert "|model:tiny20-" in texts[1]
    assert "|version:transformers-" in texts[0]
    assert "case:lc" in signatures(["bleurt"], Settings(lowercase=True, bleurt=wordpiece[0]))["bleurt"]
    cased = score(["The CAT"], ["the cat"], ["bleurt"], Settings(bleurt=sentencepiece[0]))
    assert cased != score(["The CAT"], ["the cat"], ["bleurt"], Settings(lowercase=True, bleurt=sentencepiece[0]))


def broken(folder, what):
    bleurt.load.cache_clear()
    what(folder)
    with pytest.raises(ScoringError) as caught:
        bleurt.load(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "'bert', not 'bleurt'"),
        (lambda f: (f / "vocab.txt").unlink(), "neither spm.model nor vocab.txt"),
        (lambda f: (f / "vocab.txt").write_text("a\nb\n"), "download the checkpoint again"),
        (lambda f: (f / "pytorch_model.bin").unlink(), "neither model.safetensors nor pytorch_model.bin"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x" * 100), "pytorch_model.bin: cannot be read"),
    ],
)
def test_what_is_no_checkpoint(wordpiece, what, message):
    assert message in broken(wordpiece[0], what)


def test_a_broken_vocabulary(sentencepiece):
    assert "spm.model: cannot be read" in broken(sentencepiece[0], lambda f: (f / "spm.model").write_bytes(b"x" * 9))


def test_weights_that_do_not_fit(wordpiece):
    path = wordpiece[0] / "pytorch_model.bin"

    def lose_a_tensor(folder):
        state = torch.load(path, weights_only=True)
        del state["bleurt.encoder.layer.1.output.dense.weight"]
        torch.save(state, path)

    message = broken(wordpiece[0], lose_a_tensor)
    assert "does not fit" in message
    assert "encoder.layer.1.output.dense.weight" in message


def test_without_the_extra(wordpiece, monkeypatch):
    bleurt.load.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ScoringError, match=r"pip install 'slt-plugin\[bleurt\]'"):
        bleurt.load(wordpiece[0])


def test_bleurt_needs_a_folder():
    with pytest.raises(ScoringError, match="bleurt needs a local checkpoint"):
        score(["a"], ["a"], ["bleurt"])
