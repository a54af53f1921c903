#!/usr/bin/env bash
# A quarter of an hour of a GPU, in two halves that are of use alone: bash tools/gpu_quarter.sh A|B FOLDER
#
#   A   every engine launched once, then the sweeps of layers and of the trained networks
#   B   the sweep of products, then training steps; every engine launched first, where FOLDER has no result of that yet
#
# FOLDER gets a log a step, launch.csv, timings.csv, training.csv, and without.txt: the names of the engines that fail, which are
# left out of what follows (SPARSERNN_WITHOUT, from the start if it is set); on a GPU two engines that are slow and never the
# fastest are left out of A's sweeps too. A step that outlasts its limit is killed, and the
# script goes on; one whose GPU an engine has made unusable (status 3) is begun again without that engine, within its limit.
# It needs no environment but a Python with torch, numpy, pandas and safetensors, and ends with status 0 whatever its steps do.
#
#   PYTHON, DEVICE, PROFILE, TRAIN_TASKS, TRAIN_SECONDS, PATIENCE (seconds until an engine's first answer in a sweep)
#   LIMIT_LAUNCH, LIMIT_LAYERS, LIMIT_MODELS, LIMIT_PRODUCTS, LIMIT_TRAINING (seconds)
#
# A dry run without a GPU: PROFILE=smoke DEVICE=cpu TRAIN_TASKS=pydocs-topic TRAIN_SECONDS=1 bash tools/gpu_quarter.sh A /tmp/dry

set -u

usage="bash tools/gpu_quarter.sh A|B FOLDER: A launches all engines and times layers and networks, B products and training"
if [ $# -ne 2 ] || [[ ! $1 =~ ^[AB]$ ]]; then
  echo "$usage" >&2
  exit 2
fi
half=$1
mkdir -p "$2" && folder=$(cd "$2" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

python=${PYTHON:-python3}
device=${DEVICE:-cuda}
profile=${PROFILE:-gpu-quarter}
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}"
export SPARSERNN_WITHOUT=${SPARSERNN_WITHOUT:-}
AGAIN=3  # times that a step is begun again
SLOW=compact-loop,persistent-fp16  # to run, and to compile; never the fastest, and no engines of products

# step NAME LIMIT COMMAND…: its output goes to NAME.log, its names of engines to leave out to SPARSERNN_WITHOUT
step() {
  local name=$1 limit=$2 log=$folder/$1.log begin=$SECONDS status=3 tries=0 left names
  shift 2
  while [ $status = 3 ] && [ $tries -le $AGAIN ]; do
    left=$((limit - SECONDS + begin))
    [ $left -gt 0 ] || break
    timeout -k 5 "$left" "$@" >>"$log" 2>&1
    status=$?
    tries=$((tries + 1))
    names=$(tail -n 5 "$log" | grep -o 'SPARSERNN_WITHOUT=[^ ;]*' | tail -n 1)
    if { [ $status = 3 ] || [ "$name" = launch ]; } && [ -n "$names" ]; then
      export SPARSERNN_WITHOUT=${names#*=}
      echo "$SPARSERNN_WITHOUT" >"$folder/without.txt"
    fi
  done
  echo "$name: $((SECONDS - begin)) s of at most $limit, begun $tries times, ended with status $status;" \
    "left out from here on: ${SPARSERNN_WITHOUT:-none}" | tee -a "$folder/steps.log"
}

launch() {
  local limit=${LIMIT_LAUNCH:-75}
  step launch "$limit" "$python" -m sparsernn.bench.launch --device "$device" \
    --seconds $((limit > 30 ? limit - 15 : limit / 2)) --out "$folder/launch.csv"
}

sweep() {
  step "$1" "$2" "$python" -m sparsernn.bench --profile "$profile" --device "$device" --sweep "$1" \
    --patience "${PATIENCE:-40}" --out "$folder/timings.csv"
}

if [ "$half" = A ] || [ ! -f "$folder/without.txt" ]; then
  launch
else
  export SPARSERNN_WITHOUT="${SPARSERNN_WITHOUT:+$SPARSERNN_WITHOUT,}$(cat "$folder/without.txt")"
fi
if [ "$half" = A ]; then
  [ "$device" = cpu ] || export SPARSERNN_WITHOUT="${SPARSERNN_WITHOUT:+$SPARSERNN_WITHOUT,}$SLOW"
  sweep layers "${LIMIT_LAYERS:-260}"
  sweep models "${LIMIT_MODELS:-90}"
else
  sweep products "${LIMIT_PRODUCTS:-110}"
  # shellcheck disable=SC2086  # tasks are words
  step training "${LIMIT_TRAINING:-100}" "$python" -m sparsernn.bench.training --device "$device" \
    --seconds "${TRAIN_SECONDS:-8}" --tasks ${TRAIN_TASKS:-ptb-word imdb ptb-char} --out "$folder/training.csv"
fi
exit 0
