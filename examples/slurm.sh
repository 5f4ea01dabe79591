#!/bin/bash
# semmae on the GPUs of one node or of many, one task each; when its time is over it is put into the queue again, and
# resumes.
#
#   sbatch --nodes 2 examples/slurm.sh pretrain --data /shared/photos --out /shared/runs/a
#
# --data and --out are the same folders on every node. For: pretrain, teacher, parts, probe --protocol mae, finetune,
# segment, embed. Verbs without --nodes (knn, evaluate, probe) begin their processes themselves: one task, --gpus 8.
#SBATCH --job-name=semmae
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# Five minutes before the end this script is told (B:), and tells every task: it ends its step, keeps it, and stops.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=$(head -n 1 <<< "$hosts")
export MASTER_ADDR

# Gloo, by which processes wait for each other, takes the interface of the node's name; where that is the loopback, as
# Debian has it (127.0.1.1), no other node is reached. Take the one that leads to the last node instead.
if [ "$SLURM_NNODES" -gt 1 ] && [ -z "$GLOO_SOCKET_IFNAME" ]; then
    address=$(getent ahostsv4 "$(tail -n 1 <<< "$hosts")" | awk '{ print $1; exit }')
    GLOO_SOCKET_IFNAME=$(ip -o route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
    export GLOO_SOCKET_IFNAME
fi

told=
trap 'told=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1 # the tasks, not this script

# One task that fails ends all. Since Slurm 22.05 srun has to be told again how many cores a task has. Its code goes by a
# file: where the signal and srun's end meet, that of waiting is the signal's, or lost.
ended=$(mktemp)
{
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        semmae "$@" --nodes "$SLURM_NNODES" --devices "$SLURM_NTASKS_PER_NODE"
    echo $? > "$ended"
} &
while kill -0 $! 2> /dev/null; do # the signal ends the waiting alone
    wait $!
done
code=$(cat "$ended")
code=${code:-1} # what was killed itself has written none
rm "$ended"
# 138 is 128 + SIGUSR1: the same command resumes. Where the first task is the first to end with it, srun ends the others,
# and its own code is that of the signal by which it did.
if [ "$code" -eq 138 ] || { [ -n "$told" ] && [ "$code" -gt 128 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
