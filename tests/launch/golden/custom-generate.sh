### sbatch /RUN/jobs/0001-generate/JOB_submission.sh
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-2%3
#SBATCH --constraint='[rack1|rack2]'
#SBATCH --contiguous
#SBATCH --cpus-per-task=4
#SBATCH --exclude='node[01-02]'
#SBATCH --export=HOME,LANG,PATH,USER,HF_HOME,HF_TOKEN
#SBATCH --gres=gpu:a100:1
#SBATCH --job-name=generate-TOKEN-1-0
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@uni.example
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-generate/%A_%a_0_log.out
#SBATCH --partition=short
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --reservation=spring
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
type module >/dev/null 2>&1 || source /etc/profile
module load cuda/12.8
module load gcc
source /opt/site/setup.sh
ulimit -n 4096
export GREETING='it'"'"'s "here" & $HOME; `id`'
export OMP_NUM_THREADS=4
# srun takes over neither the job's CPUs (since Slurm 22.05) nor variables that sbatch was not told of.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUN/jobs/0001-generate/%A_%a_%t_log.out apptainer exec --nv --bind /RUN --bind /data --bind /scratch:/scratch:ro '/images/magicseg 1.sif' python3 -u -m submitit.core._submit /RUN/jobs/0001-generate


# teardown
code=$?
# 75: stopped in time, more to do. Above 128: the worker was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if { [ "$code" -eq 75 ] && [ "$restarts" -lt 10 ]; } || { [ "$code" -gt 128 ] && [ "$restarts" -lt 2 ]; }; then
  # Not SLURM_JOB_ID: that of an array's last task is the whole array's.
  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
  fi
fi
exit "$code"
