"""Options that several commands share."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from edgedb.choose.settings import sampling_settings
from edgedb.cli.options import SamplingCommand, sampling_options, take_sampling


@click.command(cls=SamplingCommand)
@sampling_options()
def echo(stop: tuple[str, ...], **options: object) -> None:
    click.echo(repr((stop, take_sampling(options).dry_breakers)))


@pytest.mark.parametrize("text", [r"\n", r"a\tb", r"\\n", r"\d", "###", r"\x41", " "])
def test_a_text_is_written_as_in_the_chat(text: str) -> None:
    """``--stop`` takes one text, ``--dry-breakers`` and ``/set`` several: the same escapes."""
    breakers = sampling_settings()["dry_breakers"]
    (meant,) = breakers.read(f'"{text}"')
    result = CliRunner().invoke(echo, ["--stop", text, "--dry-breakers", breakers.show((meant,))])
    assert result.output == f"{((meant,), (meant,))!r}\n"
    assert (meant == text) == (text in (r"\d", "###", " "))
