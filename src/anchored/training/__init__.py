"""Training one network: the loop, the step, the optimiser, checkpoints; several processes."""
