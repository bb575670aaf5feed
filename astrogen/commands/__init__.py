"""The verbs of the command line, one module each: TEXT, `add_options(parser)` and `run(options)`,
which returns the exit code.

What is slow to import is imported inside `run`, so that `astrogen --version` answers at once.
"""
