"""The subcommands of `lincae`, a file a family: what they read from the command line, handed to the wings."""
