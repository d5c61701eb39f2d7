"""Reduced BLEU in both variants, its blacklist, and truecasing: worked by hand."""

import math

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.reduced_bleu import Blacklist, reduce_pairs, words
from slt_plugin.scoring.report import score, signatures
from slt_plugin.scoring.settings import Settings
from slt_plugin.scoring.truecase import Truecaser

FREQUENT = Blacklist(frozenset(["the", "The", "a", "A", "is", "Is", "it", "It", "it's", "It's"]))
BOTH = ["reduced_bleu", "reduced_bleu_kept"]


def test_punctuation_but_the_apostrophe_is_deleted():
    assert words("It's a well-known (3.5) «fact», they say: \"no!\"") == [
        "It's", "a", "wellknown", "35", "«fact»", "they", "say", "no",
    ]  # fmt: skip
    assert words("a - b -- \\ c") == ["a", "b", "c"]  # what was punctuation only leaves no word
    assert words("!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'") == ["'"]


def test_listed_words_are_dropped_as_they_are_written():
    assert FREQUENT.reduce("It's the cat, is it? THE cat!") == "cat THE cat"
    assert FREQUENT.reduce("It is a...") == ""


def test_both_variants_by_hand():
    references = ["The cat sat on a mat.", "It is.", "a dog barks at it"]
    hypotheses = ["A cat sat on the mat", "Yes it is", "The dog barks"]
    # left over: "cat sat on mat" = "cat sat on mat"; "" against "Yes"; "dog barks at" against "dog barks"
    # dropped: words 4 + 2 of 6, pairs 3 + 1 of 4, threes 2 of 2, fours 1 of 1, all found; 6 words against 7
    # kept: "Yes" is one word too many: 6 of 7 words, 7 words against 7
    scores = score(hypotheses, references, BOTH, Settings(blacklist=FREQUENT))
    assert scores["reduced_bleu"] == pytest.approx(100 * math.exp(1 - 7 / 6))
    assert scores["reduced_bleu_kept"] == pytest.approx(100 * (6 / 7) ** 0.25)


def test_the_variants_are_sacrebleu_on_the_reduced_texts():
    references = ["The cat sat on a mat.", "It is.", "a dog barks at it"]
    hypotheses = ["A cat is on the mat", "", "The dog - barks! at cat"]
    bleu = sacrebleu.metrics.BLEU()
    scores = score(hypotheses, references, BOTH, Settings(blacklist=FREQUENT))
    kept_hyps, kept_refs = ["cat on mat", "", "dog barks at cat"], ["cat sat on mat", " ", "dog barks at"]
    assert scores["reduced_bleu_kept"] == bleu.corpus_score(kept_hyps, [kept_refs]).score
    del kept_hyps[1], kept_refs[1]
    assert scores["reduced_bleu"] == bleu.corpus_score(kept_hyps, [kept_refs]).score
    assert 0 < scores["reduced_bleu"] < 100


def test_which_sentences_are_left():
    pairs = ["a", "x y", "z"], ["the it", "x", "it's z"]
    assert reduce_pairs(*pairs, FREQUENT, keep_empty=False) == (["x y", "z"], ["x", "z"], [1, 2])
    assert reduce_pairs(*pairs, FREQUENT, keep_empty=True) == (["", "x y", "z"], [" ", "x", "z"], [0, 1, 2])


def test_nothing_left_is_an_error():
    for metric in BOTH:
        with pytest.raises(ScoringError, match=r"nothing is left of any of the 2 references.*10 entries"):
            score(["a", "b"], ["The", "it is."], [metric], Settings(blacklist=FREQUENT))


def test_lower_casing_comes_before_the_filter():
    texts = ["THE Cat"], ["the cat"]
    assert score(*texts, BOTH[:1], Settings(blacklist=FREQUENT))["reduced_bleu"] == 0
    reduced = score(
        ["THE Cat sat on mats"], ["the cat sat on mats"], BOTH, Settings(lowercase=True, blacklist=FREQUENT)
    )
    assert reduced == {name: pytest.approx(100) for name in BOTH}


def test_blacklist_from_training_texts():
    texts = ["The cat, the dog. THE it's It's!", "dog cat - i i", "zebra"]  # the 3; cat, dog, i, it's 2; zebra 1
    assert Blacklist.from_texts(texts, 2).entries == {"the", "The", "cat", "Cat"}  # of the equal ones the first
    assert Blacklist.from_texts(texts, 5).entries == {
        "the", "The", "cat", "Cat", "dog", "Dog", "i", "I", "it's", "It's",
    }  # fmt: skip
    many = [f"w{i} " * (300 - i) for i in range(200)]
    entries = Blacklist.from_texts(many).entries
    assert len(entries) == 290  # 145 words in two casings, as Tarres et al. have
    assert {"w144", "W144"} <= entries
    assert "w145" not in entries


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["a b c a"], 3, "3 distinct words: a blacklist of the 3 most frequent ones would hold them all"),
        ([], 145, "0 distinct words"),
        (["a b"], 0, "a blacklist of 0 words"),
    ],
)
def test_blacklists_that_leave_nothing(texts, size, message):
    with pytest.raises(ScoringError, match=message):
        Blacklist.from_texts(texts, size)


