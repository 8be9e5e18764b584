"""The `gptoss` command line: `main` is its façade, each sub-command stands in its own module."""
