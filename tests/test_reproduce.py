"""scripts/reproduce*.py against a server on this machine: small files in the released layouts, the real commands."""

import hashlib
import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import test_cli_import_checkpoint as theirs
import torch
from fairseq.data import Dictionary
from http_helpers import serve
from sonar_helpers import make_fake_release
from test_dailymoth70h import tar
from video_helpers import write_video

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import reproduce  # noqa: E402
import reproduce_steps  # noqa: E402
from reproduce_runner import Runner, StepError, number_check, read_score, text_check  # noqa: E402

from slt_plugin.checkpoints.releases import RELEASES  # noqa: E402
from slt_plugin.common.download import DownloadError  # noqa: E402
from slt_plugin.data.manifest import read_manifest  # noqa: E402

CLIP = "/SONAR/asl/0043626-2023.1.4.mp4"
DATASET = {"table": "/api/access/datafile/53222?format=original", "zip": "/api/access/datafile/51538"}
TABLE_COLUMNS = ["id", "signs_file", "signs_offset", "signs_length", "signs_type", "signs_lang", "translation"]
TEXTS = ["Hello world, how are you?", "What a day!", "They go there.", "And much longer."]


def run(work: Path, *words: object) -> int:
    return reproduce.main([*map(str, words), "--work", str(work), "--json", str(work / "report.json")])


def report(work: Path, step: str) -> dict:
    return json.loads((work / "report.json").read_text(encoding="utf-8"))["steps"][step]


# ---- comparing ----


@pytest.mark.parametrize(("measured", "passed"), [(30.8, True), (29.4, True), (32.2, True), (29.2, False), (40, False)])
def test_numbers_pass_within_their_tolerance(measured, passed):
    assert number_check("BLEU-4", measured, 30.8, 1.5, "somebody").passed == passed


def test_texts_are_compared_exactly():
    same = text_check("eng_Latn", "a b", "a b", "somebody")
    assert (same.passed, same.note) == (True, "")
    other = text_check("eng_Latn", "A large concern.", "a large concern.", "somebody")
    assert not other.passed
    assert 50 < float(other.note.removeprefix("chrF ")) < 100


def test_the_expected_values_are_the_published_ones():
    assert reproduce_steps.DEMO_TEXTS == {
        "eng_Latn": "a large concern is of landslides in mountainous areas.",
        "fra_Latn": "Une grande préoccupation concerne les glissements de terrain dans les montagnes.",
        "deu_Latn": "Es gibt große Bedenken über Erosionen in Gebirgszügen.",
        "zho_Hans": "大多数山区都有岩石沉没的严重问题.",
    }
    assert (reproduce_steps.DAILYMOTH_BLEU4, reproduce_steps.HOW2SIGN_BLEU4) == (30.8, 8.03)


def test_scores_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_text('{"metrics": {"bleu4": 8.125, "chrf": 20}}')
    assert read_score(tmp_path / "a.json", "bleu4") == 8.125
    with pytest.raises(StepError, match=r"a.json has no wer .*remove it and run this command again"):
        read_score(tmp_path / "a.json", "wer")
    with pytest.raises(StepError, match=r"b.json has no bleu4"):
        read_score(tmp_path / "b.json", "bleu4")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("INFO: loading\n", "something else than one JSON object a language"),
        ('{"path": "a.mp4", "error": "no video"}\n', "something else than one JSON object a language"),
        (
            '{"target_lang": "eng_Latn", "hypotheses": [{"text": "a", "score": 0}]}\n',
            "gave eng_Latn; asked for eng_Latn, ",
        ),
        ("", "gave nothing; asked for"),
    ],
)
def test_translations_that_are_none(output, message):
    with pytest.raises(StepError, match=message):
        reproduce_steps._translations(output, ["eng_Latn", "fra_Latn"])


# ---- running ----


def python(code: str) -> list[str]:
    return ["python", "-c", code]


