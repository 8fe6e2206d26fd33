"""Minimal in-process loopback Hub (stdlib only): enough of the Hub HTTP API for huggingface_hub 2.4 with
HF_HUB_DISABLE_XET=1 (the LFS/HTTP protocol).  Commits are kept in memory; blobs are content addressed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".parquet", ".h5", ".npz")
LFS_THRESHOLD = 10 * 1024 * 1024


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    def __init__(self, repo_id: str, private: bool = False):
        self.id, self.private = repo_id, private
        self.commits: dict[str, dict] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.prs: list[dict] = []
        self.commit(
            "main",
            {},
            "initial commit",
            files={".gitattributes": ("regular", git_blob_oid(b""), 0)},
            blobs={git_blob_oid(b""): b""},
        )

    def commit(self, branch, base_files, title, files, blobs=None, parent=None):
        self.blobs = getattr(self, "blobs", {})
        self.blobs.update(blobs or {})
        payload = json.dumps([branch, sorted(files.items()), title, time.time_ns(), parent]).encode()
        sha = hashlib.sha1(payload).hexdigest()
        self.commits[sha] = {"files": dict(files), "title": title, "parent": parent, "date": time.time()}
        self.branches[branch] = sha
        return sha

    def resolve(self, rev: str) -> str | None:
        if rev in self.branches:
            return self.branches[rev]
        if rev in self.tags:
            return self.tags[rev]
        if rev in self.commits:
            return rev
        return None


class Hub:
    """State shared by handler threads. `log` keeps (method, path, status) of each request."""

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = tokens or {"hf_test": "user"}
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self.fail: dict[str, int] = {}  # path regex -> number of 503 to answer (fault injection)
        # path regex -> what befalls the next requests: a (status, headers) at once, "lost" (done, but no reply), "" (nothing)
        self.faults: dict[str, list[tuple[int, dict] | str]] = {}
        # Asked before each request, with method and path: as above, or "dropped" (not done, no reply), "slow" (a pause in the reply), "short"
        # (a reply that ends too early). None for nothing.
        self.intercept: Callable[[str, str], tuple[int, dict] | str | None] = lambda method, path: None
        self.pause = 0.0  # seconds of a slow reply


def make_handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "minihub"

        def log_message(self, *a):
            pass

        # ---- plumbing -------------------------------------------------------------------------
        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                out = b""
                while True:
                    n = int(self.rfile.readline().strip() or b"0", 16)
                    if n == 0:
                        self.rfile.readline()
                        return out
                    out += self.rfile.read(n)
                    self.rfile.readline()
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, status: int, body: bytes = b"", headers: dict | None = None, head=False, ctype="application/json"):
            if self.reply_is_lost:
                hub.log.append((self.command, self.path, 0))
                self.close_connection = True
                return
            hub.log.append((self.command, self.path, status))
            self.send_response(status)
            headers = dict(headers or {})
            headers.setdefault("Content-Length", str(len(body)))
            headers.setdefault("Content-Type", ctype)
            for k, v in headers.items():
                self.send_header(k, v)
            self.end_headers()
            half = len(body) // 2 if self.cut else len(body)
            if not head:
                self.wfile.write(body[:half])
            if self.cut == "short":
                self.close_connection = True
            elif self.cut == "slow":
                time.sleep(hub.pause)
                if not head:
                    self.wfile.write(body[half:])

        def _json(self, obj, status=200, headers=None):
            self._send(status, json.dumps(obj).encode(), headers)

        def _err(self, status, code, msg, head=False, extra=None):
            self._send(
                status,
                json.dumps({"error": msg}).encode(),
                {"X-Error-Code": code, "X-Error-Message": msg, **(extra or {})},
                head=head,
            )

        def _user(self):
            auth = self.headers.get("Authorization", "")
            return hub.tokens.get(auth.removeprefix("Bearer ").strip()) if auth else None

        @property
        def base(self):
            return f"http://{self.headers['Host']}"

        @property
        def cdn(self):  # another origin, like the real Hub's CDN: the client does not follow HEAD there, and drops its token
            return f"http://localhost:{self.headers['Host'].rsplit(':', 1)[1]}"

        def do_HEAD(self):
            self._route()

        def do_GET(self):
            self._route()

        def do_POST(self):
            self._route()

        def do_PUT(self):
            self._route()

        def do_DELETE(self):
            self._route()

        def _route(self):
            u = urlsplit(self.path)
            path, q = u.path, parse_qs(u.query)
            body = self._body() if self.command in ("POST", "PUT", "DELETE") else b""
            self.reply_is_lost, self.cut = False, None
            for rx in list(hub.fail):
                if re.search(rx, path) and hub.fail[rx] > 0:
                    hub.fail[rx] -= 1
                    return self._send(503, b"{}")
            for rx, faults in hub.faults.items():
                if faults and re.search(rx, path):
                    fault = faults.pop(0)
                    if isinstance(fault, tuple):
                        return self._send(fault[0], b"{}", fault[1], head=self.command == "HEAD")
                    self.reply_is_lost = fault == "lost"
            fault = hub.intercept(self.command, path)
            if isinstance(fault, tuple):
                return self._send(fault[0], b"{}", fault[1], head=self.command == "HEAD")
            if fault == "dropped":
                self.close_connection = True
                return None
            self.reply_is_lost = self.reply_is_lost or fault == "lost"
            self.cut = fault if fault in ("slow", "short") else None
            with hub.lock:
                for method, rx, fn in ROUTES:
                    if method != self.command and not (method == "GET" and self.command == "HEAD"):
                        continue
                    m = re.fullmatch(rx, path)
                    if m:
                        return fn(self, q, body, **{k: unquote(v) for k, v in m.groupdict().items() if v is not None})
            self._err(404, "NotImplemented", f"minihub: no route {self.command} {path}")

        def _repo(self, id, write=False):
            user, repo = self._user(), hub.repos.get(id)
            if repo is None or (repo.private and user != id.split("/")[-2]):
                self._err(401 if user is None else 404, "RepoNotFound", "Repository not found", head=self.command == "HEAD")
                return None
            if write and user != id.split("/")[-2]:
                self._err(403 if user else 401, "Forbidden", "You don't have write access")
                return None
            return repo

        # ---- endpoints ------------------------------------------------------------------------
        def whoami(self, q, body):
            user = self._user()
            if user is None:
                return self._err(401, "Unauthorized", "Invalid credentials in Authorization header")
            self._json(
                {
                    "type": "user",
                    "id": "0",
                    "name": user,
                    "fullname": user,
                    "email": None,
                    "orgs": [],
                    "auth": {"accessToken": {"displayName": "t", "role": "write"}},
                }
            )

        def create(self, q, body):
            p, user = json.loads(body), self._user()
            if user is None:
                return self._err(401, "Unauthorized", "Invalid username or password.")
            ns = p.get("organization") or user
            kind = "datasets/" if p.get("type") == "dataset" else ""
            rid = f"{kind}{ns}/{p['name']}"
            if ns != user:
                return self._err(403, "Forbidden", "You don't have the rights to create a model under this namespace")
            if rid in hub.repos:
                return self._json({"error": "You already created this model repo", "url": f"{self.base}/{rid}"}, 409)
            hub.repos[rid] = Repo(rid, private=p.get("visibility") == "private" or bool(p.get("private")))
            self._json({"url": f"{self.base}/{rid}", "name": rid, "id": rid.removeprefix("datasets/")})

        def delete(self, q, body):
            p, user = json.loads(body), self._user()
            rid = f"{p.get('organization') or user}/{p['name']}"
            if hub.repos.pop(rid, None) is None:
                return self._err(404, "RepoNotFound", "Repository not found")
            self._json({})

        def validate_yaml(self, q, body):
            import yaml

            content = json.loads(body)["content"]
            m = re.match(r"^---\s*\n(.*?)\n---", content, re.S)
            if not m:
                return self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
            try:
                yaml.safe_load(m.group(1))
            except yaml.YAMLError as e:
                return self._json({"errors": [{"message": str(e)}], "warnings": []}, 400)
            self._json({"errors": [], "warnings": []})

        def preupload(self, q, body, id, rev):
            if (repo := self._repo(id, write=True)) is None:
                return
            sha = repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            cur = repo.commits[sha]["files"]
            out = []
            for f in json.loads(body)["files"]:
                lfs = f["path"].endswith(LFS_SUFFIXES) or f["size"] > LFS_THRESHOLD
                out.append(
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if lfs else "regular",
                        "shouldIgnore": False,
                        "oid": cur[f["path"]][1] if f["path"] in cur else None,
                    }
                )
            self._json({"files": out, "commitOid": sha})

        def lfs_batch(self, q, body, id):
            if self._repo(id, write=True) is None:
                return
            p, objs = json.loads(body), []
            for o in p["objects"]:
                d = {"oid": o["oid"], "size": o["size"]}
                if o["oid"] not in hub.lfs:
                    d["actions"] = {
                        "upload": {"href": f"{self.base}/_lfs/{o['oid']}", "header": {}},
                        "verify": {"href": f"{self.base}/{id}.git/info/lfs/objects/verify", "header": {}},
                    }
                objs.append(d)
            self._json({"transfer": "basic", "objects": objs}, headers={"Content-Type": "application/vnd.git-lfs+json"})

        def lfs_put(self, q, body, oid):
            if hashlib.sha256(body).hexdigest() != oid:
                return self._err(400, "BadRequest", "sha256 mismatch")
            hub.lfs[oid] = body
            self._send(200, b"", {"ETag": f'"{oid}"'})

        def lfs_verify(self, q, body, id):
            p = json.loads(body)
            ok = p["oid"] in hub.lfs and len(hub.lfs[p["oid"]]) == p["size"]
            self._json({}, 200 if ok else 404)

        def lfs_get(self, q, body, oid):
            self._blob(hub.lfs[oid], {"ETag": f'"{oid}"'})

        def commit(self, q, body, id, rev):
            if (repo := self._repo(id, write=True)) is None:
                return
            sha = repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            files, header, blobs = dict(repo.commits[sha]["files"]), {}, {}
            for line in body.splitlines():
                if not line.strip():
                    continue
                item = json.loads(line)
                k, v = item["key"], item["value"]
                if k == "header":
                    header = v
                elif k == "file":
                    data = base64.b64decode(v["content"])
                    oid = git_blob_oid(data)
                    blobs[oid] = data
                    files[v["path"]] = ("regular", oid, len(data))
                elif k == "lfsFile":
                    if v["oid"] not in hub.lfs:
                        return self._err(400, "BadRequest", f"lfs object missing for {v['path']}")
                    files[v["path"]] = ("lfs", v["oid"], len(hub.lfs[v["oid"]]))
                elif k == "deletedFile":
                    if files.pop(v["path"], None) is None:
                        return self._err(404, "EntryNotFound", "A file with this name doesn't exist")
                elif k == "deletedFolder":
                    for p in [p for p in files if p.startswith(v["path"].rstrip("/") + "/")]:
                        del files[p]
            parent = header.get("parentCommit")
            if parent and not sha.startswith(parent):
                return self._err(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
            branch, pr = rev, None
            if q.get("create_pr"):
                n = len(repo.prs) + 1
                branch = f"refs/pr/{n}"
                pr = f"{self.base}/{id}/discussions/{n}"
                repo.prs.append({"num": n, "title": header.get("summary"), "status": "open"})
            elif rev not in repo.branches:
                return self._err(400, "BadRequest", f"Cannot commit on {rev}")
            new = repo.commit(branch, {}, header.get("summary", ""), files, blobs, parent=sha)
            self._json(
                {
                    "success": True,
                    "commitOid": new,
                    "commitUrl": f"{self.base}/{id}/commit/{new}",
                    "hookOutput": "",
                    "pullRequestUrl": pr,
                }
            )

        def info(self, q, body, id, rev="main"):
            if (repo := self._repo(id)) is None:
                return
            sha = repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            sib = []
            for p, (kind, oid, size) in sorted(repo.commits[sha]["files"].items()):
                d = {"rfilename": p}
                if q.get("blobs"):
                    d.update(size=size, blobId=oid if kind == "regular" else git_blob_oid(oid.encode()))
                    if kind == "lfs":
                        d["lfs"] = {"size": size, "sha256": oid, "pointerSize": 134}
                sib.append(d)
            card = {}
            f = repo.commits[sha]["files"].get("README.md")
            if f:
                import yaml

                m = re.match(r"^---\s*\n(.*?)\n---", repo.blobs[f[1]].decode(), re.S)
                card = (yaml.safe_load(m.group(1)) if m else {}) or {}
            d = {
                "_id": "0",
                "id": id.removeprefix("datasets/"),
                "modelId": id,
                "author": id.split("/")[-2],
                "sha": sha,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": card.get("tags") or [],
                "siblings": sib,
                "cardData": card,
            }
            for src, dst in (("pipeline_tag", "pipeline_tag"), ("library_name", "library_name")):
                if card.get(src):
                    d[dst] = card[src]
            self._json(d)

        def tree(self, q, body, id, rev, path=""):
            if (repo := self._repo(id)) is None:
                return
            sha = repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            rec = q.get("recursive", ["false"])[0].lower() in ("true", "1")
            out, dirs, pre = [], set(), (path.strip("/") + "/") if path.strip("/") else ""
            for p, (kind, oid, size) in sorted(repo.commits[sha]["files"].items()):
                if not p.startswith(pre):
                    continue
                rel = p[len(pre) :]
                if "/" in rel:
                    for i in range(1, rel.count("/") + 1):
                        d = pre + "/".join(rel.split("/")[:i])
                        if d not in dirs and (rec or i == 1):
                            dirs.add(d)
                            out.append({"type": "directory", "oid": git_blob_oid(d.encode()), "size": 0, "path": d})
                    if not rec:
                        continue
                e = {"type": "file", "oid": oid if kind == "regular" else git_blob_oid(oid.encode()), "size": size, "path": p}
                if kind == "lfs":
                    e["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
                out.append(e)
            if pre and not out:
                return self._err(404, "EntryNotFound", f"{path} does not exist on {rev}")
            self._json(out)

        def paths_info(self, q, body, id, rev):
            if (repo := self._repo(id)) is None:
                return
            sha = repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            try:
                paths = json.loads(body)["paths"]
            except ValueError:
                paths = parse_qs(body.decode()).get("paths", [])
            out = []
            for p in paths if isinstance(paths, list) else [paths]:
                f = repo.commits[sha]["files"].get(p)
                if f:
                    kind, oid, size = f
                    e = {
                        "type": "file",
                        "oid": oid if kind == "regular" else git_blob_oid(oid.encode()),
                        "size": size,
                        "path": p,
                    }
                    if kind == "lfs":
                        e["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
                    out.append(e)
            self._json(out)

        def refs(self, q, body, id):
            if (repo := self._repo(id)) is None:
                return
            br = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": s}
                for b, s in repo.branches.items()
                if not b.startswith("refs/pr/")
            ]
            self._json(
                {
                    "branches": br,
                    "converts": [],
                    "tags": [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": s} for t, s in repo.tags.items()],
                }
            )

        def commits(self, q, body, id, rev):
            if (repo := self._repo(id)) is None:
                return
            sha, out = repo.resolve(rev), []
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            while sha:
                c = repo.commits[sha]
                out.append(
                    {
                        "id": sha,
                        "title": c["title"],
                        "message": "",
                        "authors": [{"user": "user"}],
                        "date": "2026-01-01T00:00:00.000Z",
                    }
                )
                sha = c["parent"]
            self._json(out)

        def branch(self, q, body, id, name):
            if (repo := self._repo(id, write=True)) is None:
                return
            p = json.loads(body or b"{}")
            if name in repo.branches:
                return self._json({"error": "Reference already exists"}, 409)
            sha = repo.resolve(p.get("startingPoint") or "main")
            if sha is None:
                return self._err(404, "RevisionNotFound", "Invalid rev")
            repo.branches[name] = sha
            self._json({})

        def tag(self, q, body, id, rev):
            if (repo := self._repo(id, write=True)) is None:
                return
            p, sha = json.loads(body), repo.resolve(rev)
            if sha is None:
                return self._err(404, "RevisionNotFound", "Invalid rev")
            if p["tag"] in repo.tags:
                return self._json({"error": "Tag already exists"}, 409)
            repo.tags[p["tag"]] = sha
            self._json({})

        def resolve(self, q, body, id, rev, path):
            if (repo := self._repo(id)) is None:
                return
            sha = repo.resolve(rev)
            head = self.command == "HEAD"
            if sha is None:
                return self._err(404, "RevisionNotFound", f"Invalid rev id: {rev}", head=head)
            f = repo.commits[sha]["files"].get(path)
            if f is None:
                return self._err(404, "EntryNotFound", "Entry not found", head=head, extra={"X-Repo-Commit": sha})
            kind, oid, size = f
            if kind == "lfs":
                return self._send(
                    302,
                    b"",
                    {
                        "Location": f"{self.cdn}/_lfs/{oid}",
                        "X-Repo-Commit": sha,
                        "X-Linked-Size": str(size),
                        "X-Linked-ETag": f'"{oid}"',
                        "ETag": f'"{oid}"',
                    },
                    head=head,
                )
            self._blob(repo.blobs[oid], {"X-Repo-Commit": sha, "ETag": f'"{oid}"'})

        def _blob(self, data, headers):
            m = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if m and self.command == "GET":
                a, b = int(m[1]), int(m[2]) if m[2] else len(data) - 1
                return self._send(
                    206,
                    data[a : b + 1],
                    {**headers, "Content-Range": f"bytes {a}-{b}/{len(data)}", "Accept-Ranges": "bytes"},
                    ctype="application/octet-stream",
                )
            self._send(
                200, data, {**headers, "Accept-Ranges": "bytes"}, head=self.command == "HEAD", ctype="application/octet-stream"
            )

    # A repository of a data set has the key "datasets/user/name", here as in its addresses.
    H = Handler
    ID = r"(?P<id>(?:datasets/)?[\w.\-]+/[\w.\-]+)"
    ID_OF_ANY = rf"(?:models/)?{ID}"
    ROUTES = [
        ("GET", r"/api/whoami-v2", H.whoami),
        ("POST", r"/api/repos/create", H.create),
        ("DELETE", r"/api/repos/delete", H.delete),
        ("POST", r"/api/validate-yaml", H.validate_yaml),
        ("POST", rf"/api/{ID_OF_ANY}/preupload/(?P<rev>[^/]+)", H.preupload),
        ("POST", rf"/{ID[:-1]}?)\.git/info/lfs/objects/batch", H.lfs_batch),
        ("POST", rf"/{ID[:-1]}?)\.git/info/lfs/objects/verify", H.lfs_verify),
        ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", H.lfs_put),
        ("GET", r"/_lfs/(?P<oid>[0-9a-f]{64})", H.lfs_get),
        ("POST", rf"/api/{ID_OF_ANY}/commit/(?P<rev>[^/]+)", H.commit),
        ("GET", rf"/api/{ID_OF_ANY}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", H.tree),
        ("POST", rf"/api/{ID_OF_ANY}/paths-info/(?P<rev>[^/]+)", H.paths_info),
        ("GET", rf"/api/{ID_OF_ANY}/refs", H.refs),
        ("GET", rf"/api/{ID_OF_ANY}/commits/(?P<rev>[^/]+)", H.commits),
        ("POST", rf"/api/{ID_OF_ANY}/branch/(?P<name>[^/]+)", H.branch),
        ("POST", rf"/api/{ID_OF_ANY}/tag/(?P<rev>[^/]+)", H.tag),
        ("GET", rf"/api/{ID_OF_ANY}/revision/(?P<rev>[^/]+)", H.info),
        ("GET", rf"/api/{ID_OF_ANY}", H.info),
        ("GET", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", H.resolve),
    ]
    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Print what went wrong in a thread, but for a client that hung up: that is no fault of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class MiniHub:
    """`with MiniHub() as hub: hub.endpoint` (also usable as a pytest fixture)."""

    def __init__(self, port: int = 0, tokens=None):
        self.hub = Hub(tokens)
        self.server = _Server(("127.0.0.1", port), make_handler(self.hub))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


class LoopbackSession:
    """huggingface_hub before 2 validates cards at a fixed address, whatever HF_ENDPOINT says."""

    def __init__(self, hub):
        self.hub = hub

    def post(self, url, **arguments):
        from huggingface_hub.utils import get_session  # not before HF_ENDPOINT is set

        return get_session().post(url.replace("https://huggingface.co", self.hub.endpoint), **arguments)


if __name__ == "__main__":
    import sys

    m = MiniHub(int(sys.argv[1]) if len(sys.argv) > 1 else 8899)
    print(m.endpoint, flush=True)
    m.server.serve_forever()
