#!/usr/bin/env bash
# Unpacks what pack_gpu.py packed, and says what the machine has:   unpack_gpu.sh KIT_DIR SITE_DIR     then   export PYTHONPATH=SITE_DIR
set -euo pipefail
kit=$1 site=$2
mkdir -p "$site"
cat "$kit"/part-? | python3 -c '
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as kit:
    kit.extractall(sys.argv[1], filter="data")
' "$site"
PYTHONPATH="$site:$PWD" python3 - <<'PY'
import torch  # first: it brings libcudart.so.13, which TVM needs
from tvm_orient.tvmkit import load_tvm
import expecttest, hypothesis, pydantic, pytest, pytest_timeout, xgboost

tvm = load_tvm()
print("tvm", tvm.__version__, "| torch", torch.__version__, "| TVM sees a GPU:", tvm.cuda(0).exist, "| torch sees a GPU:", torch.cuda.is_available())
PY
command -v g++ nvcc compute-sanitizer nvidia-smi || true
