# shellcheck shell=bash
# Functions shared by the scripts in this folder. Sourced, never run; every script that sources it sets -euo pipefail.
#
#   PYTHON       interpreter to make the environment with   (default: the first of python3.11 python3.12 python3 that fits)
#   VENV         where the environment is                   (default: .venv)
#   CONSTRAINTS  exact versions to install                  (default: constraints.txt; older GPUs: constraints-cuda12.txt)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
EXTRAS="hf,prep,track,bleurt,demo,dev"

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  %s\n' "${@:2}" >&2
    exit 1
}

# step TITLE: closes the step before with its time and opens the next one.
STEP=""
step() {
    end_step
    STEP="$1"
    STEP_START=$SECONDS
    printf '\n== %s\n' "$1"
}

end_step() {
    [ -z "$STEP" ] || printf -- '-- %s: %d s\n' "$STEP" "$((SECONDS - STEP_START))"
    STEP=""
}

# absolute PATH: the same place after a cd.
absolute() {
    case "$1" in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# python_version INTERPRETER: prints X.Y.Z; fails where it does not run (pyenv's shims exist and do not).
python_version() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

fits() {
    case "$1" in
        3.11.* | 3.12.*) return 0 ;;
        *) return 1 ;;
    esac
}

WAYS_OUT=(
    "slt_plugin needs Python 3.11 or 3.12: fairseq's package (ve-fairseq) has wheels for these two."
    "name one:   PYTHON=/path/to/python3.11 bash scripts/$(basename "$0")"
    "get one:    pyenv install 3.11   or   conda create -n py311 python=3.11   or   uv python install 3.11"
    "on Debian 12 and Ubuntu 24.04: apt install python3 python3-venv"
)

# find_python: prints an interpreter that fits, or explains what was found instead.
find_python() {
    local candidate version seen=""
    if [ -n "${PYTHON:-}" ]; then
        version="$(python_version "$PYTHON")" || die "PYTHON=$PYTHON does not run" "${WAYS_OUT[@]}"
        fits "$version" || die "PYTHON=$PYTHON is Python $version" "${WAYS_OUT[@]}"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3; do
        version="$(python_version "$candidate")" || continue
        if fits "$version"; then
            printf '%s\n' "$candidate"
            return
        fi
        seen="$seen $candidate is $version;"
    done
    die "no suitable Python found (${seen:- none of python3.11, python3.12, python3 runs;} looked in PATH)" "${WAYS_OUT[@]}"
}

# check_venv: an environment that exists must run, belong to this place and be of the Python that was asked for.
check_venv() {
    local version wanted
    version="$(python_version "$VENV/bin/python")" || die "the interpreter of the environment $VENV does not run" \
        "it points to $(readlink "$VENV/bin/python3" 2>/dev/null || echo nothing): was that Python removed or upgraded?" \
        "make the environment again:  rm -rf '$VENV' && bash scripts/$(basename "$0")"
    fits "$version" || die "the environment $VENV is of Python $version" "${WAYS_OUT[@]}" \
        "and another place:   VENV=/path/to/new bash scripts/$(basename "$0")"
    if [ -n "${PYTHON:-}" ]; then
        wanted="$(python_version "$PYTHON")" || die "PYTHON=$PYTHON does not run" "${WAYS_OUT[@]}"
        [ "$wanted" = "$version" ] || die "the environment $VENV is of Python $version, PYTHON=$PYTHON is $wanted" \
            "choose another place:   VENV=/path/to/new PYTHON=$PYTHON bash scripts/$(basename "$0")" \
            "or make it again:       rm -rf '$VENV'"
    fi
    if [ -f "$STAMP" ] && [ "$(sed -n 1p "$STAMP")" != "$VENV" ]; then
        die "the environment $VENV was made as $(sed -n 1p "$STAMP") and moved or copied: its commands point there" \
            "make it again:  rm -rf '$VENV' && bash scripts/$(basename "$0")"
    fi
}

