### sbatch /RUN/jobs/0001-train/train.sbatch
#!/bin/bash
#SBATCH --account=lab
#SBATCH --constraint='[rack1|rack2]'
#SBATCH --contiguous
#SBATCH --cpus-per-task=4
#SBATCH --exclude='node[01-02]'
#SBATCH --export=HOME,LANG,PATH,USER,HF_HOME,HF_TOKEN
#SBATCH --gres=gpu:a100:1
#SBATCH --job-name=train-TOKEN-1-0
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@uni.example
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUN/jobs/0001-train/%j_0_log.out
#SBATCH --partition=short
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --reservation=spring
#SBATCH --signal=USR2@120
#SBATCH --time=1440
type module >/dev/null 2>&1 || source /etc/profile
module load cuda/12.8
module load gcc
source /opt/site/setup.sh
ulimit -n 4096
export GREETING='it'"'"'s "here" & $HOME; `id`'
export OMP_NUM_THREADS=4
# Python must not import from the folder in which the job was submitted.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder
  PYTHONPATH=$(tr : '\n' <<<"$PYTHONPATH" | grep -vx '\.\{0,1\}' | paste -sd :)
fi
# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
unset SLURM_EXPORT_ENV
if ! [ -r '/images/magicseg 1.sif' ]; then
  echo 'error: /images/magicseg 1.sif: cannot be read on this node: is its file system there?'
  exit 2
fi
if [ "$(stat -Lc %s.%Y -- '/images/magicseg 1.sif')" != 4242.1700000000 ] &&
  [ "$(sha256sum <'/images/magicseg 1.sif' | cut -c -64)" != abababababababababababababababababababababababababababababababab ]; then
  echo 'error: /images/magicseg 1.sif: is not the image of this submission (sha256:abababababab): put it back, or submit again'
  exit 2
fi
unset PYTHONPATH PYTHONHOME
if ! command -v apptainer >/dev/null; then
  echo 'error: apptainer: is not on this node'"'"'s PATH: is there a module for it?'
  exit 2
fi
if ! apptainer verify --key /keys/lab.pem '/images/magicseg 1.sif'; then
  echo 'error: /images/magicseg 1.sif: is not signed with /keys/lab.pem, or was changed since'
  exit 2
fi
mkdir -p -- /big/caches
export APPTAINERENV_HF_HOME=/big/caches/huggingface
export APPTAINERENV_MAGICSEG_IMAGE=sha256:abababababababababababababababababababababababababababababababab
export APPTAINERENV_PYTHONSAFEPATH=1
export APPTAINERENV_TORCH_HOME=/big/caches/torch
export APPTAINERENV_TRITON_CACHE_DIR=/big/caches/triton
export APPTAINERENV_XDG_CACHE_HOME=/big/caches
run=/RUN
python=(apptainer exec --nv --bind /RUN --bind /big/caches --bind /data --bind /scratch:/scratch:ro '/images/magicseg 1.sif' python3)
processes=1
restarts=3
requeues=10
"${python[@]}" -m magicseg.launch.limits "$run" 0.2.0 || exit 2
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
