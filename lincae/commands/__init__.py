"""The subcommands of `lincae`, one file a family."""
