#!/bin/sh
# Install the requirements of the tests in this folder, on Debian or Ubuntu, as root: Slurm with accounting, and network
# namespaces.
set -eu
for command in slurmctld slurmd sbatch munged slurmdbd mariadbd ip; do
  if ! PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null; then
    apt-get update -qq
    exec env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server iproute2
  fi
done
