### sbatch /RUN/jobs/0001-generate/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=generate-TOKEN-1-0
#SBATCH --mem=48G
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-generate/%A_%a_0_log.out
#SBATCH --partition=preemptible
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
srun --unbuffered --output /RUN/jobs/0001-generate/%A_%a_%t_log.out /PYTHON -u -m submitit.core._submit /RUN/jobs/0001-generate


# teardown
code=$?
exit "$code"

### sbatch /RUN/jobs/0002-follow-up/follow-up.sbatch
#!/bin/bash
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:generate-TOKEN-1-0
#SBATCH --job-name=follow-up-TOKEN-2-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=1G
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0002-follow-up/%j_0_log.out
#SBATCH --partition=preemptible
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
/PYTHON -m magicseg follow-up /RUN 2
