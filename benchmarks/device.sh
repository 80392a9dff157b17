#!/usr/bin/env bash
# Check, time and collect on a machine with a GPU; nothing but torch, triton, numpy and pytest is needed.
#
#   benchmarks/device.sh check     the kernels against the reference: gpu-marked tests, compute-sanitizer where present
#   benchmarks/device.sh time      claims fused-step, paper-kernels and topk
#   benchmarks/device.sh sweep     every plan of the fused step at its three shapes
#   benchmarks/device.sh memory    claim memory: peaks of a step, and 100 million labels
#   benchmarks/device.sh all       one after the other
#
# Each stage ends within 10 minutes. Records go to $OUT/*.jsonl (default benchmarks/results/DEVICE/), versions and logs
# beside them; a stage that is cut short keeps what it had. PYTHON names the interpreter. The exit status is 0 if
# everything that was tried passed. Outside a checkout, HASTE_COMMIT names the commit for the records.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Large and small layers take turns in one process: segments that grow keep memory from crumbling.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

case ${1:-} in
  check | time | sweep | memory | all) ;;
  *) echo "usage: benchmarks/device.sh check|time|sweep|memory|all" >&2; exit 2 ;;
esac

device=$("$PYTHON" - <<'END'
import re, torch
if not torch.cuda.is_available():
    raise SystemExit(f"device.sh needs a CUDA GPU, and PyTorch {torch.__version__} finds none")
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))
END
) || exit 2
OUT=${OUT:-benchmarks/results/$device}
mkdir -p "$OUT"
status=0

# run NAME SECONDS COMMAND...: with a time limit and a log; remembers a failure
run() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 60
  local result=${PIPESTATUS[0]}
  [ "$result" -eq 0 ] || status=1
  echo "== $name: exit $result after $((SECONDS - start)) s"
}

# claim NAME SECONDS ARGUMENTS...: one claim, its records in $OUT/NAME.jsonl
claim() {
  local name=$1 limit=$2
  shift 2
  run "$name" "$limit" "$PYTHON" -m haste.bench --output "$OUT/$name.jsonl" "$@"
}

versions() {
  "$PYTHON" - <<'END' | tee "$OUT/versions.json"
import json, torch
from haste.bench import machine
print(json.dumps(machine.describe(torch.device("cuda")), indent=1))
END
  { nvidia-smi; nvidia-smi -q -d CLOCK,POWER,PERFORMANCE; } >"$OUT/nvidia-smi.log" 2>&1
}

check() {
  claim smoke 150 --smoke --device cuda
  run tests 260 "$PYTHON" -m pytest tests/ops/triton -m gpu -p no:cacheprovider
  if command -v compute-sanitizer >/dev/null; then
    local tool
    for tool in memcheck racecheck; do
      # PyTorch's own pool hides what lies beyond a tensor from the tool.
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "sanitizer-$tool" 80 compute-sanitizer --tool "$tool" --error-exitcode 7 \
        "$PYTHON" -m haste.bench --smoke --device cuda --variant haste --claim fused-step
    done
  else
    echo "== compute-sanitizer is not installed: left out"
  fi
}

times() {
  claim fused-step 250 --claim fused-step
  claim paper-kernels 220 --claim paper-kernels
  claim topk 110 --claim topk
}

sweep() {
  local shape
  for shape in A B P2K; do
    claim "sweep-$shape" 190 --claim fused-step --sweep --case "$shape" --limit 80
  done
}

memory() {
  claim memory 580 --claim memory
}

versions
case $1 in
  check) check ;;
  time) times ;;
  sweep) sweep ;;
  memory) memory ;;
  all) check; times; sweep; memory ;;
esac
echo "records and logs: $OUT"
exit "$status"
