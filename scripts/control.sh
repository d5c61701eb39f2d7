#!/usr/bin/env bash
# The quickstart's training with the texts of train and valid shuffled against the poses. A model that then still
# scores on the true test set reads something else than the poses: fails at 10 BLEU-4 or more.
# Settings are environment variables: PYTHON VENV CONSTRAINTS SEED DATA RUN (scripts/common.sh explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument $1" "settings are environment variables: SEED=2 bash scripts/control.sh" ;;
esac
LIMIT=10

step "environment"
prepare_environment
experiment_folders fingerspelling-control
step "corpus ($DATA), texts shuffled ($RUN/shuffled)"
build_corpus
run python scripts/shuffle_texts.py "$DATA" --out "$RUN/shuffled" --splits train valid --seed "$SEED"
step "training ($RUN)"
train "$RUN/shuffled" "task.media_root=$DATA"
step "generation and scores: the true test set"
evaluate test
end_step

bleu="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["metrics"]["bleu4"])' "$RUN/scores-test.json")"
if python -c 'import sys; sys.exit(not float(sys.argv[1]) < float(sys.argv[2]))' "$bleu" "$LIMIT"; then
    printf '\ncontrol passed: BLEU-4 %.2f with shuffled texts, below %d\n' "$bleu" "$LIMIT"
else
    die "control failed: BLEU-4 $bleu with texts shuffled against the poses, expected below $LIMIT" \
        "the model scores without reading the poses: look for a leak of the text into the input (media order, lengths)" \
        "hypotheses: $RUN/hypotheses-test.jsonl"
fi
