#!/usr/bin/env bash
# Checks everything: the environment (made where needed), ruff, the tests. Arguments go to pytest:
#   bash scripts/test.sh tests/test_pose.py -k normalise
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
esac
prepare_environment
cd "$ROOT"
ruff check .
ruff format --check .
pytest "$@"
