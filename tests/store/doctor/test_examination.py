"""``trioresume doctor``, and what it takes for an address."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import trioresume.cli
from tests.s3_servers import S3Server
from trioresume import CallerError, Verdict, examine
from trioresume.store.objects.s3 import S3Bucket


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        trioresume.cli.main, ["doctor", *arguments], prog_name="trioresume"
    )
    return result.exit_code, result.output


def test_command_says_what_is_good_and_what_to_do(
    s3: S3Server, credentials: None, postgres_url: str
) -> None:
    """A warning does not change the exit code."""
    code, output = run("--objects", s3.url("doctor-test"), "--catalog", postgres_url)
    assert code == 0, output
    assert "good     bucket, conditional put: " in output
    assert "good     database, notifications: " in output
    assert "warning  bucket, unfinished uploads: " in output
    assert "AbortIncompleteMultipartUpload" in " ".join(output.split())


def test_fault_is_exit_code_3(s3: S3Server, credentials: None) -> None:
    """As JSON, too."""
    url = s3.url().replace("uploads", "none")
    code, output = run("--objects", url, "--json")
    assert code == 3
    (row,) = map(json.loads, output.splitlines())
    assert (row["subject"], row["probe"], row["verdict"]) == (
        "bucket",
        "reach",
        "fault",
    )
    code, output = run("--objects", url)
    assert code == 3
    assert output.startswith("FAULT    bucket, reach: ")


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_nothing_to_look_at_is_a_mistake(arguments: tuple[str, ...]) -> None:
    """Exit code 2, as for any wrong option."""
    code, output = run(*arguments)
    assert code == 2
    assert "--catalog, --objects or both" in output


def test_addresses_that_are_none_are_refused_at_once() -> None:
    """Before the first probe."""
    with pytest.raises(CallerError, match="postgresql://"):
        examine(catalog="mysql://x/y")
    with pytest.raises(CallerError, match="s3://"):
        examine(objects="https://x/y")


def test_both_can_be_examined_in_a_program(bucket: S3Bucket) -> None:
    """Findings come one by one."""
    address = bucket.address
    url = f"s3://{address.bucket}/{address.prefix}?endpoint={address.endpoint}"
    first = next(iter(examine(objects=f"{url}&region={address.region}")))
    assert (first.subject, first.verdict) == ("bucket", Verdict.GOOD)
