"""YAML files that people name on the command line: what is wrong with one becomes one line."""

from pathlib import Path
from typing import Any

import click
import yaml


def read_documents(path: Path) -> list[Any]:
    """Return the documents of a YAML file.

    Raises click.ClickException, which names the file and, where there is one, the line.
    """
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise click.ClickException(f"{path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not YAML: it is not text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark is not None else ""
        raise click.ClickException(f"{path} is not YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise click.ClickException(f"{path} is not YAML: {' '.join(str(error).split())}") from error
