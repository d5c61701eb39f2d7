"""The steps of reproduce.py: each downloads, imports, runs the commands of a user, compares with published values."""

import json
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from reproduce_runner import Check, Runner, StepError, number_check, read_score, text_check

import slt_plugin
from slt_plugin.checkpoints.releases import RELEASES
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.features import open_features
from slt_plugin.data.manifest import read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]
USER_DIR = Path(slt_plugin.__file__).parent
MODELS = ("sonar_signhiera", "sonar_encoder", "sonar_decoder")
WEIGHTS = tuple(path.rsplit("/", 1)[-1] for model in MODELS for path in RELEASES[model].files)
MEMORY = "memory, if it was killed: SONAR needs about 7 GB in fp32 (--dtype bf16: about half)"
DAMAGED = "disk space and memory; a file that is called damaged: remove it to download it again"

DEMO_CLIP = "SONAR/asl/0043626-2023.1.4.mp4"
DEMO_SOURCE = "examples/sonar/README.md of facebookresearch/ssvp_slt"
DEMO_TEXTS = {
    "eng_Latn": "a large concern is of landslides in mountainous areas.",
    "fra_Latn": "Une grande préoccupation concerne les glissements de terrain dans les montagnes.",
    "deu_Latn": "Es gibt große Bedenken über Erosionen in Gebirgszügen.",
    "zho_Hans": "大多数山区都有岩石沉没的严重问题.",
}
DEMO_HINT = (
    "memory, if it was killed: the models need about 8 GB in fp32 (--dtype bf16: about half); the face detector, which "
    "is in the extra prep (pip install -c constraints.txt -e '.[prep]')"
)
DEMO_DIFFERENT = (
    "the signer's box: the release's demo looks for faces in frames of 320 pixels, slt-translate in whole frames, and "
    "a wider crop can change words; --dtype; another PyTorch or GPU, which can turn a near tie in the beam"
)

DAILYMOTH_BLEU4, DAILYMOTH_TOLERANCE = 30.8, 1.5
DAILYMOTH_SOURCE = "a third party's run of the released weights on DailyMoth-70h test; its exact options are not known"
DAILYMOTH_DIFFERENT = (
    "WORK/dailymoth/test.dropped.txt for rows that were left out; --dtype and --extract; that the third party may have "
    "used the blurred clips, other decoding options or cleaned texts"
)

HOW2SIGN_BLEU4, HOW2SIGN_TOLERANCE = 8.03, 1.0
HOW2SIGN_SOURCE = "Tarres et al. 2023 (arXiv 2304.06371), How2Sign test"
HOW2SIGN_NOTE = "both sides lower-cased: the model writes lower case, which the paper truecased and we do not"
HOW2SIGN_DIFFERENT = (
    "that the checkpoint is checkpoint.best_reduced_sacrebleu_3.5401.pt. Users report that no released checkpoint "
    "gives the paper's number (issue 12 of imatge-upc/slt_how2sign_wicv2023)"
)
DATASET = "https://dataverse.csuc.cat/dataset.xhtml?persistentId=doi:10.34810/data693"
# files of the data set, as other public projects download them
TABLE_ID, FEATURES_ID = "53222?format=original", "51538"
TABLE = "cvpr23.fairseq.i3d.test.how2sign.tsv"
MOST_STEPS = 1024  # their evaluation leaves longer sentences out (Taskfile.yml: --skip-invalid-size-inputs-valid-test)
TARRES_FILES = (
    "--tarres-checkpoint and --tarres-spm are needed: checkpoint and vocabulary have no address of their own. Open "
    f"{DATASET}, download final_models (baseline_6_3_dp03_wd_2/ckpts/checkpoint.best_reduced_sacrebleu_3.5401.pt) and "
    "vocab (cvpr23.train.how2sign.unigram7000_lowercased.model with its .txt beside it), unpack them, give their paths"
)
TARRES_GONE = (
    f"The data set is {DATASET}: download {TABLE} and test.zip there, unpack the archive, and give the folder that "
    "holds the table and test/*.npy with --i3d"
)


class Step(NamedTuple):
    """run: (options, runner) -> checks. if_different: what to look at where a measured value is not the expected."""

    run: Callable[[Namespace, Runner], list[Check]]
    if_different: str


# (a)


