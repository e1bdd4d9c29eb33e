"""Where a run may go: the machine, the cluster, the job."""