# stamp_text: what an environment that is up to date was made from.
stamp_text() {
    printf '%s\n%s\n%s\n' "$VENV" "$ROOT" "$EXTRAS"
    cat "$CONSTRAINTS" "$ROOT/setup.py" | cksum
}

install() {
    local log="$VENV/install.log"
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip >/dev/null ||
        die "the environment $VENV has no pip" "make it again:  rm -rf '$VENV'"
    rm -f "$STAMP"  # an install that is interrupted leaves no stamp, so the next run goes on with it
    echo "installing $(basename "$CONSTRAINTS") into $VENV (6 GB the first time; progress: tail -f '$log')"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input -c "$CONSTRAINTS" -e "${ROOT}[$EXTRAS]" \
        >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "pip failed; its whole output: $log" "a repeated run goes on where this one stopped" \
            "common causes: no network or proxy (pip config), under 12 GB of free disk in $VENV or \${TMPDIR:-/tmp}"
    }
    stamp_text >"$STAMP.part"
    mv "$STAMP.part" "$STAMP"
}

# prepare_environment: makes and fills the environment where needed and puts its commands first in PATH.
prepare_environment() {
    VENV="$(absolute "${VENV:-$ROOT/.venv}")"
    CONSTRAINTS="${CONSTRAINTS:-constraints.txt}"
    [ -f "$CONSTRAINTS" ] || CONSTRAINTS="$ROOT/$CONSTRAINTS"
    [ -f "$CONSTRAINTS" ] || die "CONSTRAINTS=$CONSTRAINTS does not exist" \
        "there are:  $(cd "$ROOT" && echo constraints*.txt)"
    CONSTRAINTS="$(absolute "$CONSTRAINTS")"
    STAMP="$VENV/slt_plugin.stamp"
    if [ -e "$VENV/bin/python" ] || [ -L "$VENV/bin/python" ]; then
        check_venv
    else
        local python
        [ ! -e "$VENV" ] || [ -z "$(ls -A "$VENV")" ] || die "VENV=$VENV exists and is no environment" \
            "choose another place with VENV=, or delete it if an earlier run was interrupted:  rm -rf '$VENV'"
        python="$(find_python)"
        echo "making the environment $VENV with $python ($(python_version "$python"))"
        "$python" -m venv "$VENV" || {
            rm -rf "$VENV"
            die "$python -m venv failed (see above)" "on Debian and Ubuntu: apt install python3-venv"
        }
    fi
    export PATH="$VENV/bin:$PATH"
    if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(stamp_text)" ]; then
        return
    fi
    install
}

# The fingerspelling experiment on two tracks, landmarks (pose) and raw video rendered from them (video): quickstart.sh
# runs it, control.sh runs one of them with shuffled texts.
#
#   SEED        of corpus and training                    (default: 1)
#   DATA        folder of the corpus, 0.8 GB              (default: data/fingerspelling, or data/fingerspelling-SEED)
#   RUN         folder of checkpoints, logs and outputs   (default: runs/fingerspelling, or runs/fingerspelling-SEED)
#   VIDEO_DATA  folder of the rendered videos, 0.2 GB     (default: data/fingerspelling_video, or with -SEED)
#   VIDEO_RUN   the video track's folder of results       (default: runs/fingerspelling_video, or with -SEED)

# experiment_folders SUFFIX: sets these five and goes to the repository, where all commands below are run.
experiment_folders() {
    SEED="${SEED:-1}"
    [[ "$SEED" =~ ^[0-9]+$ ]] || die "SEED=$SEED is no whole number"
    local seed="" name
    [ "$SEED" = 1 ] || seed="-$SEED"
    DATA="$(absolute "${DATA:-$ROOT/data/fingerspelling$seed}")"
    VIDEO_DATA="$(absolute "${VIDEO_DATA:-$ROOT/data/fingerspelling_video$seed}")"
    RUN="$(absolute "${RUN:-$ROOT/runs/fingerspelling$1$seed}")"
    VIDEO_RUN="$(absolute "${VIDEO_RUN:-$ROOT/runs/fingerspelling_video$1$seed}")"
    cd "$ROOT"
    for name in DATA VIDEO_DATA RUN VIDEO_RUN; do
        printf -v "$name" '%s' "${!name#"$ROOT"/}" # shorter in everything that is printed
    done
    mkdir -p "$DATA"
    # what Hydra 1.3 tells fairseq about Hydra 1.4 at every start
    export PYTHONWARNINGS="ignore:::fairseq_cli.hydra_train,ignore:::hydra.main,ignore:::hydra._internal.hydra,ignore:::sys"
    use_track pose
}

