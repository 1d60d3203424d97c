"""``anyio-sendproducer check``: runs the check of a cluster, and prints its steps."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from functools import partial
from typing import Final

from .. import ProducerSettings, SettingsError
from ..checking import check_cluster
from ..drivers import DriverName
from ._connecting import Connection, require_for, settings_of
from ._running import (
    COMPLETE,
    INCOMPLETE,
    USAGE,
    MissingExtra,
    complain,
    print_report,
    run_on,
    until_terminated,
)

__all__ = ["TIMEOUT", "run"]

#: Seconds that a step may take, unless the command line or the settings say otherwise.
TIMEOUT: Final = 10.0


def run(connection: Connection, loop: str, timeout: dt.timedelta | None, *, as_json: bool) -> int:
    """Check a cluster, and print the outcome of each step.

    Args:
        connection: what the command line says about the cluster.
        loop: the event loop to run on.
        timeout: how long a step may take; None: as the settings say, or 10.
        as_json: whether to print JSON.

    Returns:
        ``COMPLETE``; ``INCOMPLETE`` if a step failed; ``USAGE`` if an option is wrong or a package
        is missing; 128 plus the number of a signal that ended it.
    """
    try:
        require_for(connection, loop)
        defaults = {"start_timeout": TIMEOUT, "resolve_timeout": TIMEOUT}
        settings = settings_of(
            connection, defaults=defaults, start_timeout=timeout, resolve_timeout=timeout
        )
    except (MissingExtra, SettingsError) as error:
        return complain(error, USAGE)
    return run_on(
        loop, until_terminated, partial(_run, settings, connection.driver, as_json=as_json)
    )


async def _run(settings: ProducerSettings, driver: DriverName | None, *, as_json: bool) -> int:
    from ._display import steps_text

    found = await check_cluster(settings, driver=driver)
    code = COMPLETE if found.passed else INCOMPLETE
    if as_json:
        report = {"exit_code": code, **dataclasses.asdict(found)}
        # In ASCII, which every locale can print.
        print_report(json.dumps(report) + "\n")
    else:
        print_report(steps_text(found.steps))
    return code
