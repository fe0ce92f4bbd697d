#!/bin/sh
# The commands of this repository by name: see README.md. Runs in any sh, from any folder.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usage() {
    cat <<'TEXT'
usage: bash script.sh quickstart             train, prune and fine-tune a small network, in minutes
       bash script.sh test                   run linters and tests
       bash script.sh table1|table2a|table2b|table3|small|small-basic|
                                                 sas32|sas56|sasalex|lp16|lp56|lp110|lp50
                      [--seeds N ...] [--dry-run] [more flags]
                                             run the experiments that a table lacks
       bash script.sh compare [--seeds N ...] [more flags]
                                             methods side by side at equal FLOPs
       bash script.sh vgg|densenet|resnet110|resnet164 cifar10|cifar100 [seed] [more flags]
                                             the paper's recipe for one network
       bash script.sh tables|plots [flags]   tables or figures of the runs in logs
       bash script.sh bench [flags]          speed of training and of the released program's structure
TEXT
}

fail() { # message
    echo "error: $1" >&2
    exit 2
}

usage_error() { # message
    usage >&2
    fail "$1"
}

is_new_enough() { # python
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

# pip would resolve the dependencies of all packages, and fail over unrelated ones.
has_packages() { # python, requirements file
    "$1" -P "$root/utils/installed.py" "$root/$2" >/dev/null 2>&1
}

# Sets $python to one that has the packages: the active one, or that of .venv, which is created.
find_python() { # requirements file
    command -v python3 >/dev/null || fail "there is no python3: install Python 3.11 or newer"
    python=python3
    if is_new_enough "$python" && has_packages "$python" "$1"; then return; fi
    venv=$root/.venv
    python=$venv/bin/python
    if [ ! -e "$venv" ] && [ ! -L "$venv" ]; then
        is_new_enough python3 ||
            fail "$(python3 --version) is too old: install Python 3.11 or newer"
        echo "creating $venv" >&2
        python3 -m venv "$venv" || fail "$venv could not be created: rm -r '$venv', then try again"
    fi
    if has_packages "$python" "$1"; then return; fi
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "$venv is broken, its python does not run pip: rm -r '$venv', then try again"
    echo "installing $1 into $venv: up to 5.4 GB (torch with CUDA), some two minutes" >&2
    "$python" -m pip install --disable-pip-version-check -r "$root/$1"
}

run_module() { # name in utils, flags
    name=utils.$1
    shift
    find_python requirements.txt
    # -P: import this repository's modules, not the caller's; paths are relative to the caller.
    exec env PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m "$name" "$@"
}

run_single() { # network, data set, seed (optional), flags
    part=$1-${2:-}
    case ${2:-} in
    cifar10 | cifar100) shift 2 ;;
    *) usage_error "$1 takes cifar10 or cifar100, not '${2:-}'" ;;
    esac
    case ${1:-} in
    '' | *[!0-9]*) ;;
    *) set -- --seeds "$@" ;;
    esac
    run_module experiments.recipes "$part" "$@"
}

run_tests() { # flags of pytest
    cd "$root"
    find_python requirements-dev.txt
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy
    "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
quickstart) run_module experiments.recipes quickstart --save logs/quickstart "$@" ;;
test) run_tests "$@" ;;
table1 | table2a | table2b | table3 | small | small-basic | sas32 | sas56 | sasalex | lp16 | lp56 | lp110 | lp50)
    run_module experiments.recipes "$command" "$@"
    ;;
compare) run_module experiments.compare "$@" ;;
vgg | densenet | resnet110 | resnet164) run_single "$command" "$@" ;;
tables | plots) run_module "reports.$command" "$@" ;;
bench) run_module bench "$@" ;;
-h | --help) usage ;;
'') usage_error "a command is missing" ;;
*) usage_error "there is no command '$command'" ;;
esac