# use_track pose|video: what build_corpus, train and evaluate work on from here: MANIFESTS, OUT (the value of
# VARIABLE) and FRAMES (of a batch of generation).
use_track() {
    TRACK="$1"
    case "$TRACK" in
        pose) MANIFESTS="$DATA" OUT="$RUN" VARIABLE=RUN FRAMES=12000 ;;
        video) MANIFESTS="$VIDEO_DATA" OUT="$VIDEO_RUN" VARIABLE=VIDEO_RUN FRAMES=2000 ;;
        *) die "unknown track $TRACK" "there are:  pose, video" ;;
    esac
    mkdir -p "$OUT"
}

# run COMMAND...: shows the command as it can be typed again, and runs it.
run() {
    local word
    printf '+'
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
        printf ' %s' "$word"
    done
    printf '\n'
    "$@"
}

# quietly LOG COMMAND...: run, what it says goes to LOG and is shown (its end) only where it fails.
quietly() {
    local log="$1"
    shift
    mkdir -p "$(dirname "$log")"
    run "$@" 2>"$log" || {
        tail -n 20 "$log" >&2
        die "$1 failed; its whole log: $log"
    }
}

# once STAMP COMMAND...: run, unless the same command on the same inputs has finished before. The inputs (variable
# INPUTS: files) count by their contents. Where they differ, what is there belongs to something else and is not touched.
once() {
    local stamp="$1" begun="$1.begun" text
    shift
    text="$(printf '%s\n' "$@" && cat "${INPUTS[@]}" | cksum)"
    if [ -f "$begun" ] && [ "$(cat "$begun")" != "$text" ]; then
        diff "$begun" - <<<"$text" >&2 || true
        die "$(dirname "$stamp") holds the results of other settings or another corpus (the difference is above)" \
            "choose another place:  ${VARIABLE:-RUN}=/path/to/new bash scripts/$(basename "$0")" \
            "or start again:        rm -rf '$(dirname "$stamp")'"
    fi
    if [ -f "$stamp" ]; then
        echo "done before: $1 (again: rm '$stamp')"
        return
    fi
    printf '%s\n' "$text" >"$begun"
    run "$@"
    touch "$stamp"
}

# build_corpus: the landmarks with their vocabulary, and on the video track the videos, which show the same sentences.
build_corpus() {
    run python manifests/fingerspelling.py --out "$DATA" --seed "$SEED"
    [ "$DATA/char.model" -nt "$DATA/train.tsv" ] ||
        run python scripts/train_sentencepiece.py "$DATA/train.tsv" --out "$DATA/char" --model-type char
    [ "$TRACK" = pose ] ||
        run python manifests/fingerspelling_video.py "$DATA" --out "$VIDEO_DATA"
}

# pretrain: a masked autoencoder on the track's videos, in $OUT/mae. An interrupted run goes on from its last checkpoint.
pretrain() {
    local config=slt_plugin/config/pretrain name=mae_tiny_cpu
    local INPUTS=("$MANIFESTS/train.tsv" "$MANIFESTS/valid.tsv" "$config/_base.yaml" "$config/_sign_mae.yaml"
        "$config/$name.yaml" "$config/experiment/$name.yaml")
    mkdir -p "$OUT/mae"
    once "$OUT/mae/trained" fairseq-hydra-train --config-dir "$config" --config-name "$name" \
        common.user_dir=slt_plugin "task.data=$MANIFESTS" "common.seed=$SEED" "checkpoint.save_dir=$OUT/mae"
}

