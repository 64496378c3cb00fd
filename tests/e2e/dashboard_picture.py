"""``python -m tests.e2e.dashboard_picture FILE``: a picture of the dashboard, for the docs.

A service is under load with cuts for a minute, and a real Prometheus scrapes it. Then every
query of the dashboard's panels is asked, and plotly draws what comes back, since no Grafana is
needed for that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plotly.subplots import make_subplots

from tests.e2e.chromium import chromium
from tests.e2e.command import Service, free_port
from tests.e2e.test_metrics import DASHBOARD, Prometheus
from tests.processes import environment_of

SECONDS = 45
COLUMNS = 3
WIDTH, HEIGHT = 1500, 300


def _load(service: Service) -> list[subprocess.Popen[bytes]]:
    """Uploads by three protocols, of which two are cut again and again."""
    common = [
        "--duration",
        f"{SECONDS}s",
        "--total",
        "1000000",
        "--size",
        "100k-8MiB",
        "--verify",
        "none",
    ]
    kinds = {
        "tus": ["--cut-every", "6MiB"],
        "seed": ["--cut-every", "12MiB"],
        "plain": [],
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "trioresume", "bench", *common),
                *(
                    "--protocol",
                    protocol,
                    *options,
                    "-n",
                    "6",
                    f"{service.root}/files/",
                ),
            ],
            env=environment_of(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for protocol, options in kinds.items()
    ]


def _draw(prometheus: Prometheus, begin: float, end: float) -> Any:
    panels = DASHBOARD["panels"]
    rows = -(-len(panels) // COLUMNS)
    figure = make_subplots(
        rows, COLUMNS, subplot_titles=[panel["title"] for panel in panels]
    )
    for place, panel in enumerate(panels):
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5s")
            found = prometheus.ask(
                "query_range",
                query=expression.replace("$instance", ".*"),
                start=str(begin),
                end=str(end),
                step="1",
            )
            for series in found["result"]:
                name = target["legendFormat"]
                for label, value in series["metric"].items():
                    name = name.replace("{{" + label + "}}", value)
                figure.add_scatter(
                    x=[at - begin for at, _ in series["values"]],
                    y=[float(value) for _, value in series["values"]],
                    name=name,
                    row=place // COLUMNS + 1,
                    col=place % COLUMNS + 1,
                    legend=f"legend{place + 1 if place else ''}",
                    mode="lines",
                )
    for place in range(len(panels)):
        axis = f"axis{place + 1 if place else ''}"
        across, down = figure.layout["x" + axis], figure.layout["y" + axis]
        legend = {"x": across.domain[0], "y": down.domain[1], "font": {"size": 9}}
        legend |= {"yanchor": "top"}
        legend |= {"bgcolor": "rgba(255,255,255,0.6)"}
        figure.update_layout({f"legend{place + 1 if place else ''}": legend})
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        width=WIDTH, height=rows * HEIGHT, template="plotly_white", margin={"t": 40}
    )
    return figure


def main(place: Path) -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        admin = f"127.0.0.1:{free_port()}"
        service = Service(
            folder / "data",
            ("serve", "--admin-bind", admin, "--access-log", str(folder / "log")),
        )
        service.start()
        (folder / "prometheus").mkdir()
        prometheus = Prometheus(folder / "prometheus", f"http://{admin}")
        try:
            prometheus.until(lambda: bool(prometheus.query("trioresume_build_info")))
            processes = _load(service)
            # Until then they make their content.
            running = "trioresume_requests_running > 0"
            prometheus.until(lambda: bool(prometheus.query(running)))
            begin = time.time()
            for process in processes:
                process.wait()
            figure = _draw(prometheus, begin, time.time())
            page = folder / "page.html"
            figure.write_html(
                page, include_plotlyjs=True, config={"displayModeBar": False}
            )
            size = f"{WIDTH},{figure.layout.height + 20}"
            subprocess.run(
                [
                    *(chromium(), "--headless", "--no-sandbox", "--disable-gpu"),
                    *(f"--screenshot={place}", f"--window-size={size}"),
                    *("--hide-scrollbars", "--virtual-time-budget=10000"),
                    page.as_uri(),
                ],
                check=True,
            )
        finally:
            prometheus.close()
            service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
