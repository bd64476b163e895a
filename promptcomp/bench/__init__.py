"""What serving a prompt costs: read anew, behind a cache of the whole prompt, or compressed."""
