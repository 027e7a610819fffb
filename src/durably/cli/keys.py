"""``durably keys``: make the keys of an engine in production and its apps."""

import os
import secrets
from pathlib import Path

import click

from durably.settings import EVENT_KEY, SIGNING_KEY

from .text import CliError

_KEY_BYTES = 32


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write the keys to a new file that only you can read, not to the terminal.",
)
def keys(output: Path | None) -> None:
    """Make a signing key and an event key, as lines for an environment file.

    The engine and its apps need the same keys. The signing key signs calls and their answers, and authenticates
    commands such as `durably runs`. The event key allows only to send events.
    """
    text = make_keys()
    if output is None:
        click.echo(text, nl=False)
    else:
        _write_new(output, text)
        click.echo(f"wrote {SIGNING_KEY.name} and {EVENT_KEY.name} to {output}")


def make_keys() -> str:
    """New keys, as two lines ``NAME=value``.

    The values have no characters that a shell or systemd would treat specially.
    """
    signing_key = f"signkey-prod-{secrets.token_hex(_KEY_BYTES)}"
    return f"{SIGNING_KEY.name}={signing_key}\n{EVENT_KEY.name}={secrets.token_hex(_KEY_BYTES)}\n"


def _write_new(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CliError(f"{path} exists, and may hold keys that are in use; choose another file") from None
    except OSError as error:
        raise CliError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
