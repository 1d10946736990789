"""A stand-in for the Hub on the loopback interface, enough for `push_to_hub` and `from_pretrained` by name."""

import hashlib
import json
import threading
from base64 import b64decode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class LoopbackHub(BaseHTTPRequestHandler):
    """Keeps repositories in `server.repositories`: name -> path -> bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        repositories = self.server.repositories
        if path == "api/whoami-v2":
            return self.answer(body={"name": "user", "type": "user", "orgs": [], "auth": {}})
        if path.startswith("api/models/"):
            name = "/".join(path.split("/")[2:4])
            if name not in repositories:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            files = [
                {"type": "file", "path": file, "rfilename": file, "size": len(data), "oid": COMMIT}
                for file, data in repositories[name].items()
            ]
            if "/tree/" in path:
                return self.answer(body=files)
            return self.answer(body={"id": name, "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0})
        name, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        if file not in repositories.get(name, {}):
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        data = repositories[name][file]
        return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path).strip("/"), self.body()
        self.server.log.append((path, body))
        host = f"http://{self.headers['Host']}"
        if path == "api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'user'}/{request['name']}"
            self.server.repositories.setdefault(name, {})
            return self.answer(body={"url": f"{host}/{name}", "id": name, "name": name})
        if "/branch/" in path:
            return self.answer(201)
        if path == "api/validate-yaml":
            return self.answer(body={"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                item | {"actions": {"upload": {"href": f"{host}/lfs/{item['oid']}", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            return self.answer(body={"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            files = [
                item
                | {"uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            return self.answer(body={"files": files})
        if "/commit/" in path:
            name = "/".join(path.split("/")[2:4])
            repository = self.server.repositories[name]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository[value["path"]] = b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository[value["path"]] = self.server.blobs[value["oid"]]
            return self.answer(
                body={"commitUrl": f"{host}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        return self.answer(404)

    def do_PUT(self):
        self.server.blobs[urlsplit(self.path).path.split("/")[-1]] = self.body()
        self.answer()


@contextmanager
def loopback_hub(home: Path, log: list[tuple[str, bytes]] | None = None):
    """
    Yields an environment, with a `home` of its own, and the repositories of a Hub that lives as long as the context.
    The path and the body of every request that changes something are appended to `log`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    server.repositories, server.blobs, server.log = {}, {}, [] if log is None else log
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_loopback", "HF_HOME": str(home)}
        yield hub | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}, server.repositories
    finally:
        server.shutdown()
        server.server_close()
