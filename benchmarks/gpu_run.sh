#!/bin/bash
# One run on a machine with a GPU, in at most nine minutes: tests and measurements, the most valuable first.
#
# Every step has its own time limit and stops no other; results are files in $OUT (default build/GPU/out) even when a step
# fails, and log.txt holds the exit code and the time of each step. Call it from the root of the project, with
#   PYTHON  the interpreter (default python3)        LIMIT   seconds for all steps together (default 535)
#   COMMIT  names the tree where git is missing      OUT     folder of the results
# A filled .triton-cache in the root is used; docs/backends.md says how to fill it on a machine without a GPU.
set -u
[ -f pyproject.toml ] && [ -d tta_restore ] || { echo "run it from the project's root" >&2; exit 2; }
LIMIT=${LIMIT:-535} WORK=build/GPU PYTHON=${PYTHON:-python3}
: "${OUT:=$WORK/out}"
rm -rf "$WORK"; mkdir -p "$WORK" "$OUT"
LOG=$OUT/log.txt; : >"$LOG"
export PYTHONPATH=$PWD:$PWD/tests PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8 CUBLAS_WORKSPACE_CONFIG=:4096:8
export TTA_RESTORE_NO_EXTENSION=1 # GPU kernels need no C++ build
[ -d .triton-cache ] && export TRITON_CACHE_DIR=$PWD/.triton-cache
export COMMIT=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}

step() { # seconds name command...
  local limit=$1 name=$2 left=$((LIMIT - SECONDS)) status; shift 2
  [ $left -lt 15 ] && { echo "SKIPPED $name, ${left}s left" | tee -a "$LOG"; return; }
  [ "$limit" -gt $left ] && limit=$left
  echo "=== $name at ${SECONDS}s, limit ${limit}s" | tee -a "$LOG"
  timeout -k 5 "$limit" "$@" >"$WORK/$name.log" 2>&1; status=$?
  cat "$WORK/$name.log" >>"$LOG"
  echo "rc $status $name (${SECONDS}s)" | tee -a "$LOG"; tail -4 "$WORK/$name.log" | cut -c1-200
}

T="$PYTHON -m pytest -q -p no:cacheprovider -W default --no-header --timeout=100"
R="$PYTHON -m benchmarks report --device cuda --no-plot --no-memory --rounds 9 --seconds 20"
cat >"$WORK/env.py" <<'P'
import datetime, json, os, platform, subprocess, sys
import torch, triton
import tta_restore
ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
made = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": os.environ["COMMIT"],
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
try:
    made["nvidia_smi"] = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
except OSError as error:
    made["nvidia_smi"] = str(error)
if made["device"]:  # the ceiling that every other number is held against: copied bytes, read and written
    a = torch.rand(1 << 30, device="cuda"); b = torch.empty_like(a)
    ms = triton.testing.do_bench(lambda: b.copy_(a), return_mode="median")
    made["copy_TB_per_s"] = 2 * a.numel() * 4 / ms / 1e9
print(tta_restore.show_config()); print(made)
json.dump(made, open(sys.argv[1], "w"), indent=1)
P
step 30 env      $PYTHON "$WORK/env.py" "$OUT/env.json"
step 80 smoke    $T -m gpu tests/ops/test_adaptive_conv_triton.py -k "70x105 or 72x105 or 24x61"
step 60 iso      $T -n 6 -m gpu tests/ops/test_isotropic_triton.py tests/core/test_dispatch.py
step 80 bf16     $R --only "N17 K3 bfloat16" --contenders ours composed --output "$OUT/bf16.json"
step 70 fp32     $R --only "N17 K3 float32" --contenders ours composed --output "$OUT/fp32.json"
step 60 reblur   $R --only "1120x1680" --contenders ours --output "$OUT/isotropic.json"
step 50 product  $R --only "product_conv2d 1x3x1120x1680" --contenders ours reference --output "$OUT/product.json"
step 60 gpu      $T -n 4 -m gpu tests/ops --deselect tests/ops/test_isotropic_triton.py
step 60 ops      $T -n 8 --device cuda -m "not slow" tests/ops/test_adaptive_conv.py tests/ops/test_warp.py tests/ops/test_sharpness.py -k "reference or autocast or deterministic or memory_layout or empty or opcheck or func_grad"
step 45 original $R --only "iac 1x128x140x210 N17 K3 bfloat16" --directions forward --contenders ours original --output "$OUT/original.json"
step 45 memory   $PYTHON -m benchmarks report --device cuda --no-plot --rounds 3 --seconds 5 --only "iac_from_features 1x128x140x210 N17 K3 bfloat16" --contenders ours composed --output "$OUT/memory.json"
for f in "$OUT"/*.json; do
  left=$((LIMIT - SECONDS)); [ $left -lt 1 ] && break
  case $f in */env.json) cat "$f"; echo ;; *) timeout $((left < 20 ? left : 20)) "$PYTHON" -m benchmarks table "$f" 2>/dev/null | cut -c1-150 ;; esac
done
