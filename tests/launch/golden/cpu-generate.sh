### sbatch /RUN/jobs/0001-generate/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=2
#SBATCH --job-name=generate-TOKEN-1-0
#SBATCH --mem=1900M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-generate/%A_%a_0_log.out
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
srun --unbuffered --output /RUN/jobs/0001-generate/%A_%a_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0001-generate


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
