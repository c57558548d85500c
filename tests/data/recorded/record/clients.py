"""Records what the Python clients of InfluxDB send.

    clients.py FOLDER

Needs the packages `influxdb`, `influxdb-client` and `influxdb3-python`, and `curl`.
"""

import functools
import gzip
import json
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import influxdb
import influxdb_client
import influxdb_client_3
from influxdb_client.client.warnings import MissingPivotFunction
from influxdb_client.client.write_api import ASYNCHRONOUS, SYNCHRONOUS, PointSettings
from recorder import Recorder

POINTS = json.loads((Path(__file__).parent / "points.json").read_text(encoding="utf-8"))
TOKEN = "a-token-of-no-worth"
# 2026-03-01T12:00:00.123456789Z
START = 1_772_366_400_123_456_789
UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


def value(typed):
    """The value that points.json means."""
    ((kind, raw),) = typed.items()
    return {"int": int, "float": float, "bool": bool, "string": str}[kind](raw)


class Session:
    """A recorded session and its truth: the points that the client is given."""

    def __init__(self, folder, name, influx):
        self.recorder = Recorder(folder / f"{name}.jsonl", influx)
        self.url = self.recorder.url
        self.truth = open(folder / f"{name}.truth.jsonl", "w", encoding="utf-8", newline="\n")
        self.seconds = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.truth.close()
        self.recorder.close()

    def time(self, unit="ns"):
        """The next second, in nanoseconds, with no finer digits than `unit`."""
        self.seconds += 1
        time = START + self.seconds * UNIT["s"]
        return time - time % UNIT[unit]

    def given(self, measurement, tags, fields, time_ns):
        """Writes a point down as truth. A tag with no text is no tag, a field with no value no field."""
        tags = {name: text for name, text in tags.items() if text != ""}
        fields = {name: value for name, value in fields.items() if value is not None}
        point = {"measurement": measurement, "tags": tags, "fields": fields, "time_ns": time_ns}
        self.truth.write(json.dumps(point, ensure_ascii=False) + "\n")

    def points(self, unit="ns", kind="ordinary", tags=None, convert=None, newlines=True):
        """The points of points.json, each a second after the one before, as dictionaries, which all these clients
        take; their times are converted with `convert`, or are whole numbers of `unit`. Texts of several lines can be
        left out."""
        points = []
        for point in POINTS[kind]:
            time = self.time(unit)
            fields = {name: value(typed) for name, typed in point["fields"].items()}
            fields = {name: value for name, value in fields.items() if newlines or "\n" not in str(value)}
            self.given(point["measurement"], point["tags"] | (tags or {}), fields, time)
            points.append(
                {
                    "measurement": point["measurement"],
                    "tags": dict(point["tags"]),
                    "fields": dict(fields),
                    "time": convert(time) if convert else time // UNIT[unit],
                }
            )
        return points

    def one(self, measurement, time_ns, **fields):
        self.given(measurement, {"by": "hand"}, fields, time_ns)
        return {"measurement": measurement, "tags": {"by": "hand"}, "fields": fields}

    def line(self):
        time = self.time()
        self.given("raw", {"by": "hand, too"}, {"value": 1.5, "count": 2, "on": True, "text": 'a "b"'}, time)
        return rf'raw,by=hand\,\ too value=1.5,count=2i,on=T,text="a \"b\"" {time}'


def as_datetime(time_ns):
    return datetime.fromtimestamp(time_ns // UNIT["s"], UTC).replace(
        microsecond=time_ns % UNIT["s"] // UNIT["us"]
    )


def as_text(time_ns):
    return as_datetime(time_ns).isoformat()


