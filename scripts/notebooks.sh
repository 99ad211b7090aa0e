#!/usr/bin/env bash
# Makes the course's notebooks, with outputs, on a bare machine: makes .venv, installs, runs the code once, writes both.
#   bash scripts/notebooks.sh [--out FOLDER]    default course
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements-course.txt
"$python" scripts/build_kernels.py || [ $? -eq 2 ]  # 2: none here, and said why; MindSpore's own operators serve
exec "$python" scripts/build_notebooks.py "$@"
