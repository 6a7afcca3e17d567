### sbatch /RUN/jobs/0001-train/train.sbatch
#!/bin/bash
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=train-TOKEN-1-0
#SBATCH --mem=200G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-train/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV
run=/RUN
python=(/PYTHON)
processes=4
restarts=3
requeues=10
head=$SLURMD_NODENAME # this script runs on the first node
port=$((10000 + SLURM_JOB_ID % 20000)) # torchrun's default port 29500 is often in use
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((SRUN_CPUS_PER_TASK > processes ? SRUN_CPUS_PER_TASK / processes : 1))}"
# Without this, ranks that torchrun restarts cannot find each other.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Slurm sends its warning (USR2) to every process of the step. Ranks handle it; torchrun must ignore it.
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --unbuffered \
  bash -c 'trap "" USR2; exec "$@"' _ \
  "${python[@]}" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" \
  --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --max-restarts="$restarts" -m magicseg train "$run"
code=$?
if [ "$code" -eq 0 ] && [ ! -e "$run/model/model.json" ]; then
  code=75 # stopped before the time limit with work left
fi
turns=$requeues
[ "$code" -gt 128 ] && turns=$((requeues < 2 ? requeues : 2)) # killed by a signal: at most two requeues
if { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt "$turns" ] &&
  scontrol -o show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