def v1(session):
    # In a text this library writes a newline as a backslash and an n.
    points = functools.partial(session.points, newlines=False)
    options = {"host": "127.0.0.1", "port": session.recorder.port, "username": "gateway", "password": "of no worth"}
    client = influxdb.InfluxDBClient(database="home", **options)
    client.ping()
    client.get_list_database()
    client.create_database("home")
    client.create_retention_policy("week", "7d", "1")
    client.write_points(points())
    client.write_points(points("us", convert=as_datetime))
    client.write_points(points("us", convert=as_text), retention_policy="week")
    tags = {"via": "tags for all"}
    client.write_points(points("s", tags=tags), time_precision="s", tags=tags)
    client.write_points(points("ms"), time_precision="ms", database="other home")
    client.write_points(points("us"), time_precision="u", consistency="any")
    client.write_points(points("s", convert=as_datetime), time_precision="s", batch_size=3)
    client.write_points([session.one("no time", None, value=1.0, count=1, on=True)])
    client.write_points([session.line(), session.line()], protocol="line")
    client.write_points([])
    client.query('SELECT mean("temperature") FROM "weather" WHERE time > now() - 1h GROUP BY time(5m)', epoch="ms")
    client.close()
    zipped = influxdb.InfluxDBClient(database="home", gzip=True, **options)
    zipped.write_points(points())
    zipped.close()


def v1_odd(session):
    client = influxdb.InfluxDBClient("127.0.0.1", session.recorder.port, database="home")
    client.write_points(session.points(kind="odd"))
    client.write_points(session.points())
    time = session.time()
    nothing = {"measurement": "no field", "tags": {}, "fields": {"value": None}, "time": time}
    infinite = {"measurement": "not finite", "tags": {}, "fields": {"a": float("nan"), "b": float("inf")}, "time": time}
    last = session.one("after", time, value=None, count=1) | {"time": time}
    client.write_points([nothing, last])
    client.write_points([infinite, last])
    client.close()


def refused(call):
    """Makes a call that is answered with an error."""
    try:
        call()
    except influxdb_client.rest.ApiException:
        return
    raise AssertionError("this call is answered with an error")


def v2(session):
    client = influxdb_client.InfluxDBClient(url=session.url, token=TOKEN, org="our home")
    client.ping()
    client.health()
    client.ready()
    client.version()
    client.build()
    client.buckets_api().find_bucket_by_name("home/autogen")
    with client.write_api(write_options=SYNCHRONOUS) as api:
        for unit in UNIT:
            api.write("home", record=session.points(unit), write_precision=unit)
        api.write("home/autogen", record=session.points("us", convert=as_datetime))
        api.write("home", "another home", record=session.points("us", convert=as_text), write_precision="us")
        points = session.points("ms")
        api.write("home", record=[influxdb_client.Point.from_dict(point, "ms") for point in points])
        api.write("home", record=session.one("no time", None, value=1.0, count=1, on=True))
        api.write("home", record=session.line())
        api.write("home", record=[session.line(), session.line()])
        api.write("home", record=(session.line() + "\n" + session.line() + "\n").encode())
        refused(lambda: api.write("home", record=""))
    with client.write_api(write_options=ASYNCHRONOUS) as api:
        api.write("home", record=session.points()).get()
    settings = PointSettings(via="the batch, later")
    options = influxdb_client.WriteOptions(batch_size=3, flush_interval=60_000)
    with client.write_api(options, settings) as api:
        for point in session.points(tags={"via": "the batch, later"}):
            api.write("home", record=point)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingPivotFunction)
        refused(lambda: client.query_api().query('from(bucket: "home") |> range(start: -1h)'))
    client.close()
    with influxdb_client.InfluxDBClient(url=session.url, token=TOKEN, org="home", enable_gzip=True) as zipped:
        zipped.write_api(write_options=SYNCHRONOUS).write("home", record=session.points())
    # What stands for a user and a password where the server is InfluxDB 1.8.
    with influxdb_client.InfluxDBClient(url=session.url, token="gateway:of no worth", org="-") as old:
        old.write_api(write_options=SYNCHRONOUS).write("home/autogen", record=session.points())


