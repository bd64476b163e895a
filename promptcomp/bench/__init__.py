"""What serving a prompt costs: read anew, behind a cache of the whole prompt, or compressed.

`subject` opens what is measured, `requests` are the ways of serving, `timing` times them, `results` is what was found,
`show` and `plot` are for people.
"""
