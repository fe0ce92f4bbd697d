#!/bin/sh
# The commands of this repository, by name. See README.md. Any sh runs it, from any folder.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usage() {
    cat <<'TEXT'
usage: bash script.sh quickstart             train, prune and fine-tune a small network, in minutes
       bash script.sh test                   everything that must hold
       bash script.sh table1|table2a|table2b|table3|small|small-basic|
                                                 sas32|sas56|sasalex|lp16|lp56|lp110|lp50
                      [--seeds N ...] [--dry-run] [more flags]
                                             train, prune and fine-tune what that table lacks
       bash script.sh vgg|densenet|resnet110|resnet164 cifar10|cifar100 [seed] [more flags]
                                             the paper's recipe for one network
       bash script.sh tables|plots [flags]   what the runs in logs gave
       bash script.sh bench [flags]          how fast training is here, beside the released structure
TEXT
}

refuse() { # why, in one line
    echo "error: $1" >&2
    exit 2
}

mistyped() { # what is wrong with it
    usage >&2
    refuse "$1"
}

# Whether python $1 is new enough.
is_new() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

# Whether python $1 has what requirements file $2 asks for. Python itself is asked: pip would resolve
# what all that asks for in turn, and says no where anything else in the environment is amiss.
has() {
    "$1" -P "$here/utils/installed.py" "$here/$2" >/dev/null 2>&1
}

# Make sure that python has what requirements file $1 asks for: the active environment's python if
# it does, else that of .venv, which is made where it is missing.
python_with() {
    command -v python3 >/dev/null || refuse "there is no python3: install Python 3.11 or newer"
    python=python3
    if is_new "$python" && has "$python" "$1"; then return; fi
    venv=$here/.venv
    python=$venv/bin/python
    if [ ! -e "$venv" ] && [ ! -L "$venv" ]; then
        is_new python3 ||
            refuse "$(python3 --version) is too old: install Python 3.11 or newer"
        echo "making $venv" >&2
        python3 -m venv "$venv" || refuse "$venv could not be made: see above; rm -r $venv, then again"
    fi
    if has "$python" "$1"; then return; fi
    "$python" -m pip --version >/dev/null 2>&1 ||
        refuse "$venv is broken: no python in it that runs pip; rm -r '$venv', and it is made again"
    echo "installing $1 into $venv: up to 5.4 GB (torch with CUDA), two minutes on a fast line" >&2
    "$python" -m pip install --disable-pip-version-check -r "$here/$1"
}

# The paper's recipe for network $1 on data set $2, with a seed or not, and flags.
alone() {
    part=$1-${2:-}
    case ${2:-} in
    cifar10 | cifar100) shift 2 ;;
    *) mistyped "$1 takes cifar10 or cifar100, not '${2:-}'" ;;
    esac
    case ${1:-} in
    '' | *[!0-9]*) ;;
    *) set -- --seeds "$@" ;;
    esac
    module experiments.recipes "$part" "$@"
}

module() { # name in utils, flags
    name=utils.$1
    shift
    python_with requirements.txt
    # -P: modules are this folder's; all files that are named are the caller's.
    exec env PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m "$name" "$@"
}

run_tests() {
    cd "$here"
    python_with requirements-dev.txt
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy
    "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
quickstart) module experiments.recipes quickstart --save logs/quickstart "$@" ;;
test) run_tests "$@" ;;
table1 | table2a | table2b | table3 | small | small-basic | sas32 | sas56 | sasalex | lp16 | lp56 | lp110 | lp50)
    module experiments.recipes "$command" "$@"
    ;;
vgg | densenet | resnet110 | resnet164) alone "$command" "$@" ;;
tables | plots) module "reports.$command" "$@" ;;
bench) module bench "$@" ;;
-h | --help) usage ;;
'') mistyped "which of these commands?" ;;
*) mistyped "there is no command '$command'" ;;
esac