def v2_odd(session):
    with influxdb_client.InfluxDBClient(url=session.url, token=TOKEN, org="home") as client:
        api = client.write_api(write_options=SYNCHRONOUS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            api.write("home", record=session.points(kind="odd"))
        time = session.time()
        nothing = {"measurement": "no field", "tags": {}, "fields": {"value": None}, "time": time}
        infinite = {"measurement": "not finite", "tags": {}, "fields": {"a": float("nan")}, "time": time}
        last = session.one("after", time, value=None, count=1) | {"time": time}
        api.write("home", record=[nothing, infinite, last])


def v3(session):
    def connect(**options):
        return influxdb_client_3.InfluxDBClient3(host=session.url, token=TOKEN, database="home", **options)

    def writing(**options):
        options = influxdb_client_3.WriteOptions(**({"write_type": influxdb_client_3.WriteType.synchronous} | options))
        return influxdb_client_3.write_client_options(write_options=options)

    with connect() as client:
        client.get_server_version()
        for unit in UNIT:
            client.write(session.points(unit), write_precision=unit)
        client.write(session.points("us", convert=as_datetime), database="other home")
        client.write(session.one("no time", None, value=1.0, count=1, on=True))
        client.write(session.line())
    with connect(write_client_options=writing(use_v2_api=False)) as client:
        for unit in UNIT:
            client.write(session.points(unit), write_precision=unit)
    with connect(write_client_options=writing(use_v2_api=False, no_sync=True, accept_partial=False)) as client:
        client.write(session.points())
    with connect(enable_gzip=True) as client:
        client.write(session.points())
    batching = {"write_type": influxdb_client_3.WriteType.batching, "batch_size": 3, "flush_interval": 60_000}
    with connect(write_client_options=writing(**batching)) as client:
        for point in session.points():
            client.write(point)


def curl(session):
    """The calls of InfluxDB's own documentation, versions 1 and 2, with other points."""

    def run(*arguments, stdin=None):
        subprocess.run(["curl", "-sS", "-o", "/dev/null", *arguments], input=stdin, check=True)

    run("-I", f"{session.url}/ping")
    run("-XPOST", f"{session.url}/query", "--data-urlencode", "q=CREATE DATABASE mydb")
    run("-i", "-XPOST", f"{session.url}/write?db=mydb", "--data-binary", session.line())
    lines = "\n".join(session.line() for _ in range(3)) + "\n"
    run("-i", "-XPOST", f"{session.url}/write?db=mydb", "--data-binary", "@-", stdin=lines.encode())
    time = session.time("s")
    session.given("room", {"name": "attic"}, {"value": 4.0}, time)
    run("-XPOST", f"{session.url}/write?db=mydb&precision=s", "-u", "gateway:of no worth",
        "--data-binary", f"room,name=attic value=4 {time // UNIT['s']}")
    session.given("room", {"name": "attic"}, {"value": 4.5}, None)
    run("-XPOST", f"{session.url}/write?db=mydb&u=gateway&p=of+no+worth", "--data-binary", "room,name=attic value=4.5")
    run("--request", "POST", f"{session.url}/api/v2/write?org=home&bucket=mydb&precision=ns",
        "--header", f"Authorization: Token {TOKEN}", "--header", "Content-Type: text/plain; charset=utf-8",
        "--header", "Accept: application/json", "--data-binary", f"\n    {session.line()}\n    {session.line()}\n    ")
    zipped = gzip.compress("\n".join(session.line() for _ in range(3)).encode(), mtime=0)
    run("--request", "POST", f"{session.url}/api/v2/write?org=home&bucket=mydb",
        "--header", f"Authorization: Token {TOKEN}", "--header", "Content-Encoding: gzip", "--data-binary", "@-",
        stdin=zipped)
    run("-G", f"{session.url}/query?pretty=true", "--data-urlencode", "db=mydb", "--data-urlencode",
        'q=SELECT "value" FROM "room"')


def main():
    (folder,) = map(Path, sys.argv[1:])
    for name, influx, session in [
        ("python-v1", 1, v1),
        ("python-v1-odd", 1, v1_odd),
        ("python-v2", 2, v2),
        ("python-v2-odd", 2, v2_odd),
        ("python-v3", 2, v3),
        ("curl", 1, curl),
    ]:
        with Session(folder, name, influx) as recorded:
            session(recorded)


if __name__ == "__main__":
    main()
