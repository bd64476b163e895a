"""Where rows come from: files, folders and datasets, read row by row with file and line."""
