# Sourced by the other scripts: makes .venv in the checkout, installs napari-seg into it from the pinned set, and leaves
# the shell in the checkout.
# usage: make_environment [EXTRA...]

cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "napari-seg needs Python 3.11 or later; found: $("$python" --version 2>&1 || echo none)." >&2
        echo "Install one and say which:  PYTHON=python3.12 bash $0" >&2
        exit 5
    fi
    # a venv that was begun without pip (Debian without python3-venv) is begun anew
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear .venv; then
        echo "Python's venv module is missing; on Debian:  apt-get install python3-venv" >&2
        exit 5
    fi
    # extras that another script asked for stay; installing anew is left out when nothing has changed
    local extras wanted
    extras=$(printf '%s\n' "$@" $(cat .venv/extras 2>/dev/null) | sort -u | paste -sd, | sed 's/^,//')
    wanted="$extras $(cat setup.cfg pyproject.toml constraints.txt | cksum)"
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
        echo "installing napari-seg[$extras] into .venv; the first time takes a few minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
        echo "${extras//,/ }" > .venv/extras
        echo "$wanted" > .venv/installed
    fi
}
