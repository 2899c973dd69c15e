"""A stand-in for the Hugging Face Hub: as much of its HTTP API as the real client needs to push a dataset and read it.

Everything is kept in memory; only the token `TOKEN` may write, and see what is private.
"""

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    """Files of each commit, oldest first."""
    tags: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str:
        newest = list(self.commits)[-1]
        found = {"main": newest, **self.tags, **{commit: commit for commit in self.commits}}.get(revision)
        if found is None:
            raise HTTPException(404, headers={"X-Error-Code": "RevisionNotFound"})
        return found


class Hub:
    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.fails_at: str | None = None
        """Part of a path: requests to it are answered with `fails_with`, one after the other."""
        self.fails_with: Iterator[int] = iter([500])
        """Statuses; 0 is no answer."""
        self.asked: list[str] = []
        self.url = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def watch(request: Request, go_on: Any) -> Response:
            self.asked.append(f"{request.method} {request.url.path}")
            if self.fails_at and self.fails_at in request.url.path:
                status = next(self.fails_with, 200)
                if status == 0:
                    await asyncio.sleep(3600)
                if status != 200:
                    return JSONResponse({"error": "out of order"}, status, {"retry-after": "0"})
            answer: Response = await go_on(request)
            return answer

        def repository(owner: str, name: str, request: Request) -> Repository:
            found = self.repositories.get(f"{owner}/{name}")
            allowed = request.headers.get("authorization") == f"Bearer {TOKEN}"
            if found is None or ((found.private or request.method == "POST") and not allowed):
                raise HTTPException(404, headers={"X-Error-Code": "RepoNotFound"})
            return found

        @app.post("/api/repos/create")
        async def create(request: Request) -> Response:
            asked = await request.json()
            name = f"{asked['organization']}/{asked['name']}"
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return JSONResponse({"error": "who are you"}, 401)
            if name in self.repositories:
                return JSONResponse({"error": "it exists", "url": f"{self.url}/datasets/{name}"}, 409)
            self.repositories[name] = Repository(asked["visibility"] == "private")
            return JSONResponse({"url": f"{self.url}/datasets/{name}", "name": name, "id": name})

        @app.post("/api/validate-yaml")
        async def validate() -> Any:
            return {"errors": [], "warnings": []}

        @app.post("/api/datasets/{owner}/{name}/preupload/{revision}")
        async def preupload(owner: str, name: str, revision: str, request: Request) -> Any:
            files = repository(owner, name, request)
            now = files.commits[files.commit_of(revision)]
            return {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": mode_of(file["path"]),
                        "shouldIgnore": False,
                        "oid": oid_of(file["path"], now[file["path"]]) if file["path"] in now else None,
                    }
                    for file in (await request.json())["files"]
                ]
            }

        @app.post("/datasets/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(owner: str, name: str, request: Request) -> Any:
            repository(owner, name, request)
            asked = (await request.json())["objects"]
            actions = {"upload": {"href": f"{self.url}/large/", "header": {}}}
            return {
                "objects": [
                    one
                    if one["oid"] in self.large
                    else one | {"actions": {"upload": actions["upload"] | {"href": f"{self.url}/large/{one['oid']}"}}}
                    for one in asked
                ]
            }

        @app.put("/large/{oid}")
        async def put(oid: str, request: Request) -> Response:
            body = await request.body()
            if hashlib.sha256(body).hexdigest() != oid:
                return Response(status_code=400)
            self.large[oid] = body
            return Response()

        @app.post("/api/datasets/{owner}/{name}/commit/{revision}")
        async def commit(owner: str, name: str, revision: str, request: Request) -> Any:
            held = repository(owner, name, request)
            files = dict(held.commits[held.commit_of(revision)])
            body = await request.body()
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            oid = hashlib.sha1(body + str(len(held.commits)).encode()).hexdigest()
            held.commits[oid] = files
            return {"commitOid": oid, "commitUrl": f"{self.url}/datasets/{owner}/{name}/commit/{oid}"}

        @app.get("/api/datasets/{owner}/{name}/refs")
        async def refs(owner: str, name: str, request: Request) -> Any:
            held = repository(owner, name, request)
            return {
                "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": held.commit_of("main")}],
                "converts": [],
                "tags": [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in held.tags.items()],
            }

        @app.post("/api/datasets/{owner}/{name}/tag/{revision}")
        async def tag(owner: str, name: str, revision: str, request: Request) -> Response:
            held, wanted = repository(owner, name, request), (await request.json())["tag"]
            if wanted in held.tags:
                return JSONResponse({"error": "it exists"}, 409)
            held.tags[wanted] = held.commit_of(revision)
            return JSONResponse({})

        @app.get("/api/datasets/{owner}/{name}")
        @app.get("/api/datasets/{owner}/{name}/revision/{revision}")
        async def info(owner: str, name: str, request: Request, revision: str = "main") -> Any:
            held = repository(owner, name, request)
            commit = held.commit_of(revision)
            return {
                "id": f"{owner}/{name}",
                "sha": commit,
                "private": held.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in held.commits[commit]],
            }

        @app.get("/api/datasets/{owner}/{name}/tree/{revision}")
        @app.get("/api/datasets/{owner}/{name}/tree/{revision}/{folder:path}")
        async def tree(owner: str, name: str, revision: str, request: Request, folder: str = "") -> Any:
            held = repository(owner, name, request)
            files = held.commits[held.commit_of(revision)]
            if folder:
                raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound"})
            return [entry_of(path, content) for path, content in sorted(files.items())]

        @app.post("/api/datasets/{owner}/{name}/paths-info/{revision}")
        async def paths(owner: str, name: str, revision: str, request: Request) -> Any:
            held = self.repositories[f"{owner}/{name}"]
            files = held.commits[held.commit_of(revision)]
            body = await request.body()
            asked = json.loads(body)["paths"] if body.startswith(b"{") else (await request.form()).getlist("paths")
            return [entry_of(path, files[path]) for path in map(str, asked) if path in files]

        @app.head("/datasets/{owner}/{name}/resolve/{revision}/{path:path}")
        @app.get("/datasets/{owner}/{name}/resolve/{revision}/{path:path}")
        async def resolve(owner: str, name: str, revision: str, path: str, request: Request) -> Response:
            held = repository(owner, name, request)
            commit = held.commit_of(revision)
            if path not in held.commits[commit]:
                raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            content = held.commits[commit][path]
            headers = {"etag": f'"{oid_of(path, content)}"', "x-repo-commit": commit}
            return Response(content, media_type="application/octet-stream", headers=headers)

        return app


def mode_of(path: str) -> str:
    return "lfs" if path.endswith(".parquet") else "regular"


def oid_of(path: str, content: bytes) -> str:
    """As git names it, or large file storage."""
    if mode_of(path) == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid_of(path, content)}
    if mode_of(path) == "lfs":
        entry["lfs"] = {"oid": oid_of(path, content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = uvicorn.Server(uvicorn.Config(hub.app(), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
