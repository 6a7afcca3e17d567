#!/bin/sh
# Build the image without root rights and without magicseg installed: on this machine, on a node of the cluster, or on
# another machine by ssh, such as your workstation.
#
#   containers/build.sh IMAGE.sif [NAME=VALUE...]                    on this machine
#   containers/build.sh --srun "-p build -t 60" IMAGE.sif [...]      on a node, as a job
#   containers/build.sh --ssh HOST IMAGE.sif [...]                   on HOST; the image is copied back
#
# NAME=VALUE are arguments of Apptainer.def: VARIANT=cpu BASE=base.sif BOOTSTRAP=localimage TORCH=/wheels.
# Variables: APPTAINER: the program to use, such as singularity. BUILD_TMPDIR: a large disk of the build machine.
set -eu
usage() { sed -n '2,10p' "$0" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
where=here how=
case "${1-}" in
  --srun | --ssh) [ $# -ge 3 ] || usage; where=$1 how=$2; shift 2 ;;
esac
image=${1-}
case "$image" in *.sif) shift ;; *) usage ;; esac
# If BASE is a file here, make its path absolute, because the build runs in another folder. With --ssh, copy the file.
count=$#
while [ "$count" -gt 0 ]; do
  case "$1" in
    BASE=*) if [ -e "${1#BASE=}" ]; then base=$(realpath "${1#BASE=}"); else set -- "$@" "$1"; fi ;;
    *) set -- "$@" "$1" ;;
  esac
  shift
  count=$((count - 1))
done
[ -z "${base-}" ] || [ "$where" = --ssh ] || set -- "$@" "BASE=$base"
for setting; do case "$setting" in [A-Z]*=*) ;; *) echo "$setting: is not NAME=VALUE" >&2; exit 2 ;; esac; done
case " $* " in *" COMMIT="*) ;; *) set -- "$@" "COMMIT=$(git -C "$top" rev-parse HEAD 2>/dev/null || echo unknown)" ;; esac

case "$where" in
  --srun)
    # shellcheck disable=SC2086 # the options are words
    exec srun $how "$0" "$image" "$@"
    ;;
  --ssh)
    # ssh passes one line to the remote shell, so quote each word.
    quoted() { for word; do printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done; }
    away=$(ssh "$how" "mktemp -d $(quoted "${BUILD_TMPDIR:-/tmp}/magicseg-source.XXXXXX")")
    trap 'ssh "$how" "rm -rf $(quoted "$away")"' EXIT
    # COPYFILE_DISABLE keeps macOS from adding metadata files to the archive.
    (cd "$top" && COPYFILE_DISABLE=1 tar -chf - Apptainer.def pyproject.toml constraints.txt README.md LICENSE magicseg containers) |
      ssh "$how" "tar -xf - -C $(quoted "$away")"
    [ -z "${base-}" ] || scp "$base" "$how:$away/base.sif"
    ssh "$how" "BUILD_TMPDIR=$(quoted "${BUILD_TMPDIR-}") $(quoted "$away/containers/build.sh" "$away/image.sif" "$@" ${base:+"BASE=$away/base.sif"})"
    scp "$how:$away/image.sif" "$image"
    exit
    ;;
esac

program=${APPTAINER:-$(command -v apptainer || command -v singularity || true)}
[ -n "$program" ] || { echo "neither apptainer nor singularity is on the PATH: module load apptainer, or build with --ssh" >&2; exit 1; }
# Use a local disk: on Lustre and NFS, builds are slow or fail.
scratch=$(mktemp -d "${BUILD_TMPDIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/magicseg-build.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
free=$(df -Pk "$scratch" | awk 'NR == 2 {print int($4 / 1000000)}')
[ "$free" -ge 20 ] || echo "warning: $scratch has $free GB free, and about 20 are needed: set BUILD_TMPDIR" >&2
mkdir "$scratch/cache"
export APPTAINER_TMPDIR="$scratch" APPTAINER_CACHEDIR="$scratch/cache"
export SINGULARITY_TMPDIR="$scratch" SINGULARITY_CACHEDIR="$scratch/cache"
case "$image" in /*) ;; *) image=$PWD/$image ;; esac
count=$#
while [ "$count" -gt 0 ]; do # each NAME=VALUE becomes --build-arg NAME=VALUE
  set -- "$@" --build-arg "$1"
  shift
  count=$((count - 1))
done
cd "$top"
case "$("$program" build --help 2>&1)" in # zstd packs several times faster; old versions lack this option
  *--mksquashfs-args*) set -- --mksquashfs-args "-comp zstd -Xcompression-level 3" "$@" ;;
esac
"$program" build --fakeroot "$@" "$image" Apptainer.def
