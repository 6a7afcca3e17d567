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
# Python imports nothing from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # an empty item would be that folder, too
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun takes over neither the job's CPUs (since Slurm 22.05) nor variables that sbatch was not told of.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV
run=/RUN
python=(/PYTHON)
processes=4
restarts=3
requeues=10
head=$SLURMD_NODENAME # this script runs on the first node
port=$((10000 + SLURM_JOB_ID % 20000)) # torchrun's own 29500 is often taken
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((SRUN_CPUS_PER_TASK > processes ? SRUN_CPUS_PER_TASK / processes : 1))}"
# Else ranks that torchrun starts again cannot find each other.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Slurm's warning reaches every process of the step: ranks act on it, torchrun itself must not die of it.
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --unbuffered \
  bash -c 'trap "" USR2; exec "$@"' _ \
  "${python[@]}" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" \
  --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --max-restarts="$restarts" -m magicseg train "$run"
code=$?
if [ "$code" -eq 0 ] && [ ! -e "$run/model/model.json" ]; then
  code=75 # stopped in time, more to do
fi
turns=$requeues
[ "$code" -gt 128 ] && turns=$((requeues < 2 ? requeues : 2)) # killed: twice is bad luck
if { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt "$turns" ] &&
  scontrol -o show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
