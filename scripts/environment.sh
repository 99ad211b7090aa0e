# Sourced by demo.sh and test.sh: makes .venv and installs into it what the requirements files ask for.
# Use: . scripts/environment.sh REQUIREMENTS; afterwards $python is the interpreter of .venv.
requirements=$1
in_range='import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))'

if [ ! -x .venv/bin/python ]; then
  found=
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.10 python3.9 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c "$in_range" >/dev/null 2>&1; then
      found=$candidate
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "error: no Python 3.9 to 3.12 here, and MindSpore 2.8.0 has wheels for these only: install one, or name it by PYTHON=/path/to/python3.11" >&2
    exit 2
  fi
  echo "making .venv with $("$found" --version 2>&1)"
  if ! "$found" -m venv .venv; then
    rm -rf .venv
    echo "error: $found cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2
    exit 2
  fi
fi
python=.venv/bin/python
if ! "$python" -c "$in_range" >/dev/null 2>&1; then
  echo "error: .venv has $("$python" --version 2>&1), and MindSpore 2.8.0 needs Python 3.9 to 3.12: delete .venv and run this again" >&2
  exit 2
fi

stamp=.venv/installed-$requirements
wanted=$(cat requirements*.txt pyproject.toml)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "installing $requirements into .venv (MindSpore is 250 MB; a few minutes)"
  if ! "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" -e .; then
    echo "error: pip could not install $requirements: its message stands above; without a network, fill .venv from a wheel folder by PIP_FIND_LINKS" >&2
    exit 2
  fi
  printf '%s\n' "$wanted" >"$stamp"
fi
