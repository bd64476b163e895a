"""What a sweep has found, for people: tables, the live view, pictures and the page. They read a `SweepState` alone."""
