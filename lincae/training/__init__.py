"""Training: the loop, what it minimises, how it is configured, and the folder of a run."""
