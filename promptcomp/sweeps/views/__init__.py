"""The results of a sweep as tables, live view, plots and report page. They read a `SweepState` alone."""
