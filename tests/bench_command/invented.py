"""Results of runs that never were, for tests of what is made of results."""

from __future__ import annotations

import random
from dataclasses import replace

from trioresume.bench import (
    Attempt,
    Check,
    CheckedBy,
    Ending,
    Fault,
    FaultKind,
    FaultPlace,
    Faults,
    Generator,
    Kill,
    Machine,
    Protocol,
    Results,
    Series,
    ServerSample,
    ServerUsage,
    Settings,
    Sizes,
    Upload,
)

MIB = 1 << 20


def upload(
    number: int, size: int, begun: float, rng: random.Random, mean: int
) -> Upload:
    """An upload that is cut now and then, and finishes."""
    attempts: list[Attempt] = []
    now, offset, cut = begun, 0, False
    speed = rng.uniform(4, 9) * MIB
    while True:
        # What was in flight when the cut came has to be sent again.
        first = max(0, offset - (rng.randrange(200_000) if cut else 0))
        length = min(size - first, int(rng.expovariate(1 / mean)) + 1)
        query = rng.lognormvariate(-6, 0.5) if cut else None
        waited = rng.lognormvariate(-4.5, 0.8) if cut else 0.0
        last = first + length
        ended = now + waited + length / speed
        done = last == size
        attempts.append(
            Attempt(
                begun=now,
                ended=ended,
                first=first,
                last=last,
                ending=Ending.DONE if done else Ending.CUT,
                fault=None
                if done
                else Fault(rng.choice(list(FaultKind)), FaultPlace.BODY),
                offset_query=query,
                resume=waited if cut else None,
                status=201 if done else None,
            )
        )
        if done:
            break
        now, offset, cut = ended + rng.lognormvariate(-3, 0.5), last, True
    return Upload(
        number=number,
        name=f"bench-{number}",
        size=size,
        begun=begun,
        ended=ended,
        ending=Ending.DONE,
        attempts=tuple(attempts),
        location=f"http://127.0.0.1:8080/files/{number}",
        check=Check(CheckedBy.DIGEST, ok=True),
    )


def results(
    count: int = 16, *, at_once: int = 16, size: int = 48 * MIB, seed: int = 7
) -> Results:
    """*count* uploads, cut every 8 MiB or so, to a server that does well."""
    rng = random.Random(seed)
    uploads: list[Upload] = []
    lanes = [0.0] * min(at_once, count)
    for number in range(count):
        lane = min(range(len(lanes)), key=lanes.__getitem__)
        made = upload(number, size, lanes[lane], rng, 8 * MIB)
        lanes[lane] = made.ended + 0.002
        uploads.append(made)
    seconds = max(made.ended for made in uploads)
    interval = 0.1
    bins = int(seconds / interval) + 1
    sent, finished, cuts = [0.0] * bins, [0] * bins, [0] * bins
    for made in uploads:
        finished[int(made.ended / interval)] += 1
        for attempt in made.attempts:
            cuts[int(attempt.ended / interval)] += attempt.ending is Ending.CUT
            steps = max(1, int((attempt.ended - attempt.begun) / interval * 4))
            for step in range(steps):
                at = (
                    attempt.begun
                    + (attempt.ended - attempt.begun) * (step + 0.5) / steps
                )
                sent[int(at / interval)] += attempt.sent / steps
    samples = tuple(
        ServerSample(i * 0.5, i * 0.14, i * 0.31, int((40 + 6 * rng.random()) * MIB))
        for i in range(int(seconds / 0.5) + 1)
    )
    return Results(
        settings=Settings(
            url="http://127.0.0.1:8080/files/",
            at_once=at_once,
            total=count,
            sizes=Sizes(minimum=size, maximum=size),
            faults=Faults(mean_bytes=8 * MIB),
            headers=(("Authorization", "Bearer hush"),),
            server_pid=4711,
        ),
        protocol=Protocol.SEED,
        machine=Machine(
            cpus=2,
            cpu="Invented CPU",
            kernel="Linux 6.1",
            python="3.11.2",
            trioresume="0.1.0",
        ),
        started=1_790_000_000.0,
        seconds=seconds,
        uploads=tuple(uploads),
        series=Series(interval, tuple(map(int, sent)), tuple(finished), tuple(cuts)),
        generators=(Generator(process=0, user=1.0, system=2.0, seconds=seconds),),
        server=ServerUsage(
            pid=4711,
            user=samples[-1].user,
            system=samples[-1].system,
            peak_resident=60 * MIB,
            samples=samples,
        ),
        server_name="trioresume",
    )


def with_uploads(base: Results, *changed: Upload) -> Results:
    """*base* with the uploads of the same numbers replaced."""
    by_number = {made.number: made for made in changed}
    uploads = tuple(by_number.get(u.number, u) for u in base.uploads)
    return replace(base, uploads=uploads)


def failing(base: Results, number: int, ending: Ending, detail: str = "") -> Upload:
    """Upload *number* of *base*, given up with its last attempt."""
    good = base.uploads[number]
    last = replace(
        good.attempts[-1],
        ending=ending,
        detail=detail,
        status=None,
        last=max(good.attempts[-1].first, good.attempts[-1].last - 1),
    )
    return replace(
        good,
        ending=ending,
        detail=detail,
        check=None,
        attempts=(*good.attempts[:-1], last),
    )


def wrong(base: Results, number: int, detail: str = "the digests differ") -> Upload:
    """Upload *number* of *base*, stored with other content than was sent."""
    return replace(
        base.uploads[number], check=Check(CheckedBy.DIGEST, ok=False, detail=detail)
    )


def with_kills(base: Results) -> Results:
    """*base* with the server down twice."""
    third = base.seconds / 3
    return replace(
        base, kills=(Kill(third, third + 0.6), Kill(2 * third, 2 * third + 0.5))
    )
