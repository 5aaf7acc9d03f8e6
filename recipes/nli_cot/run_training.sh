#!/usr/bin/env bash
# Run train/train_sft.py in a container, or natively. See --help.
set -euo pipefail

recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$recipe/../.." && pwd)
image=${NLI_IMAGE:-mistral-nli-ft}
data=${DATA_DIR:-$recipe/data}
models=${MODELS_DIR:-$recipe/models}
hf_cache=${HF_CACHE_DIR:-${HF_HOME:-${HOME:-/tmp}/.cache/huggingface}}

usage() {
    cat <<'EOF'
usage: ./run_training.sh [options] [--config train/configs/FILE.py] [--name value ...]

Trains in a container (docker or podman), or natively with --native or when no engine answers.
The image is built when it is missing. Paths are relative to this folder.

  --gpu N          use GPU N
  --gpus N,M       use these GPUs
  --all-gpus       use every GPU (what happens without any of the three, where there are GPUs)
  --native         no container
  --dry-run        print the command, run nothing
  --help           this text; `./run_training.sh --native -- --help` shows the program's own

Everything else goes to train/train_sft.py as it is. In the container the code is at /app, and
DATA_DIR is at /data, MODELS_DIR at /models, HF_CACHE_DIR at /hf_cache. Other environment variables:
NLI_IMAGE (mistral-nli-ft), CONTAINER_ENGINE (docker or podman), PYTHON (for --native).
A file .env here or in the project root is read in the container.
EOF
}

say() { printf 'run_training.sh: %s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 2
}

gpus=default native=no dry_run=no
program=(python train/train_sft.py)
while (($#)); do
    case $1 in
        --gpu | --gpus)
            (($# > 1)) || fail "$1 needs a value"
            gpus=$2
            shift
            ;;
        --gpu=* | --gpus=*) gpus=${1#*=} ;;
        --all-gpus | --all_gpus) gpus=all ;;
        --native) native=yes ;;
        --dry-run | --dry_run) dry_run=yes ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            shift
            program+=("$@")
            break
            ;;
        *) program+=("$1") ;;
    esac
    shift
done
[[ $gpus =~ ^(default|all|[0-9]+(,[0-9]+)*)$ ]] || fail "'$gpus' is no list of GPU numbers"

# The first engine that answers, or nothing.
find_engine() {
    local engine
    for engine in ${CONTAINER_ENGINE:-docker podman}; do
        if command -v "$engine" >/dev/null && timeout 15 "$engine" info >/dev/null 2>&1; then
            printf '%s' "$engine"
            return
        fi
    done
}

# Run a command, or print it.
run() {
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# The same for the last command, which takes the place of this script: signals and exit code are its own.
become() {
    [[ $dry_run == yes ]] || exec "$@"
    run "$@"
}

engine=
[[ $native == yes ]] || engine=$(find_engine)

if [[ -z $engine ]]; then
    [[ $native == yes ]] || say "no container engine answers (docker, podman): running natively"
    if [[ -n ${PYTHON:-} ]]; then
        program[0]=$PYTHON
    elif [[ -z ${VIRTUAL_ENV:-} && -x $project/.venv/bin/python ]]; then
        program[0]=$project/.venv/bin/python
    elif ! command -v python >/dev/null; then
        program[0]=python3
    fi
    visible=()
    [[ $gpus == default || $gpus == all ]] || visible=(env "CUDA_VISIBLE_DEVICES=$gpus")
    cd "$recipe"
    become ${visible[@]+"${visible[@]}"} "${program[@]}"
    exit
fi

podman=no
[[ $("$engine" --version 2>/dev/null) != *podman* ]] || podman=yes

if ! "$engine" image inspect "$image" >/dev/null 2>&1; then
    say "image $image is missing: building it"
    run "$engine" build -t "$image" "$project"
fi

options=(--rm --init --ipc=host --user "$(id -u):$(id -g)" --workdir "/app/${recipe#"$project"/}")
[[ $podman == no ]] || options+=(--userns=keep-id)
if [[ -t 0 && -t 1 ]]; then options+=(--interactive --tty); fi

if [[ $gpus == default ]]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then gpus=all; else gpus=none; fi
fi
if [[ $gpus == none ]]; then
    say "no GPU found: the container trains on the CPU"
elif [[ $podman == yes ]]; then
    for gpu in ${gpus//,/ }; do options+=(--device "nvidia.com/gpu=$gpu"); done
elif [[ $gpus == all ]]; then
    options+=(--gpus all)
else
    options+=(--gpus "\"device=$gpus\"") # docker splits at commas unless the value is quoted once more
fi

[[ $dry_run == yes ]] || mkdir -p "$data" "$models" "$hf_cache" # an engine would create them as root
options+=(--volume "$project:/app" --volume "$data:/data" --volume "$models:/models" --volume "$hf_cache:/hf_cache")
# The configurations name data/... and models/...; those lead to the mounted folders wherever they are.
inside=/app/${recipe#"$project"/}
[[ $data == "$recipe/data" ]] || options+=(--volume "$data:$inside/data")
[[ $models == "$recipe/models" ]] || options+=(--volume "$models:$inside/models")

options+=(--env HF_HOME=/hf_cache --env HOME=/tmp --env PYTHONPATH=/app/src)
for name in HF_TOKEN WANDB_API_KEY HF_HUB_OFFLINE WANDB_MODE; do # by name: values stay out of the command line
    [[ -z ${!name:-} ]] || options+=(--env "$name")
done
# The program reads .env in its working folder, quotes and all; an engine's --env-file would take quotes for the value's.
if [[ ! -f $recipe/.env && -f $project/.env ]]; then options+=(--volume "$project/.env:$inside/.env:ro"); fi

become "$engine" run "${options[@]}" "$image" "${program[@]}"
