#!/usr/bin/env bash
# What only a GPU can show, on any NVIDIA machine, in one go and under ten minutes: installs with nvcc if there is
# one, runs benchmarks/day_one.py, and leaves one page, out/gpu_day_one.md.
#
#   benchmarks/gpu_day_one.sh              on a GPU
#   benchmarks/gpu_day_one.sh --pretend    the same script on the CPU, with the emulated CUDA backend
set -euo pipefail
cd "$(dirname "$0")/.."
"${MAKE:-make}" install
exec "${PYTHON:-.venv/bin/python}" benchmarks/day_one.py "$@"
