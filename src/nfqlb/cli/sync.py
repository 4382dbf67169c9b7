"""`nfqlb sync status`: whether peers know our connections, and we theirs."""

from __future__ import annotations

import json
from typing import Any

import click

from nfqlb.cli.env import Env, client, director_options

STATES = {
    "shut": "could not begin yet",
    "waiting": "waits for a peer",
    "resyncing": "is given the whole table of a peer",
    "whole": "has the whole table",
    "alone": "no peer is there",
    "failed": "has failed, see the log",
}


@click.group("sync")
def command() -> None:
    """Connections that directors tell each other."""


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="With stable keys.")
@director_options
@click.pass_obj
def status(env: Env, as_json: bool, api: str | None, name: str | None) -> None:
    """Say how connection sync fares: state, lag, what was lost, and each peer."""
    sync = client(env, api, name).sync()
    if as_json:
        click.echo(json.dumps(sync, indent=2))
    elif sync is None:
        click.echo("sync is off: write [sync] into the configuration file, or see `nfqlb ipvsadm -h`")
    else:
        for line in lines(sync):
            click.echo(line)


def lines(sync: dict[str, Any]) -> list[str]:
    records, way = sync["records"], sync["group"] or "each peer"
    found = [
        f"{sync['role']}: {STATES[sync['state']]}",
        f"  to {way}, port {sync['port']}"
        + (f", over {sync['interface']}" if sync["interface"] else "")
        + f", sync id {sync['id']}, version {sync['version']}, {'sealed' if sync['sealed'] else 'not sealed'}",
        f"  told: {records['told']} records in {sync['messages_sent']} messages, {records['lost']} came too fast, "
        f"{sync['messages_failed']} not sent, lag {sync['lag']:.3f} s",
        f"  heard: {sync['messages_received']} messages; {records['entered']} connections entered, "
        f"{records['updated']} updated, {records['aside']} wait for their real server",
        f"  refused: {records['refused']} records, {records['malformed']} messages, {sync['messages_unsealed']} "
        f"without a right seal, {sync['messages_replayed']} that came before, {sync['messages_foreign']} of strangers; "
        f"{records['full']} found no room",
    ]
    for peer in sync["peers"]:
        there = "away" if peer["away"] else "there, with its whole table" if peer["whole"] else "there"
        found.append(
            f"  peer {peer['address']}: {there}; {peer['received']} messages, {peer['lost']} lost, "
            f"lag {peer['lag']:.3f} s"
        )
    if sync["failure"]:
        found.append(f"  last failure: {sync['failure']}")
    return found
