// Records what the JavaScript clients of InfluxDB send: client.mjs FOLDER
//
// Needs the packages @influxdata/influxdb-client, @influxdata/influxdb-client-apis, influx and
// @influxdata/influxdb3-client, and an address in JS_V1, JS_V2 or JS_V3 for each session that is wanted (recorder.py
// sets them). The truth goes to FOLDER.

import { HealthAPI, PingAPI, ReadyAPI } from "@influxdata/influxdb-client-apis";
import { InfluxDB, Point } from "@influxdata/influxdb-client";
import * as v3 from "@influxdata/influxdb3-client";
import * as v1 from "influx";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = process.argv[2];
const points = JSON.parse(readFileSync(fileURLToPath(new URL("points.json", import.meta.url)), "utf8"));
const token = "a-token-of-no-worth";
// 2026-03-01T12:00:00.123456789Z
const start = 1_772_366_400_123_456_789n;
const units = { s: 1_000_000_000n, ms: 1_000_000n, us: 1_000n, ns: 1n };

// A JSON number that tells a float from an integer.
function number(kind, value) {
  const text = String(value);
  return kind === "float" && !/[.e]/.test(text) ? `${text}.0` : text;
}

class Session {
  #lines = [];
  #seconds = 0n;

  constructor(name) {
    this.name = name;
  }

  time(unit) {
    const time = start + ++this.#seconds * units.s;
    return time - (time % units[unit]);
  }

  given(measurement, tags, fields, time) {
    const kept = Object.fromEntries(Object.entries(tags).filter(([, text]) => text !== ""));
    const values = Object.entries(fields).map(([name, [kind, value]]) => {
      const json = kind === "float" || kind === "int" ? number(kind, value) : JSON.stringify(value);
      return `${JSON.stringify(name)}: ${json}`;
    });
    const begin = `"measurement": ${JSON.stringify(measurement)}, "tags": ${JSON.stringify(kept)}`;
    this.#lines.push(`{${begin}, "fields": {${values.join(", ")}}, "time_ns": ${time}}\n`);
  }

  // The points of points.json, each a second after the one before. Integers that JavaScript's numbers do not hold are
  // left out. `numbers` may say that all numbers are meant as floats, `rename` changes the measurement.
  *points(unit, { kind = "ordinary", tags = {}, numbers = "typed", rename = (name) => name } = {}) {
    for (const { measurement, ...point } of points[kind].map((p) => ({ ...p, measurement: rename(p.measurement) }))) {
      const time = this.time(unit);
      const fields = {};
      for (const [name, typed] of Object.entries(point.fields)) {
        const [[type, raw]] = Object.entries(typed);
        const value = type === "int" ? Number(raw) : raw;
        if (type !== "int" || Number.isSafeInteger(value)) {
          fields[name] = [type === "int" && numbers === "floats" ? "float" : type, value];
        }
      }
      this.given(measurement, { ...point.tags, ...tags }, fields, time);
      yield { measurement, tags: point.tags, fields, time: String(time / units[unit]) };
    }
  }

