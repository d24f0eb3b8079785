# Sourced by the scripts beside it: finds the Python that lucid is installed in, and puts it in `python`.

fail() {
    echo "lucid: $*" >&2
    exit 2
}

checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n ${PYTHON:-} ]]; then
    python=$(type -P -- "$PYTHON") || fail "there is no '$PYTHON', which PYTHON names"
else
    for python in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$checkout/.venv/bin/python" python3 ""; do
        if [[ -n $python ]] && python=$(type -P -- "$python"); then break; fi
    done
    [[ -n $python ]] || fail "there is no Python: make one with 'python3 -m venv .venv', or set PYTHON"
fi
"$python" -P -c "import lucid" 2>/dev/null ||
    fail "$python cannot import lucid: run $python -m pip install -e '.[mpich]' in $checkout, with Python 3.11 or newer"
