"""The probes of a database: on a real server, and on one that is set up otherwise."""

from __future__ import annotations

import time

import psycopg

from trioresume.store.doctor.database import examine_database
from trioresume.store.doctor.findings import ProbeResult, Verdict


def by_probe(found: list[ProbeResult]) -> dict[str, ProbeResult]:
    return {each.probe: each for each in found}


def with_options(url: str, *options: str) -> str:
    return f"{url}&options=" + "%20".join(
        f"-c{option.replace('=', '%3D')}" for option in options
    )


def test_good_database_has_no_fault_and_nothing_is_left(postgres_url: str) -> None:
    """Its tables are gone afterwards."""
    found = list(examine_database(postgres_url))
    assert [each for each in found if each.verdict is Verdict.FAULT] == []
    assert len(by_probe(found)) == 11
    with psycopg.connect(postgres_url) as connection:
        (left,) = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'trioresume_doctor%'"
        ).fetchone() or (None,)
    assert left == 0


def test_commits_that_do_not_wait_for_the_disk_are_a_fault(postgres_url: str) -> None:
    """What was announced would be lost with the power."""
    url = with_options(postgres_url, "synchronous_commit=off")
    found = by_probe(list(examine_database(url)))["durability"]
    assert found.verdict is Verdict.FAULT
    assert "synchronous_commit" in found.said
    assert "on" in found.advice


def test_user_that_may_make_no_table_is_a_fault(postgres_url: str) -> None:
    """With the statement that helps; the other probes go on."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS doctor_guest")
        connection.execute("CREATE ROLE doctor_guest LOGIN")
    url = postgres_url.replace("trioresume@", "doctor_guest@")
    found = by_probe(list(examine_database(url)))
    assert found["permissions"].verdict is Verdict.FAULT
    assert "GRANT" in found["permissions"].advice
    assert found["notifications"].verdict is Verdict.GOOD


def test_database_that_cannot_be_reached_is_the_only_finding(postgres_url: str) -> None:
    """The password is not repeated."""
    url = postgres_url.replace("/postgres?", "/none?").replace(
        "trioresume@", "trioresume:secret@"
    )
    (only,) = examine_database(url)
    assert (only.probe, only.verdict) == ("reach", Verdict.FAULT)
    assert "secret" not in only.said
    assert "pg_hba.conf" in only.advice


def test_clock_that_is_wrong_is_a_warning(postgres_url: str) -> None:
    """Uploads expire by it."""
    found = by_probe(
        list(examine_database(postgres_url, now=lambda: time.time() - 100))
    )
    assert found["clock"].verdict is Verdict.WARNING
    assert "100 s" in found["clock"].said
