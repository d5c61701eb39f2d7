#!/usr/bin/env bash
# From nothing to scored English: environment, corpus of real fingerspelling poses, training, generation, scores.
# Two CPU cores and 4 GB of memory are enough. Finished steps are skipped when it runs again; an interrupted training
# goes on. Settings are environment variables: PYTHON VENV CONSTRAINTS SEED DATA RUN (scripts/common.sh explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument $1" "settings are environment variables: SEED=2 bash scripts/quickstart.sh" ;;
esac

step "environment"
prepare_environment
experiment_folders fingerspelling
step "corpus ($DATA)"
build_corpus
step "training ($RUN)"
train "$DATA"
for split in test test_unseen; do
    step "generation and scores: $split"
    evaluate "$split"
done
end_step

cat <<END

Done in $SECONDS s.
  corpus        $DATA/{train,valid,test,test_unseen}.tsv (new sentences: test; new words: test_unseen)
  checkpoints   $RUN/checkpoint_best.pt, checkpoint_last.pt
  log           $RUN/train.log
  hypotheses    $RUN/hypotheses-test.jsonl, hypotheses-test_unseen.jsonl
  scores        $RUN/scores-test.json, scores-test_unseen.json
How to go on
  the commands  export PATH=$VENV/bin:\$PATH
  this machine  slt-doctor
  the control   bash scripts/control.sh   (texts shuffled against the poses: must score under 10 BLEU)
  your corpus   manifests/README.md, then the lines above that begin with "+"
END