  end() {
    writeFileSync(`${folder}/${this.name}.truth.jsonl`, this.#lines.join(""));
  }
}

function asPoint({ measurement, tags, fields, time }) {
  const point = new Point(measurement).timestamp(time);
  for (const [name, text] of Object.entries(tags)) point.tag(name, text);
  const setters = { float: "floatField", int: "intField", bool: "booleanField", string: "stringField" };
  for (const [name, [kind, value]] of Object.entries(fields)) point[setters[kind]](name, value);
  return point;
}

async function useV2(session, url) {
  const client = new InfluxDB({ url, token });
  await new PingAPI(client).getPing();
  await new HealthAPI(client).getHealth();
  await new ReadyAPI(client).getReady();
  const short = client.getWriteApi("our home", "home", "ms");
  const time = session.time("ms");
  const fields = { value: ["float", 1], count: ["int", 1], on: ["bool", true] };
  session.given("dated", { by: "hand" }, fields, time);
  const dated = { measurement: "dated", tags: { by: "hand" }, fields, time: new Date(Number(time / units.ms)) };
  short.writePoint(asPoint(dated));
  await short.close();
  for (const unit of Object.keys(units)) {
    const api = client.getWriteApi("our home", "home/autogen", unit);
    api.writePoints([...session.points(unit)].map(asPoint));
    await api.close();
  }
  // Longer than 1000 bytes, and so compressed.
  const long = client.getWriteApi("home", "home", "ns");
  for (let round = 0; round < 3; round++) long.writePoints([...session.points("ns")].map(asPoint));
  await long.close();
  const tags = { via: "all, of=them" };
  const plain = client.getWriteApi("home", "home", "ns", { gzipThreshold: 1_000_000, batchSize: 3, defaultTags: tags });
  plain.writePoints([...session.points("ns", { tags })].map(asPoint));
  await plain.close();
  const raw = client.getWriteApi("home", "home", "s");
  const seconds = session.time("s");
  session.given("raw", { by: "hand" }, { value: ["float", 1.5] }, seconds);
  raw.writeRecord(`raw,by=hand value=1.5 ${seconds / units.s}`);
  session.given("no time", { by: "hand" }, { value: ["float", 2.5] }, null);
  raw.writePoint(new Point("no time").tag("by", "hand").floatField("value", 2.5).timestamp(""));
  await raw.close();
}

async function useV2Odd(session, url) {
  const api = new InfluxDB({ url, token }).getWriteApi("home", "home");
  api.writePoints([...session.points("ns", { kind: "odd" })].map(asPoint));
  await api.close();
}

function plain({ measurement, tags, fields, time }) {
  const values = Object.entries(fields).map(([name, [, value]]) => [name, value]);
  return { measurement, tags, fields: Object.fromEntries(values), timestamp: time };
}

// What this library writes in a way that can be read: it does not leave out tags without a text, and does not escape
// measurements.
function readable(point) {
  const { tags, ...rest } = plain(point);
  return { ...rest, tags: Object.fromEntries(Object.entries(tags).filter(([, text]) => text !== "")) };
}

function simple(measurement) {
  return measurement.replace(/[ ,]+/g, "_");
}

function schema(database) {
  const types = { float: "FLOAT", int: "INTEGER", bool: "BOOLEAN", string: "STRING" };
  return points.ordinary.map(({ measurement, tags, fields }) => {
    const typed = Object.entries(fields).map(([name, value]) => [name, v1.FieldType[types[Object.keys(value)[0]]]]);
    return { database, measurement: simple(measurement), tags: Object.keys(tags), fields: Object.fromEntries(typed) };
  });
}

async function useV1(session, url) {
  const { hostname: host, port } = new URL(url);
  const account = { username: "gateway", password: "of no worth" };
  const client = new v1.InfluxDB({ host, port: Number(port), database: "home", ...account });
  await client.ping(5000);
  await client.getDatabaseNames();
  await client.createDatabase("home");
  // Without a schema every number is a float.
  await client.writePoints([...session.points("ns", { rename: simple, numbers: "floats" })].map(readable));
  for (const [unit, precision] of [["s", "s"], ["ms", "ms"], ["us", "u"]]) {
    const floats = [...session.points(unit, { rename: simple, numbers: "floats" })];
    await client.writePoints(floats.map(readable), { precision });
  }
  const typed = new v1.InfluxDB({ host, port: Number(port), database: "home", ...account, schema: schema("home") });
  await typed.writePoints([...session.points("ns", { rename: simple })].map(readable), { retentionPolicy: "autogen" });
  const time = session.time("ms");
  session.given("dated", { by: "hand" }, { value: ["float", 1] }, time);
  const dated = { tags: { by: "hand" }, fields: { value: 1 }, timestamp: new Date(Number(time / units.ms)) };
  await client.writeMeasurement("dated", [dated]);
  session.given("no_time", { by: "hand" }, { value: ["float", 2.5] }, null);
  await client.writeMeasurement("no_time", [{ tags: { by: "hand" }, fields: { value: 2.5 } }]);
}

async function useV1Odd(session, url) {
  const { hostname: host, port } = new URL(url);
  const client = new v1.InfluxDB({ host, port: Number(port), database: "home" });
  await client.writePoints([...session.points("ns", { kind: "odd" })].map(plain));
  await client.writePoints([...session.points("ns", { numbers: "floats" })].map(plain));
}

function asPoint3({ measurement, tags, fields, time }) {
  const point = v3.Point.measurement(measurement).setTimestamp(time);
  for (const [name, text] of Object.entries(tags)) point.setTag(name, text);
  const setters = { float: "setFloatField", int: "setIntegerField", bool: "setBooleanField", string: "setStringField" };
  for (const [name, [kind, value]] of Object.entries(fields)) point[setters[kind]](name, value);
  return point;
}

async function useV3(session, url) {
  const client = new v3.InfluxDBClient({ host: url, token, database: "home" });
  await client.getServerVersion();
  for (const precision of Object.keys(units)) {
    await client.write([...session.points(precision)].map(asPoint3), undefined, undefined, { precision });
  }
  await client.write([...session.points("ns")].map(asPoint3), "other home", "our home", { gzipThreshold: 100 });
  await client.write([...session.points("ns")].map(asPoint3), undefined, undefined, { noSync: true });
  const time = session.time("ns");
  session.given("raw", { by: "hand" }, { value: ["float", 1.5] }, time);
  await client.write(`raw,by=hand value=1.5 ${time}`);
  await client.close();
}

const sessions = {
  JS_V1: ["js-v1", useV1],
  JS_V1_ODD: ["js-v1-odd", useV1Odd],
  JS_V2: ["js-v2", useV2],
  JS_V2_ODD: ["js-v2-odd", useV2Odd],
  JS_V3: ["js-v3", useV3],
};
for (const [variable, [name, use]] of Object.entries(sessions)) {
  if (!process.env[variable]) continue;
  const session = new Session(name);
  await use(session, process.env[variable]);
  session.end();
}
