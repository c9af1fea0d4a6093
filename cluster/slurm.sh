#!/usr/bin/env bash
# SLURM: a study on several nodes.
#
#   sbatch --export=ALL,RESULTS=/shared/results,DATA=/shared/data cluster/slurm.sh studies/depth_gap.py --preset paper --data cifar10
#
# Submit it in the checkout, which must be on a file system that all nodes share, as must RESULTS (or an object store). The same
# command continues a study that was interrupted; a job that is pre-empted continues by itself. Success is the marker
# <RESULTS>/<study>/completed.json, not an exit code: `ray symmetric-run` also ends with 0 where a node's Ray did not start.
#
#   RESULTS  results folder; default: results in the checkout
#   DATA     folder that is copied to each node's own disk; default: none is
#   SCRATCH  a node's own disk; default: /tmp
#   PYTHON   default: .venv/bin/python of the checkout
#
#SBATCH --job-name=pdarts_tune
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# Exclusive: at its end `ray symmetric-run` stops every Ray of the user on the node. USR1: three minutes before the time is over;
# a node that is pre-empted gets TERM.
set -euo pipefail

script=${1:?"the first argument is a study's script, such as studies/depth_gap.py"}
shift
checkout=${SLURM_SUBMIT_DIR:-$PWD}
python=${PYTHON:-$checkout/.venv/bin/python}
results=${RESULTS:-$checkout/results}
scratch=${SCRATCH:-/tmp}
study=$(basename "$script" .py)
cd "$checkout"
# `ray symmetric-run` starts and stops Ray by the name of its command; srun hands the path on to every node.
PATH=$(cd "$(dirname "$python")" && pwd):$PATH
export PATH

# Nothing of one job meets another's: ports and folders are named by the job. A short name, since sockets are made below it.
job=$SLURM_JOB_ID
port=$((20000 + job % 20000))
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
run=$checkout/.slurm-$job
mkdir -p "$run"
export RAY_TMPDIR=$scratch/ray-$job
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$run/token
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
(umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$run/token")
ulimit -n 65535 2>/dev/null || ulimit -n "$(ulimit -Hn)"

marker() { # exit code 0 if the study is complete; --remove forgets an earlier completion
  "$python" -c '
import sys
from pdarts_tune.results.storage import Storage
folder, remove = Storage(sys.argv[1]), sys.argv[2:] == ["--remove"]
sys.exit(folder.remove("completed.json") if remove else not folder.stamp("completed.json"))
' "$results/$study" "$@"
}

interrupted=
stop() { # nodes first, so that what Ray loses now does not count as a failure; then the study, as Ctrl-C would
  interrupted=yes
  echo "job $job: pre-empted or out of time; draining $SLURM_JOB_NUM_NODES nodes and stopping the study"
  srun --overlap --ntasks-per-node=1 ray drain-node --address "$head:$port" \
    --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "SLURM takes the node" --deadline-remaining-seconds 90 || true
  if [[ -s $run/driver ]]; then
    kill -TERM "$(cat "$run/driver")" 2>/dev/null || true
    for _ in {1..100}; do kill -0 "$(cat "$run/driver")" 2>/dev/null && sleep 1; done
  fi
  # A drained node's Ray ends well, and `ray start --block` waits on: it ends only when a part of Ray ends badly.
  srun --overlap --ntasks-per-node=1 pkill -f "[s]tart --address $head:$port --block" || true
}
trap stop USR1 TERM

marker --remove

if [[ -n ${DATA:-} ]]; then
  export PDARTS_TUNE_DATA=$scratch/pdarts_tune-$job
  # shellcheck disable=SC2016
  srun --ntasks-per-node=1 bash -c 'mkdir -p "$2" && cp -a "$1/." "$2/"' stage "$DATA" "$PDARTS_TUNE_DATA"
fi

# The driver runs on the first node, where this script runs too, and says here how it can be reached. $$ is meant to be its own.
# shellcheck disable=SC2016
srun --ntasks-per-node=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  bash -c 'echo $$ >"$1/driver"; shift; exec "$@"' driver "$run" \
  "$python" "$script" --results "$results" --address auto "$@" &
step=$!
until wait "$step"; do # a trap ends a wait early
  kill -0 "$step" 2>/dev/null || break
done
wait "$step" || true

if [[ -n ${DATA:-} ]]; then
  srun --overlap --ntasks-per-node=1 rm -rf "$PDARTS_TUNE_DATA" || true
fi
rm -rf "$run"

if marker; then
  srun --overlap --ntasks-per-node=1 rm -rf "$RAY_TMPDIR" || true # with Ray's logs, which a study that is not complete may need
  echo "job $job: the study is complete"
elif [[ -n $interrupted ]]; then
  echo "job $job: goes back into the queue; the same command continues the study"
  scontrol requeue "$job"
else
  echo "job $job: the study is not complete; the same command continues it" >&2
  exit 1
fi
