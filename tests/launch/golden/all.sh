### sbatch /RUN/jobs/0001-describe/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=describe-TOKEN-1-0
#SBATCH --mem=48G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-describe/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUN/jobs/0001-describe/%A_%a_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0001-describe


# teardown
code=$?
# 75: stopped before the time limit with work left. Above 128: the worker was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if { [ "$code" -eq 75 ] && [ "$restarts" -lt 10 ]; } || { [ "$code" -gt 128 ] && [ "$restarts" -lt 2 ]; }; then
  # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array.
  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
  fi
fi
exit "$code"

### sbatch /RUN/jobs/0002-generate/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:describe-TOKEN-1-0
#SBATCH --gpus-per-node=1
#SBATCH --job-name=generate-TOKEN-2-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=48G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0002-generate/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUN/jobs/0002-generate/%A_%a_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0002-generate


# teardown
code=$?
# 75: stopped before the time limit with work left. Above 128: the worker was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if { [ "$code" -eq 75 ] && [ "$restarts" -lt 10 ]; } || { [ "$code" -gt 128 ] && [ "$restarts" -lt 2 ]; }; then
  # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array.
  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
  fi
fi
exit "$code"

### sbatch /RUN/jobs/0003-mask/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:generate-TOKEN-2-0
#SBATCH --gpus-per-node=1
#SBATCH --job-name=mask-TOKEN-3-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=48G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0003-mask/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUN/jobs/0003-mask/%A_%a_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0003-mask


# teardown
code=$?
# 75: stopped before the time limit with work left. Above 128: the worker was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if { [ "$code" -eq 75 ] && [ "$restarts" -lt 10 ]; } || { [ "$code" -gt 128 ] && [ "$restarts" -lt 2 ]; }; then
  # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array.
  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
  fi
fi
exit "$code"

### sbatch /RUN/jobs/0004-train/train.sbatch
#!/bin/bash
#SBATCH --cpus-per-task=32
#SBATCH --dependency=afterok:mask-TOKEN-3-0
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=train-TOKEN-4-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0004-train/%j_0_log.out
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

### sbatch /RUN/jobs/0005-evaluate/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:train-TOKEN-4-0
#SBATCH --gpus-per-node=1
#SBATCH --job-name=evaluate-TOKEN-5-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=48G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0005-evaluate/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=120

# setup
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUN/jobs/0005-evaluate/%j_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0005-evaluate


# teardown
code=$?
# 75: stopped before the time limit with work left. Above 128: the worker was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if { [ "$code" -eq 75 ] && [ "$restarts" -lt 10 ]; } || { [ "$code" -gt 128 ] && [ "$restarts" -lt 2 ]; }; then
  # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array.
  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
  fi
fi
exit "$code"

### sbatch /RUN/jobs/0006-follow-up/follow-up.sbatch
#!/bin/bash
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:describe-TOKEN-1-0:generate-TOKEN-2-0:mask-TOKEN-3-0:train-TOKEN-4-0:evaluate-TOKEN-5-0
#SBATCH --job-name=follow-up-TOKEN-6-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=1G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0006-follow-up/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=10
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV
/PYTHON -m magicseg follow-up /RUN 6
