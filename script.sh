#!/usr/bin/env bash
# The commands of this repository, by name. See README.md.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat >&2 <<'TEXT'
usage: bash script.sh quickstart             train, prune and fine-tune a small network, in minutes
       bash script.sh test                   everything that must hold
       bash script.sh table1|table2a|table2b|table3|small|small-basic|
                                                 sas32|sas56|lp16|lp56|lp110
                      [--seeds N ...] [--dry-run] [more flags]
                                             train, prune and fine-tune what that table lacks
       bash script.sh vgg|densenet|resnet110|resnet164 cifar10|cifar100 [seed] [more flags]
                                             the paper's recipe for one network
       bash script.sh tables|plots [flags]   what the runs in logs gave
       bash script.sh bench [flags]          how fast training is here, beside the released structure
TEXT
    exit 2
}

# Make sure that python has what requirements file $1 asks for: the active environment's python if
# it does, else that of .venv, which is made where it is missing.
python_with() {
    PYTHON=python3
    if ! "$PYTHON" -m pip install --dry-run --no-index -r "$1" >/dev/null 2>&1; then
        PYTHON=.venv/bin/python
        [ -x "$PYTHON" ] || python3 -m venv .venv
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1"
    fi
}

# The paper's recipe for network $1 on data set $2, with a seed or not, and flags.
alone() {
    local part="$1-${2:-}"
    case "${2:-}" in cifar10 | cifar100) shift 2 ;; *) usage ;; esac
    if [[ "${1:-}" =~ ^[0-9]+$ ]]; then set -- --seeds "$@"; fi
    module experiments.recipes "$part" "$@"
}

module() { # name in utils, flags
    python_with requirements.txt
    exec "$PYTHON" -m "utils.$1" "${@:2}"
}

run_tests() {
    python_with requirements-dev.txt
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
    "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
quickstart) module experiments.recipes quickstart --save logs/quickstart "$@" ;;
test) run_tests "$@" ;;
table1 | table2a | table2b | table3 | small | small-basic | sas32 | sas56 | lp16 | lp56 | lp110)
    module experiments.recipes "$command" "$@"
    ;;
vgg | densenet | resnet110 | resnet164) alone "$command" "$@" ;;
tables | plots) module "reports.$command" "$@" ;;
bench) module bench "$@" ;;
*) usage ;;
esac
