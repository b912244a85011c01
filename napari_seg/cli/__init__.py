"""The `napari-seg` command: one module a subcommand, which parses arguments and prints."""
