#!/bin/sh
# The image's one build step, and to be run without Docker: sh docker/install.sh SOURCE TARGET
# Makes TARGET, a virtual environment with anchored from the tree SOURCE, in the versions of its requirements.lock.
#   VERSION        what the package is called: the image has no git to ask
#   TORCH_BACKEND  which of PyTorch's builds: cpu, cu130 ... (from PyTorch's own index); empty for PyPI's, with CUDA on Linux
#   EXTRAS         [onnx], [onnx,ood] ...
set -eu
source=$(cd "$1" && pwd) target=$2

if ! python3 -c "import ensurepip, venv" 2>/dev/null; then # as in CUDA's images; python:*-slim has both
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends python3 python3-venv
  rm -rf /var/lib/apt/lists/*
fi
python3 -m venv "$target"
"$target/bin/python" -m pip install --quiet --no-cache-dir "uv>=0.8"
SETUPTOOLS_SCM_PRETEND_VERSION_FOR_ANCHORED=${VERSION:-0.1.0.dev0} "$target/bin/uv" pip install --quiet \
  --python "$target/bin/python" --compile-bytecode --constraint "$source/requirements.lock" \
  ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} "anchored${EXTRAS:-} @ file://$source"
"$target/bin/uv" pip uninstall --quiet --python "$target/bin/python" uv
"$target/bin/anchored" --version
