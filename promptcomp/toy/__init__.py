"""The toy worlds, and how the small base models that they need are trained from scratch."""
