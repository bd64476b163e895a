#!/bin/bash
# gist on toy_icl
# Written by promptcomp VERSION. To submit it again: sbatch '/runs/my run 100%/slurm/job.sh'
#SBATCH --job-name="pc-my run 100%"
#SBATCH --output="/runs/my run 100%%/slurm/%j.out"
#SBATCH --open-mode=append
#SBATCH --chdir="/home/me/a project"
#SBATCH --partition=gpu,long
#SBATCH --account=lab
#SBATCH --time=2:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=a100:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --constraint=[rack1|rack2]
#SBATCH --exclude=n[7-8]
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=END,FAIL
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --exclusive

cd '/home/me/a project' || exit 1

# what the shell of submission must not pass on
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK TORCHELASTIC_RUN_ID PROMPTCOMP_RUN_DIRECTORY
say() { echo "[$(date '+%F %T')] $*"; }

# ---- preemption and time limit
# SLURM warns this shell by USR1, 120 s before the end; the tasks then save and leave with code 75.
script='/runs/my run 100%/slurm/job.sh'
folder='/runs/my run 100%/slurm'
job="$SLURM_JOB_ID"
made_room="$folder/preempted-$job" # rank 0 leaves it: of several tasks, srun may report one that it has killed itself
step= signalled=0 timer=
resubmissions=${1:-0} # this script submits itself anew where a cluster forbids requeueing

warned() {
  signalled=1
  if [ -n "$step" ]; then kill -USR1 "$step" 2>/dev/null; fi
  if [ -z "$timer" ]; then (sleep 90 && kill -USR2 $$) & timer=$!; fi
}
overdue() {
  say "the tasks have not stopped in 90 s: restarting from the last checkpoint"
  restart
}
restart() {
  state=$(squeue --noheader --jobs="$job" --states=all --format=%T)
  if [ "$state" != RUNNING ]; then
    say "the job is ${state:-unknown to SLURM}: it is not restarted"
    exit 75
  fi
  restarts=$((${SLURM_RESTART_COUNT:-0} + resubmissions))
  if [ "$restarts" -ge 3 ]; then
    say "restarted $restarts times, no more (max_requeues)"
    exit 75
  fi
  say "requeueing job $job (restart $((restarts + 1)))"
  if scontrol requeue "$job"; then
    sleep 600 & wait $! # SLURM ends this script
    exit 75
  fi
  say "this cluster forbids requeueing: submitting the script anew"
  new=$(sbatch --parsable "$script" $((restarts + 1))) || exit 75
  echo "${new%%;*}" >>"$folder/resubmitted.txt"
  say "job ${new%%;*} continues"
  exit 0
}
trap warned USR1
trap overdue USR2
trap : TERM # the tasks get it too, and save; this shell waits for them

# ---- environment
module load cuda/12.4 || { say cannot load module cuda/12.4; exit 1; }
export PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export NCCL_SOCKET_IFNAME=ib0
export NOTE='it'"'"'s $HOME; "quoted"'
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # rank 0 runs there
export MASTER_ADDR
export MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000)) # another one for each job of a node
source "/opt/my env/bin/activate"

# ---- the run
rm -f "$made_room"
say "job $job on ${SLURM_JOB_NODELIST:-?}, start $((${SLURM_RESTART_COUNT:-0} + 1))"
PROMPTCOMP_LAUNCHER=slurm srun --kill-on-bad-exit=1 --wait=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" '/opt/my env/bin/python' -m promptcomp fit --resume '/runs/my run 100%' --preempted-file "$made_room" &
step=$!
if [ "$signalled" = 1 ]; then kill -USR1 "$step" 2>/dev/null; fi
while :; do
  signalled=0
  wait "$step"
  code=$?
  [ "$signalled" = 1 ] || kill -0 "$step" 2>/dev/null || break # a trap ends wait too
done
if [ -n "$timer" ]; then kill "$timer" 2>/dev/null; fi
say "ended with code $code"
if [ -e "$made_room" ]; then
  rm -f "$made_room"
  restart
fi
case $code in
75 | 138 | 140) restart ;; # saved; or ended by the signal itself, before the program had begun
esac
exit $code
