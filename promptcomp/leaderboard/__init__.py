"""Methods and rivals at equal budgets: a track is a sweep, its rows are files, and the board is built from these."""