def test_blacklist_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\r\nit's\n\n The \n")
    assert Blacklist.from_file(path).entries == {"the", "it's", "The"}
    path.write_text("the\nof course\nwell-known\n")
    with pytest.raises(ScoringError, match="2 entries can never be found: of course, well-known"):
        Blacklist.from_file(path)
    path.write_text("\n")
    with pytest.raises(ScoringError, match="no words in it"):
        Blacklist.from_file(path)
    with pytest.raises(ScoringError, match="cannot be read"):
        Blacklist.from_file(tmp_path / "none.txt")


def test_signatures_tell_variant_and_list():
    texts = signatures(BOTH, Settings(blacklist=FREQUENT))
    plain = signatures(["bleu4"])["bleu4"]
    assert texts["reduced_bleu"] == f"{plain}|reduced:dropped|blacklist:{FREQUENT.signature}"
    assert texts["reduced_bleu_kept"] == f"{plain}|reduced:kept|blacklist:{FREQUENT.signature}"
    assert FREQUENT.signature.startswith("10-")
    other = Blacklist(FREQUENT.entries - {"it"} | {"of"})
    assert other.signature.startswith("10-")
    assert other.signature != FREQUENT.signature
    assert Blacklist(frozenset(sorted(FREQUENT.entries, reverse=True))).signature == FREQUENT.signature


@pytest.mark.parametrize("call", [lambda m: score(["a"], ["a"], [m]), lambda m: signatures([m])])
def test_reduced_bleu_needs_a_blacklist(call):
    for metric in BOTH:
        with pytest.raises(ScoringError, match=f"{metric} needs a blacklist.*--train-manifest TSV or --blacklist FILE"):
            call(metric)


TRAINING = [
    "Yesterday Anna met NASA people in Paris.",
    "The weather in Paris is fine, said Anna, and I'm off to the NASA!",
    "Rain? No: the rain in May ended.",
]


def test_truecasing_by_hand():
    truecaser = Truecaser.from_texts(TRAINING)
    assert truecaser(["anna saw the nasa in paris.  i'm (fine)! rain in may ...", "", "zoe ate"]) == [
        "Anna saw the NASA in Paris.  I'm (fine)! Rain in May ...",
        "",
        "Zoe ate",
    ]
    assert truecaser.starts


def test_sentences_begin_as_the_training_texts_do():
    truecaser = Truecaser.from_texts(["we met Anna", "123", "the rain. It fell on Anna"])
    assert not truecaser.starts
    assert truecaser(["anna saw the rain"]) == ["Anna saw the rain"]
    assert truecaser(["the rain fell on anna"]) == ["the rain fell on Anna"]


def test_the_most_frequent_casing_wins():
    assert Truecaser.from_texts(["X will", "we Will will will", "so Will"])(["a will"]) == ["a will"]
    assert Truecaser.from_texts(["X will", "we Will will Will", "so Will"])(["a will"]) == ["a Will"]


@given(st.text(st.characters(exclude_characters="ı", exclude_categories=["Cs"])))  # whose capital is I, and that's i
def test_only_the_case_of_letters_changes(text):
    truecaser = Truecaser({"a": "A", "<": "<", "b|c": "B|C", "ab": "aB"}, True)
    assert truecaser([text])[0].casefold() == text.casefold()


@given(st.text(alphabet="ab <>|&;.,!?'\"/-\n\t_[]1é", max_size=30))
def test_markup_and_signs_stay(text):
    cased = Truecaser({"a": "A"}, True)([text])[0]
    assert cased.lower() == text
    assert Truecaser({}, False)([text]) == [text]


def test_truecasing_before_scoring():
    hypotheses, references = ["anna met the nasa in paris."], ["Anna met the NASA in Paris."]
    truecaser = Truecaser.from_texts(TRAINING)
    assert score(hypotheses, references, ["wer"]) == {"wer": 50.0}
    assert score(["anna"], ["anna"], ["wer"], Settings(truecaser=truecaser)) == {"wer": 100.0}  # not the references
    metrics = ["bleu4", "chrf", "wer", "cer"]
    assert list(score(hypotheses, references, metrics, Settings(truecaser=truecaser)).values()) == pytest.approx(
        [100, 100, 0, 0]
    )
    blacklist = Blacklist(frozenset(["Anna", "met"]))  # "anna" is dropped only once it has its capital
    reduced = score(hypotheses, references, ["reduced_bleu"], Settings(blacklist=blacklist, truecaser=truecaser))
    assert reduced["reduced_bleu"] == pytest.approx(100)
    texts = signatures(["bleu4", "rouge_l"], Settings(truecaser=truecaser))
    assert all(text.endswith(f"|truecased:{truecaser.signature}") for text in texts.values())
    assert truecaser.signature.startswith("sacremoses-")
    assert Truecaser.from_texts(TRAINING).signature == truecaser.signature
    assert Truecaser.from_texts(TRAINING[:2]).signature != truecaser.signature


def test_truecasing_cannot_be_learnt_from_lower_case():
    with pytest.raises(ScoringError, match="none of the 2 training texts has a capital"):
        Truecaser.from_texts(["all lower", "123"])


def test_truecasing_and_lower_casing_exclude_each_other():
    with pytest.raises(ScoringError, match="exclude each other"):
        score(["a"], ["a"], ["wer"], Settings(lowercase=True, truecaser=Truecaser({}, True)))
