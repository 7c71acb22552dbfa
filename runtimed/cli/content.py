"""``rctl content``: blobs."""

import sys

import click

from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.each import each
from runtimed.threads import blocking


@click.group("content")
def content_command() -> None:
    """Look at blobs: manifests, configs, layers.

    \b
    rctl content ls 'labels."containerd.io/gc.root"'
    rctl content get sha256:1234... | jq .
    """


@content_command.command("ls", short_help="List blobs.")
@output.formatted
@records.filters
@click.pass_obj
def ls_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List the blobs that match any FILTER: 'digest==sha256:...', 'labels.x==y'.

    \b
    rctl content ls 'labels."containerd.io/gc.root"'
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings,
            client.content.list(*filters),
            ("DIGEST", "SIZE", "AGE", "LABELS"),
            lambda blob: (
                blob.digest,
                output.size(blob.size),
                records.age(blob.created_at),
                records.labels_text(blob.labels),
            ),
        )

    return run(settings, work)


@content_command.command("get")
@click.argument("digest")
@click.pass_obj
def get_command(settings: Settings, digest: str) -> int:
    """Write the bytes of a blob to standard output.

    \b
    rctl content get sha256:1234... | jq .
    """

    async def work(client: Client) -> int:
        async for piece in client.content.read(digest):
            await blocking(sys.stdout.buffer.write, piece)
        return 0

    return run(settings, work)


@content_command.command("put", short_help="Make a blob of standard input.")
@output.formatted
@click.option("--expected", metavar="DIGEST", default="", help="What it must be.")
@click.option("-l", "--label", "words", multiple=True, metavar="KEY=VALUE")
@click.pass_obj
def put_command(settings: Settings, expected: str, words: tuple[str, ...]) -> int:
    """Make a blob of standard input and print its digest; without a label that keeps it, it is collected.

    \b
    rctl content put -l containerd.io/gc.root=1 < manifest.json
    """

    async def work(client: Client) -> int:
        data = await blocking(sys.stdin.buffer.read)
        digest = await client.content.write(data, expected=expected, labels=records.labels(words))
        output.print_json({"digest": digest}) if settings.json else output.print_lines([digest])
        return 0

    return run(settings, work)


@content_command.command("label")
@output.formatted
@click.argument("digest")
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
def label_command(settings: Settings, digest: str, words: tuple[str, ...]) -> int:
    """Set labels of a blob; KEY= removes one.

    \b
    rctl content label sha256:1234... containerd.io/gc.root=1
    """

    async def work(client: Client) -> int:
        blob = await client.content.label(digest, records.labels(words))
        output.print_json(records.to_json(blob)) if settings.json else output.print_lines([blob.digest])
        return 0

    return run(settings, work)


@content_command.command("rm", short_help="Remove blobs from the namespace.")
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.pass_obj
def rm_command(settings: Settings, digests: tuple[str, ...]) -> int:
    """Remove blobs from the namespace, whether something refers to them or not.

    \b
    rctl content rm sha256:1234...
    """

    async def remove(client: Client, digest: str) -> None:
        await client.content.delete(digest)

    return each(settings, digests, remove)


@content_command.command("ingests", short_help="List what is being written.")
@output.formatted
@records.filters
@click.pass_obj
def ingests_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List what is being written, or was and can be gone on with.

    \b
    rctl content ingests
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings,
            client.content.ingests(*filters),
            ("REF", "SIZE", "OF", "AGE"),
            lambda one: (
                one.ref,
                output.size(one.offset),
                output.size(one.total) if one.total else "-",
                records.age(one.started_at),
            ),
        )

    return run(settings, work)


@content_command.command("abort")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.pass_obj
def abort_command(settings: Settings, refs: tuple[str, ...]) -> int:
    """Throw away what was written under a REF.

    \b
    rctl content abort layer-sha256:1234...
    """

    async def abort(client: Client, ref: str) -> None:
        await client.content.abort(ref)

    return each(settings, refs, abort)
