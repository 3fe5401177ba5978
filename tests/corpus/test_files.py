"""Find the files of a log: paths, folders, globs, Hive folders, and a bucket with an S3 API."""

import os

import pandas as pd
import pyarrow.fs
import pytest

from clue_ray.corpus.logs.files import find_files
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec

FRAME = pd.DataFrame(
    {"user_id": ["u", "v"], "service": ["s", "s"], "timestamp": [1, 2], "text": ["a b", "c"]}
)


def names(found):
    return [os.path.basename(file.path) for file in found]


def test_folder_and_glob(tmp_path):
    for name in (
        "b.csv",
        "a.csv",
        "deep/er/c.csv",
        "notes.txt",
        "_SUCCESS",
        ".hidden.csv",
        "_temporary/d.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        FRAME.to_csv(tmp_path / name, index=False)
    assert names(find_files([str(tmp_path)])) == ["a.csv", "b.csv", "c.csv"]
    assert names(find_files([f"{tmp_path}/*.csv"])) == ["a.csv", "b.csv"]
    assert names(find_files([f"{tmp_path}/**/*.csv"])) == ["a.csv", "b.csv", "c.csv"]
    assert names(find_files([f"{tmp_path}/[b].csv", f"{tmp_path}/deep"])) == ["b.csv", "c.csv"]
    assert names(find_files([f"{tmp_path}/a.csv", f"{tmp_path}/*.csv"])) == ["a.csv", "b.csv"]
    assert names(find_files([f"file://{tmp_path}"])) == names(
        find_files([f"file://{tmp_path}/**/*.csv"])
    )
    assert names(find_files([f"file://{tmp_path}/a.csv"])) == ["a.csv"]


def test_relative_paths_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FRAME.to_csv(tmp_path / "what[1]?.csv", index=False)
    FRAME.to_csv(tmp_path / "b c.csv.gz", index=False)
    assert names(find_files(["what[1]?.csv"])) == ["what[1]?.csv"]
    assert names(find_files(["*.gz"])) == ["b c.csv.gz"]
    assert find_files(["b c.csv.gz"])[0].format == "csv"


@pytest.mark.parametrize("pattern", ["*.csv", "a?.csv", "**/*.csv", "[b]/../a1.csv", ""])
def test_a_glob_in_a_folder_with_brackets_in_its_name(tmp_path, pattern):
    folder = tmp_path / "[b] x?"
    (folder / "[b]").mkdir(parents=True)
    FRAME.to_csv(folder / "a1.csv", index=False)
    FRAME.to_csv(tmp_path / "b x.csv", index=False)  # what [b] would match
    assert names(find_files([f"{folder}/{pattern}"])) == ["a1.csv"]


@pytest.mark.parametrize("place", ["", "\udcff.csv", "*.csv"])
def test_a_name_that_is_not_utf8(tmp_path, place):
    with open(os.fsencode(tmp_path) + b"/\xff.csv", "w") as file:
        file.write(FRAME.to_csv(index=False))
    with pytest.raises(EventLogError, match=r"ff\.csv'.* not UTF-8; rename it") as error:
        find_files([f"{tmp_path}/{place}"])
    str(error.value).encode()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("none.parquet", "does not exist"),
        ("*.parquet", "matches no file"),
        ("log.xlsx", "ends in '.xlsx'"),
        ("empty", "has no event files"),
        ("ftp://host/log.parquet", "unknown scheme 'ftp'"),
        ("s3://me:secret@bucket/log.parquet", "contains a password"),
        ("s3://me:sec/ret@bucket/log.parquet", r"^Event log s3://me:\.\.\. contains a password"),
        (
            "abfs://c@a/x?client_secret=hush",
            r"^Event log abfs://c@a/x contains a secret .client_secret.",
        ),
        ("s3://bucket/x?aws_secret_access_key=hush", "contains a secret"),
        ("abfs://c@a/x?SharedAccessSignature=hush", "contains a secret"),
        (
            "s3://b/x?endpoint_override=http://me:hush@host",
            r"^Event log s3://b/x contains a secret .endpoint_override.",
        ),
    ],
)
def test_places_without_event_files(tmp_path, place, words):
    (tmp_path / "log.xlsx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EventLogError, match=words) as error:
        find_files([place if "://" in place else str(tmp_path / place)])
    assert "\n" not in str(error.value)
    assert not any(hidden in str(error.value) for hidden in ("hush", "me:sec", "ret@bucket"))


def rows_of(spec):
    reading = plan_reading(spec)
    return [
        row
        for part in reading.parts
        for b in read_part(part, reading.logs[part.log])
        for row in b.table.to_pylist()
    ]


def test_folders_become_columns(tmp_path):
    for service, day in [
        ("search", "2020-01-01"),
        ("search", "2020-01-02"),
        ("a%20shop", "2020-01-01"),
    ]:
        folder = tmp_path / f"service={service}" / f"day={day}"
        folder.mkdir(parents=True)
        FRAME.drop(columns=["service", "timestamp"]).to_parquet(folder / "part-0.parquet")
    spec = CorpusSpec(events=str(tmp_path), columns={"timestamp": "day"})
    rows = rows_of(spec)
    assert {(row["service"], row["day"]) for row in rows} == {
        ("search", "2020-01-01"),
        ("search", "2020-01-02"),
        ("a shop", "2020-01-01"),
    }
    assert len(rows) == 6
    assert rows_of(spec.model_copy(update={"events": f"{tmp_path}/*/*/*.parquet"})) == rows


@pytest.fixture(scope="module")
def bucket(s3_query):
    """A bucket with a few logs, as a function from a path in it to a URI."""
    store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://logs{s3_query}&allow_bucket_creation=true")
    store.create_dir("logs")
    for n, service in enumerate(("search", "shop")):
        frame = FRAME.assign(service=service)
        with store.open_output_stream(f"logs/year/part-{n}.parquet") as sink:
            frame.to_parquet(sink)
    with store.open_output_stream("logs/lines/a.jsonl.gz", compression="gzip") as sink:
        sink.write(FRAME.to_json(orient="records", lines=True).encode())
    return lambda path: f"s3://logs/{path}{s3_query}"


@pytest.mark.parametrize("path", ["year", "year/", "year/*.parquet", "ye*/**"])
def test_a_bucket_reads_like_a_folder(bucket, path):
    rows = rows_of(CorpusSpec(events=bucket(path)))
    assert [row["service"] for row in rows] == ["search", "search", "shop", "shop"]
    assert "s3://logs/year/part-0.parquet" in str(find_files([bucket(path)])[0])


def test_packed_lines_in_a_bucket(bucket):
    assert [row["text"] for row in rows_of(CorpusSpec(events=bucket("lines/a.jsonl.gz")))] == [
        "a b",
        "c",
    ]


@pytest.mark.parametrize(
    ("place", "words"), [("nothing/here.parquet", "does not exist"), ("lines/*.csv", "no file")]
)
def test_missing_keys_of_a_bucket(bucket, place, words):
    with pytest.raises(EventLogError, match=words):
        find_files([bucket(place)])


@pytest.mark.parametrize("path", ["x.parquet", "events/", "*.parquet"])
def test_a_missing_bucket(bucket, path):
    with pytest.raises(EventLogError, match="the bucket does not exist"):
        find_files([bucket(path).replace("s3://logs", "s3://nologs")])


def test_keys_with_odd_characters(bucket):
    store = pyarrow.fs.FileSystem.from_uri(bucket(""))[0]
    with store.open_output_stream("logs/odd keys/a #1.csv") as sink:
        sink.write(FRAME.to_csv(index=False).encode())
    assert (
        names(find_files([bucket("odd keys/a #1.csv")]))
        == names(find_files([bucket("odd%20keys")]))
        == ["a #1.csv"]
    )
    with store.open_output_stream("logs/[odd]/a1.csv") as sink:
        sink.write(FRAME.to_csv(index=False).encode())
    assert names(find_files([bucket("[odd]/a*.csv")])) == ["a1.csv"]


def test_a_bucket_that_denies_access():
    """A server that answers every request with 403, as S3 does without credentials."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Deny(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Deny)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"s3://logs/PATH?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    for path in ("x.parquet", "x/*.csv"):
        with pytest.raises(EventLogError, match="access is denied, 403") as error:
            find_files([uri.replace("PATH", path)])
        assert "\n" not in str(error.value)
    server.shutdown()