def demo(options: Namespace, run: Runner) -> list[Check]:
    """The released models on their own demo clip, in four languages."""
    weights = _weights(options, run)
    clip = run.work / DEMO_CLIP.rsplit("/", 1)[-1]
    run.download(_below(options.base_url, DEMO_CLIP), clip, f"The address is that of {DEMO_SOURCE}")
    model = _sonar(options, run, weights, "video")
    languages = list(DEMO_TEXTS)
    words = ["slt-translate", clip, "--checkpoint", model, "--box", "auto", "--detector", "cnn", "--target-lang"]
    output = run.command("demo-translate", [*words, *languages, "--json"], needs=[clip, model], check=DEMO_HINT)
    texts = _translations(output, languages)
    return [text_check(code, texts[code], DEMO_TEXTS[code], DEMO_SOURCE) for code in languages]


def _translations(output: str, languages: list[str]) -> dict[str, str]:
    """Language -> best text of ``slt-translate --json``."""
    try:
        results = [json.loads(line) for line in output.splitlines() if line.strip()]
        texts = {result["target_lang"]: result["hypotheses"][0]["text"] for result in results}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StepError(f"slt-translate printed something else than one JSON object a language: {output!r}") from error
    if list(texts) != languages:
        raise StepError(f"slt-translate gave {', '.join(texts) or 'nothing'}; asked for {', '.join(languages)}")
    return texts


# (b)


def dailymoth(options: Namespace, run: Runner) -> list[Check]:
    """The released models on the whole test set of DailyMoth-70h (unblurred clips)."""
    corpus, manifest = options.corpus or run.work / "dailymoth-70h", run.work / "dailymoth" / "test.tsv"
    words = ["python", ROOT / "manifests/dailymoth70h.py", "--corpus", corpus, "--out", manifest.parent, "--overwrite"]
    words += ["--split", "test", "--clips", "unblurred", "--download", "--mirror", options.base_url]
    words += ["--md5", *options.md5] if options.md5 else []
    hint = "the connection; free disk space (the clips are a large archive, kept until you delete it)"
    run.command("dailymoth-manifest", words, makes=[manifest], check=hint)
    weights = _weights(options, run)
    encoder, theirs = run.work / "signhiera.pt", weights / "dm_70h_ub_signhiera.pth"
    words = ["slt-import-checkpoint", "sign-hiera", theirs, encoder]
    run.command("import-sign-hiera", words, needs=[theirs], makes=[encoder], check=DAMAGED, replace=True)
    feats = run.work / "feats" / "test.tsv"
    store = feats.with_suffix(".store")
    words = ["slt-extract", f"checkpoint={encoder}", f"manifest={manifest}", f"out={store}", *options.extract]
    hint = f"the videos in {store}/failed.tsv; memory (--extract batch_clips=1); remove {store} to use other options"
    run.command("dailymoth-extract", words, needs=[encoder, manifest], makes=[feats], check=hint)
    model = _sonar(options, run, weights, "features")
    more = ("--target-lang", "eng_Latn", "--max-len-b", "510")
    bleu4 = _generate_and_score(run, "dailymoth", feats, model, *more)()
    note = "" if options.dtype == "fp32" and not options.extract else "not with the default precision or options"
    return [number_check("BLEU-4", bleu4, DAILYMOTH_BLEU4, DAILYMOTH_TOLERANCE, DAILYMOTH_SOURCE, note)]


# (c)


def how2sign(options: Namespace, run: Runner) -> list[Check]:
    """The model of Tarres et al. and their I3D features on How2Sign test."""
    if options.tarres_checkpoint is None or options.tarres_spm is None:
        raise StepError(TARRES_FILES)
    folder, model = run.work / "how2sign", run.work / "how2sign_i3d.pt"
    folder.mkdir(exist_ok=True)
    i3d = options.i3d or _i3d(options, run, folder / "i3d")
    table, every, test = i3d / TABLE, folder / "all.tsv", folder / "test.tsv"
    words = ["slt-manifest", "convert", "--from", "tarres", "--media-folder", (i3d / "test").resolve(), table, every]
    run.command("how2sign-convert", words, needs=[table], makes=[every], check=f"the table {table}", replace=True)
    _within_their_limits(every, test)
    given = [path for path in (options.tarres_checkpoint, options.tarres_spm, options.tarres_dict) if path is not None]
    words = ["slt-import-checkpoint", "tarres", options.tarres_checkpoint, model, "--spm", options.tarres_spm]
    words += ["--dict", options.tarres_dict] if options.tarres_dict else []
    hint = "that checkpoint and vocabulary belong together (--tarres-checkpoint, --tarres-spm, --tarres-dict)"
    run.command("import-tarres", words, needs=given, makes=[model], check=hint, replace=True)
    score = _generate_and_score(run, "how2sign", test, model)
    note = f"cased: {score():.2f}. {HOW2SIGN_NOTE}"
    return [number_check("BLEU-4", score("--lowercase"), HOW2SIGN_BLEU4, HOW2SIGN_TOLERANCE, HOW2SIGN_SOURCE, note)]


