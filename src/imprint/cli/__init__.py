"""The command line: thin commands over the public parts. Nothing heavy is imported before a command runs."""
