"""What a training step will take, before it runs: memory on a device, FLOPs, traffic between devices."""
