#!/usr/bin/env bash
# From nothing to scored English, on two tracks: real fingerspelling poses, and small videos rendered from them. For each:
# corpus, training (of the videos' encoder first without texts), generation, scores, report. --fast skips the videos.
# Two CPU cores and 4 GB of memory are enough. Finished steps are skipped when it runs again; an interrupted training
# goes on. Settings are environment variables: PYTHON VENV CONSTRAINTS SEED DATA RUN VIDEO_DATA VIDEO_RUN
# (scripts/common.sh explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TRACKS="pose video"
case "${1:-}" in
    "") ;;
    --fast) TRACKS="pose" ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument $1" "without raw video:  bash scripts/quickstart.sh --fast" \
        "settings are environment variables: SEED=2 bash scripts/quickstart.sh" ;;
esac

step "environment"
prepare_environment
experiment_folders ""
TABLE=()
for track in $TRACKS; do
    begun=$SECONDS
    use_track "$track"
    step "$track: corpus ($MANIFESTS)"
    build_corpus
    train_track "$MANIFESTS"
    for split in test test_unseen; do
        step "$track: generation and scores: $split"
        evaluate "$split"
    done
    end_step
    printf '\n-- track %s: %d s\n' "$track" "$((SECONDS - begun))"
    TABLE+=("$track=$OUT/results")
done
NOTE=()
[ "$TRACKS" = pose ] || NOTE=(--note "The videos are synthetic, drawn from the very landmarks of the pose track: their scores \
show that the raw-video path learns, and say nothing about which of the two is better on real recordings.")
for split in test test_unseen; do
    printf '\n'
    run slt-report compare "${TABLE[@]/%//$split}" --common --metrics bleu4,chrf,rouge_l,wer "${NOTE[@]}"
done

cat <<END

Done in $SECONDS s.
  corpus        $DATA/{train,valid,test,test_unseen}.tsv (new sentences: test; new words: test_unseen)
  checkpoints   $RUN/checkpoint_best.pt, checkpoint_last.pt
  log           $RUN/train.log
  results       $RUN/results/{test,test_unseen}/{hypotheses.jsonl,metrics.json}
  to read       $RUN/results/test/report.html, $RUN/results/test_unseen/report.html
END
[ "$TRACKS" = pose ] || cat <<END
  raw video     the same in $VIDEO_DATA and $VIDEO_RUN; the pretrained encoder in $VIDEO_RUN/mae
END
cat <<END
How to go on
  the commands  export PATH=$VENV/bin:\$PATH
  this machine  slt-doctor
  the control   bash scripts/control.sh [--track video]   (texts shuffled against the input: must score under 10 BLEU)
  your corpus   manifests/README.md, then the lines above that begin with "+"
END
