#!/usr/bin/env bash
# The commands of this repository, by name. See README.md.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat >&2 <<'TEXT'
usage: bash script.sh quickstart             train, prune and fine-tune a small network, in minutes
       bash script.sh test                   everything that must hold
       bash script.sh vgg|densenet|resnet110|resnet164 cifar10|cifar100 [seed] [more flags]
                                             the paper's recipe: train, prune, fine-tune
TEXT
    exit 2
}

# Make sure that python has what requirements file $1 asks for: the active environment's python if
# it does, else that of .venv, which is made where it is missing.
python_with() {
    PYTHON=python3
    if ! has "$1"; then
        [ -x .venv/bin/python ] || python3 -m venv .venv
        PYTHON=.venv/bin/python
        has "$1" || "$PYTHON" -m pip install --quiet -r "$1"
    fi
}

has() {
    "$PYTHON" - "$1" <<'CODE' 2>/dev/null
import importlib.metadata, re, sys
def check(path):
    for line in open(path):
        line = line.strip()
        if line.startswith("-r "):
            check(line[3:])
        elif line:
            name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()
            numbers = [[int(x) for x in re.findall(r"\d+", v)[:2]]
                       for v in (importlib.metadata.version(name), least)]
            assert numbers[0] >= numbers[1]
check(sys.argv[1])
CODE
}

# Train $1 (arch) of depth $2 on dataset $3 as run name $4 in folder $5, and go on where an earlier
# start was interrupted.
train() { # arch depth dataset name folder, then flags
    local arch=$1 depth=$2 dataset=$3 name=$4 save=$5
    shift 5
    local checkpoint="$save/${name}_${arch}_${depth}_${dataset}checkpoint.pth.tar"
    if [ -e "$checkpoint" ]; then set -- "$@" --resume "$checkpoint"; fi
    "$PYTHON" main.py --arch "$arch" --depth "$depth" --dataset "$dataset" \
        --name "$name" --save "$save" "$@"
}

# Prune what train made with the same first five arguments at percent 0, and fine-tune it.
prune_and_refine() { # arch depth dataset name folder, then flags
    local arch=$1 depth=$2 dataset=$3 name=$4 save=$5
    shift 5
    local run="${name}_${arch}_${depth}_${dataset}"
    "$PYTHON" "${arch}_prune.py" --model "$save/${run}checkpoint.pth.tar" --name "${run}_"
    local checkpoint="$save/${run}_refinecheckpoint.pth.tar"
    if [ -e "$checkpoint" ]; then
        set -- "$@" --resume "$checkpoint"
    else
        set -- "$@" --refine "$save/${run}_pruned.pth.tar"
    fi
    "$PYTHON" main.py --save "$save" "$@"
}

recipe() { # arch depth dataset [seed], then flags for both trainings
    local arch=$1 depth=$2 dataset=${3:-} seed=1
    case "$dataset" in cifar10 | cifar100) shift 3 ;; *) usage ;; esac
    if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
        seed=$1
        shift
    fi
    python_with requirements.txt
    local name="proximal_seed$seed"
    # λ, β and all else are the paper's by default.
    train "$arch" "$depth" "$dataset" "$name" logs -sr --seed "$seed" "$@"
    prune_and_refine "$arch" "$depth" "$dataset" "$name" logs --seed "$seed" "$@"
}

quickstart() {
    python_with requirements.txt
    local net=(vgg 11 shapes proximal logs/quickstart)
    train "${net[@]}" -sr --s 0.085 --beta 80 --epochs 5 --batch-size 32
    prune_and_refine "${net[@]}" --epochs 2 --batch-size 32
}

run_tests() {
    python_with requirements-dev.txt
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m pytest "$@"
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
quickstart) quickstart ;;
test) run_tests "$@" ;;
vgg) recipe vgg 19 "$@" ;;
densenet) recipe densenet 40 "$@" ;;
resnet110) recipe resnet 110 "$@" ;;
resnet164) recipe resnet 164 "$@" ;;
*) usage ;;
esac
