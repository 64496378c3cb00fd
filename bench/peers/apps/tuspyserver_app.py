"""tuspyserver's router as in its documentation, and a route to read uploads back."""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from tuspyserver import create_tus_router

DIRECTORY = Path(os.environ["BENCH_DATA_DIR"])

app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=str(DIRECTORY)))


@app.get("/files/{upload}")
def read_back(upload: str) -> FileResponse:
    """Return an upload's content, for the benchmark's check."""
    return FileResponse(DIRECTORY / Path(upload).name)