# train_track FOLDER [OVERRIDE...]: `train`; on the video track from an encoder that is pretrained first.
train_track() {
    if [ "$TRACK" = video ]; then
        step "video: pretraining without texts ($OUT/mae)"
        pretrain
        set -- "$@" "model.signhiera_pretrained=$OUT/mae/checkpoint_best.pt"
    fi
    step "$TRACK: training ($OUT)"
    train "$@"
}

# train FOLDER [OVERRIDE...]: training on the manifests in FOLDER with the stock command. An interrupted run goes on
# from its last checkpoint.
train() {
    local data="$1" config=slt_plugin/config/finetune name="fingerspelling_$TRACK"
    shift
    local INPUTS=("$data/train.tsv" "$data/valid.tsv" "$DATA/char.model" "$config/_base.yaml"
        "$config/_sign_to_text.yaml" "$config/$name.yaml" "$config/experiment/$name.yaml")
    local word
    for word in "$@"; do # weights that another pretraining has made are another training
        [[ "$word" != model.signhiera_pretrained=* ]] || INPUTS+=("${word#*=}")
    done
    once "$OUT/trained" fairseq-hydra-train --config-dir "$config" --config-name "$name" \
        common.user_dir=slt_plugin "task.data=$data" "task.codec_path=$DATA/char.model" "common.seed=$SEED" \
        "checkpoint.save_dir=$OUT" "$@"
}

# evaluate SPLIT [OPTION...]: beam search, scores against the manifest's raw text and a report, in $OUT/results/SPLIT.
evaluate() {
    local split="$1" model="$OUT/checkpoint_best.pt"
    local stamp="$OUT/results/$split.done"
    shift
    if [ "$stamp" -nt "$model" ] && [ "$stamp" -nt "$MANIFESTS/$split.tsv" ]; then
        echo "done before: slt-evaluate of $split (again: rm '$stamp')"
        return
    fi
    quietly "$OUT/results/$split.log" slt-evaluate "checkpoint=$model" "data=$MANIFESTS" "subset=$split" \
        "results=$OUT/results" "dataset.max_tokens=$FRAMES" "$@"
    touch "$stamp"
}

# Training on this machine's GPUs: train_single_gpu.sh, train_multi_gpu.sh.

# need_gpus N CONFIG: ends where the environment is not active, there is no such configuration, or there are fewer GPUs.
need_gpus() {
    local there file="$ROOT/slt_plugin/config/finetune/$2.yaml"
    command -v slt-finetune >/dev/null || die "slt-finetune is not in PATH: activate the environment" \
        "source .venv/bin/activate   (scripts/test.sh and scripts/quickstart.sh make one)"
    [[ -f "$file" && "$2" != _* ]] || die "no configuration $2" \
        "there are:  $(cd "$ROOT/slt_plugin/config/finetune" && printf '%s\n' [!_]*.yaml | sed 's/\.yaml$//' | paste -sd' ')"
    there="$(python -c 'import torch; print(torch.cuda.device_count())')"
    [ "$there" -ge "$1" ] || die "$1 GPUs are asked for, PyTorch sees $there" \
        "what it lacks:  slt-doctor" \
        "on CPUs:        slt-finetune --config-name $2 common.cpu=true launcher.local_ranks=$1 ..."
}

# update_freq CONFIG: the batches of an update, as the configuration's files say.
update_freq() {
    python - "$ROOT/slt_plugin/config/finetune" "$1" <<'END'
import sys
from pathlib import Path

from omegaconf import OmegaConf

folder, name = Path(sys.argv[1]), sys.argv[2]
files = [word for word in OmegaConf.load(folder / f"{name}.yaml").defaults if word != "_self_"]
print(OmegaConf.merge(*(OmegaConf.load(folder / f"{file}.yaml") for file in files)).optimization.get("update_freq", [1])[0])
END
}