def _i3d(options: Namespace, run: Runner, folder: Path) -> Path:
    """The test set's table and features, downloaded and unpacked."""
    run.download(_below(options.dataverse_url, f"api/access/datafile/{TABLE_ID}"), folder / TABLE, TARRES_GONE)
    target = folder / "test"
    if not target.is_dir():
        url = _below(options.dataverse_url, f"api/access/datafile/{FEATURES_ID}")
        archive = run.download(url, folder / "test.zip", TARRES_GONE)
        unpacking = folder / ".test.unpacking"
        unpacking.mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(archive) as file:
                for member in file.namelist():
                    path = Path(member)  # of the name alone, so that nothing gets out of the folder
                    if path.suffix == ".npy" and not path.name.startswith("._"):  # macOS adds files of its own
                        (unpacking / path.name).write_bytes(file.read(member))
        except zipfile.BadZipFile as error:
            raise StepError(f"{archive} is damaged ({error}): remove it and run this command again") from error
        unpacking.rename(target)
    return folder


def _within_their_limits(every: Path, kept: Path) -> None:
    """Writes the rows that the published evaluation scores, with the lengths that the files have."""
    rows, too_long, other_length = [], [], 0
    try:
        for row in read_manifest(every, require_text=True):
            steps = len(open_features(Path(row.path)))
            other_length += steps != row.num_frames
            if steps <= MOST_STEPS:
                rows.append(replace(row, num_frames=steps))
            else:
                too_long.append(row.id)
        if not kept.is_file() or read_manifest(kept) != rows:  # a new file would make the next commands run again
            write_manifest(kept, rows)
    except DataError as error:
        raise StepError(f"{error}\nWhat to check: that every .npy file of the table is in the folder") from error
    print(f"  {kept}: {len(rows)} rows; num_frames is the file's (the table has another in {other_length} rows)")
    if too_long:
        print(f"  left out, as in the published evaluation: more than {MOST_STEPS} steps: {listing(too_long)}")


# shared


def _weights(options: Namespace, run: Runner) -> Path:
    folder = run.work / "pretrained"
    words = ["python", ROOT / "scripts/download_pretrained.py", "--model", *MODELS, "--out", folder]
    words += ["--mirror", options.base_url]
    hint = "the connection and free disk space (about 8 GB)"
    run.command("download-weights", words, makes=[folder / name for name in WEIGHTS], check=hint)
    return folder


def _sonar(options: Namespace, run: Runner, weights: Path, source: str) -> Path:
    name = f"sonar_{source}_{options.dtype}"
    out = run.work / f"{name}.pt"
    words = ["slt-import-checkpoint", "sonar-asl", weights, out, "--dtype", options.dtype, "--source", source]
    needs = [weights / name for name in WEIGHTS]
    run.command(f"import-{name}", words, needs=needs, makes=[out], check=DAMAGED, replace=True)
    return out


def _generate_and_score(run: Runner, name: str, test: Path, model: Path, *more: str) -> Callable[..., float]:
    """Generates for the manifest ``test``; what comes back takes options of ``slt-score`` and gives BLEU-4."""
    results = run.work / f"generate-{name}"
    output = results / "generate-test.txt"
    words = ["fairseq-generate", test.parent, "--user-dir", USER_DIR, "--task", "sign_to_text", "--path", model]
    words += ["--gen-subset", "test", "--beam", "5", *more, "--results-path", results]
    run.command(f"{name}-generate", words, needs=[test, model], makes=[output], check=MEMORY)

    def bleu4(*options: str) -> float:
        scoring = "-".join([name, "score", *(option.strip("-") for option in options)])
        scores = run.work / f"{scoring}.json"
        words = ["slt-score", output, "--manifest", test, "--metrics", "bleu4,chrf", "--json", scores, *options]
        run.command(scoring, words, needs=[output, test], makes=[scores], check=f"that {output} has every row")
        return read_score(scores, "bleu4")

    return bleu4


def _below(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}"


STEPS = {
    "demo": Step(demo, DEMO_DIFFERENT),
    "dailymoth": Step(dailymoth, DAILYMOTH_DIFFERENT),
    "how2sign": Step(how2sign, HOW2SIGN_DIFFERENT),
}
