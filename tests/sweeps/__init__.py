"""Tests of sweeps with several processes, faults and real storages."""