def test_a_command_runs_once(tmp_path, capsys):
    runner, out, need = Runner(tmp_path), tmp_path / "made", tmp_path / "needed"
    need.write_text("1")
    words = python(f"open({str(out)!r}, 'a').write('x'); print('grün')")
    assert runner.command("a", words, needs=[need], makes=[out], check="-") == "grün\n"
    first = capsys.readouterr().out
    assert first.startswith("+ python -c ") and "\ngrün\n" in first  # shown while it runs
    again = Runner(tmp_path)  # another process of the script
    assert again.command("a", words, needs=[need], makes=[out], check="-") == "grün\n"
    assert capsys.readouterr().out.startswith("= done before: python -c ")
    assert out.read_text() == "x"

    again.command("a", [*words, "other"], needs=[need], makes=[out], check="-")
    assert out.read_text() == "xx"
    need.write_text("2")
    os.utime(need, ns=(time.time_ns(), time.time_ns() + 10**9))
    again.command("a", [*words, "other"], needs=[need], makes=[out], check="-")
    assert out.read_text() == "xxx"
    out.unlink()
    again.command("a", [*words, "other"], needs=[need], makes=[out], check="-")
    assert out.read_text() == "x"
    again.command("b", words, needs=[need], makes=[out], check="-", replace=True)
    assert out.read_text() == "x"  # not xx: it was removed before


def test_a_failing_command_is_explained_and_not_taken_for_done(tmp_path, capsys):
    runner = Runner(tmp_path)
    code = (
        "import sys; print('out'); sys.stderr.write('\\n'.join(map(str, range(40))) + '\\nno memory\\n'); sys.exit(3)"
    )
    for _ in range(2):
        with pytest.raises(StepError) as error:
            runner.command("a", python(code), check="the memory")
        assert capsys.readouterr().out.startswith("+ ")
    lines = str(error.value).splitlines()
    assert lines[1] == f"exited with status 3. Its last lines ({tmp_path / 'logs/a.err'}):"
    assert lines[2:-1] == [f"    {i}" for i in range(26, 40)] + ["    no memory"]
    assert lines[-1] == "What to check: the memory"
    with pytest.raises(StepError, match=r"status 1. Its last lines \(.*logs/a.out\):\n    only this"):
        runner.command("a", python("print('only this'); raise SystemExit(1)"), check="-")
    with pytest.raises(StepError, match=r"was stopped by SIGKILL \(out of memory\?\). It printed nothing"):
        runner.command("a", python("import os; os.kill(os.getpid(), 9)"), check="-")
    with pytest.raises(StepError, match=r"ended without an error, but did not make .*nothing"):
        runner.command("a", python("pass"), makes=[tmp_path / "nothing"], check="-")
    with pytest.raises(StepError, match="slt-nothing is not installed beside"):
        runner.command("a", ["slt-nothing"], check="-")
    (tmp_path / "done.json").write_text("[1")
    with pytest.raises(StepError, match=r"done.json cannot be read .*remove it"):
        runner.command("a", python("pass"), check="-")


