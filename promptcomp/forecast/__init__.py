"""The cost of a training step before it runs: memory on a device, FLOPs, traffic between devices."""
