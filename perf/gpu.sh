#!/usr/bin/env bash
# Builds, checks exactness and times everything on one GPU, in one go under 8 minutes (perf/gpu.py says what).
#
#   perf/gpu.sh [--out DIR] [--wheels DIR] [--cpu] [--parts NAME…]
#
# Needs a Python with PyTorch and mua's dependencies: $PYTHON, else .venv, else python3. Nothing is fetched:
# what is missing is named, and taken from --wheels, a folder of wheels, if given. Leaves DIR/gpu.json and
# DIR/gpu.md; DIR is $OUT or runs/gpu by default. Without a GPU (or with --cpu) the same runs at toy sizes.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${OUT:-runs/gpu}" wheels="" rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="$2"; shift 2 ;;
    --wheels) wheels="$2"; shift 2 ;;
    --cpu) rest+=(--device cpu); shift ;;
    --parts) rest+=("$@"); break ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
python="${PYTHON:-}"
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
mkdir -p "$out"
out="$(cd "$out" && pwd)"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$out/site" "$wheels"/*.whl
  export PYTHONPATH="$PYTHONPATH:$out/site"
fi
"$python" perf/requirements.py
if command -v nvidia-smi >/dev/null; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true; fi
exec "$python" perf/gpu.py --out "$out" "${rest[@]}"