def test_usage(tmp_path, capsys):
    for words, message in (
        (["demos"], "invalid choice: 'demos'"),
        ([], "the following arguments are required: STEP"),
        (["demo", "--base-url", "ftp://x"], "'ftp://x' is not an http or https URL"),
    ):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_ctrl_c(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(reproduce.STEPS, "demo", reproduce.STEPS["demo"]._replace(run=stop))
    assert run(tmp_path, "demo", "how2sign") == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_a_step_that_fails_does_not_stop_the_others(tmp_path, capsys):
    with serve({}) as server:
        assert run(tmp_path, "demo", "how2sign", "--base-url", server.url) == 1
    output = capsys.readouterr()
    assert "FAIL  demo" in output.out and "FAIL  how2sign" in output.out
    demo = report(tmp_path, "demo")
    assert (demo["passed"], demo["checks"]) == (False, [])
    assert "download_pretrained.py --model sonar_signhiera sonar_encoder sonar_decoder" in demo["error"]
    assert "dm_70h_ub_signhiera.pth: HTTP 403" in demo["error"] and "What to check: the connection" in demo["error"]
    # files without an address of their own: how to get them
    error = report(tmp_path, "how2sign")["error"]
    assert "--tarres-checkpoint and --tarres-spm are needed" in error
    assert "https://dataverse.csuc.cat/dataset.xhtml?persistentId=doi:10.34810/data693" in error
    assert "cvpr23.train.how2sign.unigram7000_lowercased.model" in error


# ---- the steps, end to end ----


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict[str, bytes]:
    """Path on the server -> content: SONAR's files, tiny, and the demo clip."""
    folder = tmp_path_factory.mktemp("release")
    make_fake_release(folder)
    paths = {path for name in reproduce_steps.MODELS for path in RELEASES[name].files}
    files = {f"/{path}": (folder / path.rsplit("/", 1)[-1]).read_bytes() for path in paths}
    return files | {CLIP: write_video(folder / "clip.mp4", 40).read_bytes()}


def commands(output: str) -> list[str]:
    """The first words of what was run."""
    return [" ".join(line.split()[1:3]) for line in output.splitlines() if line.startswith("+ ")]


@pytest.mark.slow
def test_the_demo(release, tmp_path, capsys, monkeypatch):
    with serve(dict(release)) as server:
        assert run(tmp_path, "demo", "--base-url", server.url) == 1  # tiny random models write something else
        output = capsys.readouterr().out
        assert [words.split("/")[-1] for words in commands(output)] == [
            "download_pretrained.py", "0043626-2023.1.4.mp4", "slt-import-checkpoint sonar-asl", "0043626-2023.1.4.mp4"
        ]  # fmt: skip
        assert "FAIL  demo" in output and "what to check: the signer's box" in output
        checks = report(tmp_path, "demo")["checks"]
        assert [check["name"] for check in checks] == ["eng_Latn", "fra_Latn", "deu_Latn", "zho_Hans"]
        for check in checks:
            assert check["expected"] == reproduce_steps.DEMO_TEXTS[check["name"]]
            assert not check["passed"] and check["note"].startswith("chrF ")
            assert f"DIFF {check['name']}: expected {check['expected']}" in output
            assert f"measured {check['measured']}" in output
        assert any(check["measured"] for check in checks)

        # the same texts as expected: it passes, and nothing is done again
        monkeypatch.setattr(reproduce_steps, "DEMO_TEXTS", {check["name"]: check["measured"] for check in checks})
        server.log.clear()
        assert run(tmp_path, "demo", "--base-url", server.url) == 0
        assert server.log == []
    output = capsys.readouterr().out
    assert commands(output) == [] and output.count("= done before: ") == 3
    assert "PASS  demo" in output and "what to check" not in output
    assert report(tmp_path, "demo")["passed"]


@pytest.mark.slow
def test_dailymoth(release, tmp_path, capsys, monkeypatch):
    names = [f"000000{i}-2023.1.4.mp4" for i in range(3)]
    table = "".join(f"{name}\t1.6\t{text}\n" for name, text in zip(names, TEXTS, strict=False)).encode()
    clips = {name: write_video(tmp_path / name, 30 + 10 * i).read_bytes() for i, name in enumerate(names)}
    archives = {
        "manifests": tar({"dailymoth-70h/manifests/test.tsv": table}),
        "unblurred_clips": tar({f"dailymoth-70h/unblurred_clips/videos/00000/{n}": data for n, data in clips.items()}),
    }
    files = release | {f"/dailymoth-70h/{name}.tar.gz": data for name, data in archives.items()}
    sums = [f"{name}={hashlib.md5(data).hexdigest()}" for name, data in archives.items()]
    work = tmp_path / "work"
    words = ("dailymoth", "--extract", "device=cpu", "num_workers=0")
    with serve(files) as server:
        url = ("--base-url", server.url)
        assert run(work, *words, *url) == 1
        assert "its md5 is " in report(work, "dailymoth")["error"]  # not the published archives
        assert run(work, *words, *url, "--md5", *sums) == 1
        capsys.readouterr()
        (check,) = report(work, "dailymoth")["checks"]
        assert (check["name"], check["expected"], check["tolerance"]) == ("BLEU-4", 30.8, 1.5)
        assert not check["passed"] and 0 <= check["measured"] < 20
        monkeypatch.setattr(reproduce_steps, "DAILYMOTH_BLEU4", check["measured"] + 1)
        assert run(work, *words, *url, "--md5", *sums) == 0
        output = capsys.readouterr().out
    assert commands(output) == [] and output.count("= done before: ") == 7
    assert [row.text for row in read_manifest(work / "feats/test.tsv")] == TEXTS[:3]
    generate = next(line for line in output.splitlines() if "fairseq-generate" in line)
    assert "--beam 5 --target-lang eng_Latn --max-len-b 510" in generate


@pytest.fixture(scope="module")
def tarres(tmp_path_factory) -> dict[str, Path | bytes]:
    """Their checkpoint, vocabulary, table and features, tiny."""
    folder = tmp_path_factory.mktemp("tarres")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in TEXTS * 5),
        model_prefix=str(folder / "lower"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "lower.model"))
    dictionary = Dictionary()
    for index in range(3, len(processor)):
        dictionary.add_symbol(processor.id_to_piece(index))
    dictionary.save(str(folder / "lower.txt"))
    torch.manual_seed(3)
    checkpoint = theirs.write(folder / "checkpoint.pt", theirs.Sign2Text(theirs.OPTIONS, dictionary))
    rows, archive, rng = [TABLE_COLUMNS], io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(archive, "w") as file:
        for i, (text, steps) in enumerate(zip(TEXTS, (8, 9, 10, 1100), strict=True)):
            array = io.BytesIO()
            np.save(array, rng.normal(size=(steps, theirs.CHANNELS)).astype(np.float32))
            file.writestr(f"test/-abc_{i}-5-rgb_front.npy", array.getvalue())
            file.writestr(f"__MACOSX/test/._-abc_{i}-5-rgb_front.npy", b"mac")
            # one length in the table is not the file's
            length = steps + (i == 1)
            rows.append([f"-abc_{i}-5-rgb_front", f"/home/x/test/-abc_{i}-5-rgb_front.npy", "7", str(length), "i3d",
                         "asl", text])  # fmt: skip
    table = "\n".join("\t".join(row) for row in rows) + "\n"
    return {"checkpoint": checkpoint, "spm": folder / "lower.model", "zip": archive.getvalue(), "table": table.encode()}


