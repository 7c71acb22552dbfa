"""``rctl doctor``: what is on the machine although nothing explains it, and what the machine is short of."""

import click

from runtimed.api import doctor_pb2 as doctor
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import age, formatted, print_json, print_table, safe, timestamp


@click.command("doctor")
@formatted
@click.option("--repair", is_flag=True, help="Put right what can be put right safely.")
@click.pass_obj
def doctor_command(settings: Settings, repair: bool) -> int:
    """Compare what is recorded with what is there.

    Exit status: 1 if something is wrong and stays so.

    \b
    rctl doctor
    rctl doctor --repair
    """

    async def work(client: Client) -> int:
        answer = await client.call(service(doctor, "Doctor").Check, doctor.CheckRequest(repair=repair))
        is_wrong = any(not finding.action or finding.error for finding in answer.findings)
        if settings.json:
            print_json({"findings": [*map(_finding, answer.findings)], "facts": [*map(_fact, answer.facts)]})
            return int(is_wrong)
        print_table(("FACT", "VALUE", "WARNING"), [(fact.name, fact.value, fact.warning) for fact in answer.facts])
        print()
        for finding in answer.findings:
            done = f"; {finding.action}" if finding.action else f"; failed: {finding.error}" if finding.error else ""
            since = age(finding.since.ToNanoseconds() / 1e9)
            print(safe(f"{finding.kind} {finding.what}: {finding.detail} (for {since}){done}"))
        if not answer.findings:
            print("nothing is wrong")
        elif is_wrong and not repair:
            print("rctl doctor --repair puts right what can be put right safely")
        return int(is_wrong)

    return run(settings, work)


def _finding(finding: doctor.Finding) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "what": finding.what,
        "detail": finding.detail,
        "since": timestamp(finding.since),
        "action": finding.action or None,
        "error": finding.error or None,
    }


def _fact(fact: doctor.Fact) -> dict[str, object]:
    return {"name": fact.name, "value": fact.value, "warning": fact.warning or None}
