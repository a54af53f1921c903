#!/bin/sh
# The state of a Slurm job in the three words snakemake asks for; a job that waits, is requeued or cannot be asked about runs.
state=$(squeue --noheader --states=all --jobs="$1" --format=%T 2>/dev/null) || { echo running; exit 0; }
case "$state" in
  COMPLETED) echo success ;;
  BOOT_FAIL | CANCELLED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | TIMEOUT) echo failed ;;
  *) echo running ;;
esac
