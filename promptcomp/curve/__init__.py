"""Data-efficiency curves: a method and its baselines over shares of the training data, student sizes and seeds."""
