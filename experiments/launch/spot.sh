#!/bin/bash
# Runs until it is finished on a machine that may be taken away: experiments/launch/spot.sh --method seatrans --name long
# Start it at boot. Code 75 means stopped and saved (SIGTERM): it ends, to be started again on the next machine. After a crash of the
# machine itself the newest whole checkpoint is what the next start goes on from. The runs' folder must outlive the machine.
set -u

python="${PYTHON:-python}"
runs=runs name=""
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
    case "${args[i]}" in
        --runs) runs="${args[i + 1]:-}" ;;
        --name) name="${args[i + 1]:-}" ;;
        --runs=*) runs="${args[i]#*=}" ;;
        --name=*) name="${args[i]#*=}" ;;
    esac
done
[ -n "$name" ] || { echo "error: give the run a --name, by which it is found again." >&2; exit 2; }
resume=()
[ -f "$runs/$name/metrics.jsonl" ] && resume=(--resume)
exec "$python" experiments/run.py "$@" ${resume[@]+"${resume[@]}"}