@pytest.mark.slow
def test_how2sign(tarres, tmp_path, capsys, monkeypatch):
    words = ("how2sign", "--tarres-checkpoint", tarres["checkpoint"], "--tarres-spm", tarres["spm"])
    with serve({DATASET[name]: tarres[name] for name in DATASET}) as server:
        url = ("--dataverse-url", server.url)
        assert run(tmp_path, *words, *url) == 1
        output = capsys.readouterr().out
        generated = tmp_path / "generate-how2sign/generate-test.txt"
        assert commands(output) == [
            *(f"download: {server.url}{path}" for path in DATASET.values()),
            "slt-manifest convert",
            "slt-import-checkpoint tarres",
            f"fairseq-generate {tmp_path / 'how2sign'}",
            *[f"slt-score {generated}"] * 2,
        ]
        unpacked = sorted(path.name for path in (tmp_path / "how2sign/i3d/test").iterdir())
        assert unpacked == [f"-abc_{i}-5-rgb_front.npy" for i in range(4)]
        assert "more than 1024 steps: -abc_3-5-rgb_front" in output
        assert "3 rows; num_frames is the file's (the table has another in 1 rows)" in output
        rows = read_manifest(tmp_path / "how2sign/test.tsv")
        assert [(row.num_frames, row.text) for row in rows] == list(zip((8, 9, 10), TEXTS[:3], strict=True))
        (check,) = report(tmp_path, "how2sign")["checks"]
        lower = json.loads((tmp_path / "how2sign-score-lowercase.json").read_text())
        assert lower["lowercase"] and check["measured"] == lower["metrics"]["bleu4"]
        assert not check["passed"] and check["note"].startswith("cased: ")
        assert "issue 12 of imatge-upc/slt_how2sign_wicv2023" in output

        monkeypatch.setattr(reproduce_steps, "HOW2SIGN_BLEU4", check["measured"] + 0.9)
        server.files.clear()
        assert run(tmp_path, *words, *url) == 0
        assert commands(capsys.readouterr().out) == []
    # the same files, got by hand; an array that is not there
    (tmp_path / "how2sign/i3d/test/-abc_1-5-rgb_front.npy").unlink()
    assert run(tmp_path, *words, "--i3d", tmp_path / "how2sign/i3d") == 1
    error = report(tmp_path, "how2sign")["error"]
    assert "-abc_1-5-rgb_front.npy" in error and "every .npy file of the table is in the folder" in error


def test_how2sign_without_the_data_set(tarres, tmp_path):
    words = ("how2sign", "--tarres-checkpoint", tarres["checkpoint"], "--tarres-spm", tarres["spm"])
    with serve({DATASET["table"]: tarres["table"]}) as server:
        assert run(tmp_path, *words, "--dataverse-url", server.url) == 1
        error = report(tmp_path, "how2sign")["error"]
        assert f"{DATASET['zip']}: HTTP 403" in error and "give the folder that holds the table" in error
        server.files[DATASET["zip"]] = b"no zip"
        assert run(tmp_path, *words, "--dataverse-url", server.url) == 1
    assert "test.zip is damaged" in report(tmp_path, "how2sign")["error"]
    with pytest.raises(DownloadError), serve({}) as server:
        Runner(tmp_path).download(f"{server.url}/x", tmp_path / "x", "-")
