"""What stands around a job: log, progress, signals, processes, devices, the cluster."""
