#!/usr/bin/env bash
# Tries the package as others get it: installed from the built wheel, in a new environment, with the source nowhere near.
#   wheel    newest dependencies: everything is in the wheel, and the smoke tests pass
#   oldest   the lowest versions that pyproject.toml allows: the smoke tests, the behaviour of a ledger, and notebooks
# UV and PY name the uv and the Python to use.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$UV" build --quiet --python "$PY" --out-dir "$place/dist"
wheel=$(echo "$place"/dist/*.whl)

"$UV" venv --quiet --python "$PY" "$place/venv"
case $1 in
wheel)
    diff <({ find tokenbudget_lab -type f \( -name '*.py' -o -name '*.sql' -o -name '*.json' -o -name py.typed \)
             echo tokenbudget_lab/data/demo_study.csv; } | sort) \
         <("$PY" -m zipfile -l "$wheel" | awk '$1 ~ /^tokenbudget_lab\// {print $1}' | sort) \
        || { echo "the wheel and the source do not hold the same files"; exit 1; }
    "$UV" pip install --quiet --python "$place/venv" --group test "$wheel"
    tests=(tests/smoke)
    apart=()
    ;;
oldest)
    "$UV" pip install --quiet --python "$place/venv" --resolution lowest-direct --requirements pyproject.toml \
        --group test --group kernels --group postgres
    "$UV" pip install --quiet --python "$place/venv" --no-deps "$wheel"
    tests=(tests/smoke tests/test_behaviour.py tests/test_kernels.py)
    # Beside the others, each in a process of its own, where it is no failure that the oldest jupyter-client leaves a ZeroMQ context
    # behind when a kernel is restarted.
    apart=(tests/test_counting_kernels.py tests/test_gauge_kernels.py tests/test_magics.py tests/test_alert_kernels.py
        tests/test_dashboard_kernels.py)
    ;;
*)
    echo "usage: $0 wheel|oldest"; exit 2
    ;;
esac

# The tests and their settings, without the source.
cp -R tests pyproject.toml "$place"
cd "$place"
echo "$1: $("$UV" pip list --quiet --python venv --format freeze | grep -E '^(anthropic|duckdb|polars|pyarrow|genai-prices|ipykernel|psycopg)==' | tr '\n' ' ')"
unset PYTHONPATH
export PYTHONPYCACHEPREFIX=$place/pycache # gone with the rest
each_apart() {
    for each in "${apart[@]}"; do
        venv/bin/pytest -q -p no:unraisableexception "$each" || return
    done
}
each_apart & beside=$!
venv/bin/pytest -q "${tests[@]}" && found=0 || found=$?
wait $beside
exit "$found"
