"""Records what Home Assistant's integration `influxdb` sends.

    home_assistant.py FOLDER NAME

Each session's files begin with NAME. Needs the package `homeassistant` and what the integration's manifest.json asks
for, `influxdb` and `influxdb-client`, in the versions that it names. Each session starts Home Assistant's core, has it
set the integration up, sets states and stops it.
"""

import asyncio
import json
import logging
import math
import socket
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from homeassistant import bootstrap, loader
from homeassistant.auth import auth_manager_from_config
from homeassistant.components.climate import HVACAction, HVACMode
from homeassistant.components.light import ColorMode
from homeassistant.components.sensor import SensorDeviceClass, SensorStateClass
from homeassistant.config_entries import ConfigEntries
from homeassistant.const import UnitOfTemperature
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from recorder import Recorder

STATES = [
    ("sensor.kitchen_temperature", "21.4", {
        "unit_of_measurement": UnitOfTemperature.CELSIUS,
        "device_class": SensorDeviceClass.TEMPERATURE,
        "state_class": SensorStateClass.MEASUREMENT,
        "friendly_name": "Kitchen, north wall",
        "battery_level": 87,
        "linkquality": 120,
    }),
    ("sensor.kitchen_humidity", "48", {
        "unit_of_measurement": "%",
        "device_class": SensorDeviceClass.HUMIDITY,
        "friendly_name": "Kitchen humidity",
    }),
    ("sensor.living_room_pm2_5", "12.5", {
        "unit_of_measurement": "µg/m³",
        "device_class": SensorDeviceClass.PM25,
        "friendly_name": 'Living room "PM2.5"',
    }),
    ("sensor.garden_rain", "0.0", {"unit_of_measurement": "mm per hour", "friendly_name": "Rain = drops"}),
    ("sensor.odd_unit", "3", {"unit_of_measurement": 'l/100 km, "net"', "friendly_name": "Back\\slash"}),
    ("sensor.energy_total", "12345.678", {
        "unit_of_measurement": "kWh",
        "state_class": SensorStateClass.TOTAL_INCREASING,
        "last_reset": datetime(2026, 1, 1, tzinfo=UTC),
    }),
    ("sensor.washing_machine", "Rinsing, 2nd round", {"friendly_name": "Washing\nmachine", "remaining": "00:42:10"}),
    ("sensor.version", "2026.11.1", {"installed": "2026.10", "release_notes": None, "empty": ""}),
    ("sensor.limits", "1e3", {"not_a_number": float("nan"), "endless": float("inf"), "large": 2**63, "tiny": 1e-9}),
    ("sensor.lost", "unknown", {"unit_of_measurement": "°C"}),
    ("sensor.gone", "unavailable", {"friendly_name": "Gone"}),
    ("binary_sensor.front_door", "on", {"device_class": "door", "friendly_name": "Front door"}),
    ("binary_sensor.front_door", "off", {"device_class": "door", "friendly_name": "Front door"}),
    ("light.desk", "on", {
        "supported_color_modes": [ColorMode.COLOR_TEMP, ColorMode.HS],
        "color_mode": ColorMode.HS,
        "brightness": 128,
        "hs_color": (30.0, 75.5),
        "rgb_color": (255, 159, 63),
        "effect_list": ["None", "Candle, slow", 'The "disco"'],
        "effect": None,
        "friendly_name": "Desk",
        "supported_features": 44,
    }),
    ("light.desk", "off", {"supported_color_modes": [ColorMode.HS], "color_mode": None, "friendly_name": "Desk"}),
    ("climate.bedroom", HVACMode.HEAT, {
        "hvac_modes": [HVACMode.OFF, HVACMode.HEAT, HVACMode.AUTO],
        "min_temp": 5,
        "max_temp": 30.0,
        "target_temp_step": 0.5,
        "preset_modes": ["eco", "boost"],
        "current_temperature": 19.2,
        "temperature": 20,
        "hvac_action": HVACAction.HEATING,
        "preset_mode": "eco",
        "friendly_name": "Bedroom",
    }),
    ("cover.blinds", "open", {"current_position": 100, "device_class": "blind", "friendly_name": "Blinds"}),
    ("cover.blinds", "closing", {"current_position": 60, "device_class": "blind", "friendly_name": "Blinds"}),
    ("cover.blinds", "closed", {"current_position": 0, "device_class": "blind", "friendly_name": "Blinds"}),
    ("cover.blinds", "opening", {"current_position": 5, "device_class": "blind", "friendly_name": "Blinds"}),
    ("lock.front_door", "locked", {"changed_by": "Zoë"}),
    ("weather.home", "partlycloudy", {
        "temperature": 11.5,
        "temperature_unit": "°C",
        "humidity": 71,
        "pressure": 1013.2,
        "wind_bearing": 247.5,
        "wind_speed": 14.4,
        "attribution": "Weather by someone, somewhere",
        "friendly_name": "Home",
    }),
    ("device_tracker.phone", "not_home", {
        "source_type": "gps",
        "latitude": 52.520008,
        "longitude": -13.404954,
        "gps_accuracy": 12,
        "friendly_name": "Phone",
    }),
    ("person.ada", "home", {"editable": True, "id": "ada", "device_trackers": ["device_tracker.phone"]}),
    ("sun.sun", "below_horizon", {
        "next_dawn": "2026-03-02T05:12:03.123456+00:00",
        "elevation": -12.34,
        "rising": False,
    }),
    ("input_number.set_point", "20.5", {"min": 5, "max": 30, "step": 0.5, "mode": "slider"}),
    ("input_text.note", 'say "hi", then C:\\temp\\', {"min": 0, "max": 100, "pattern": "\\d+"}),
    ("input_select.mode", "at home = yes", {"options": ["at home = yes", "away"]}),
    ("switch.pump", "on", {"value": 3, "state": "running", "power": "12 W", "ip": "192.168.1.20", "level": "v1.5 b"}),
    ("counter.visits", "7", {"step": 1}),
    ("media_player.tv", "playing", {"media_title": "Ünïcode – 📺", "volume_level": 0.35, "is_volume_muted": False}),
]
V1 = {"username": "home assistant", "password": "of no worth"}
V2 = {"api_version": 2, "ssl": False, "token": "a-token-of-no-worth", "organization": "our home"}
TAGS = {
    "default_measurement": "state",
    "measurement_attr": "domain__device_class",
    "tags": {"source": "Home Assistant", "instance": "prod"},
    "tags_attributes": ["friendly_name"],
    "ignore_attributes": ["icon", "supported_features"],
}
SESSIONS = [
    ("v1", 1, V1),
    ("v1-tags", 1, V1 | TAGS | {"database": "our home", "precision": "ms", "max_retries": 3}),
    ("v2", 2, V2),
    ("v2-tags", 2, V2 | TAGS | {"bucket": "home/autogen", "precision": "s"}),
]


def readable(value):
    """An attribute as JSON; what JSON lacks is the text that Python makes of it, as it is for the integration."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def session(folder, name, influx, options):
    with tempfile.TemporaryDirectory() as config, Recorder(folder / f"{name}.jsonl", influx) as recorder:
        hass = HomeAssistant(config)
        hass.config.skip_pip = True
        loader.async_setup(hass)
        hass.config_entries = ConfigEntries(hass, {})
        await bootstrap.async_load_base_functionality(hass)
        hass.auth = await auth_manager_from_config(hass, [], [])
        # The integration depends on `http`, which serves at every address unless it is told not to.
        configuration = {
            "http": {"server_host": "127.0.0.1", "server_port": free_port()},
            "influxdb": {"host": "127.0.0.1", "port": recorder.port} | options,
        }
        Path(config, "configuration.yaml").write_text(json.dumps(configuration), encoding="utf-8")
        assert await async_setup_component(hass, "http", configuration)
        assert await async_setup_component(hass, "influxdb", configuration)
        await hass.async_start()
        await hass.async_block_till_done()
        with open(folder / f"{name}.states.jsonl", "w", encoding="utf-8", newline="\n") as truth:
            for entity, state, attributes in STATES:
                hass.states.async_set(entity, state, attributes)
                # The time of the event that tells it, in whole microseconds.
                time = hass.states.get(entity).last_updated
                micros = (time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6
                line = {
                    "entity_id": entity,
                    "state": state,
                    "attributes": {name: readable(value) for name, value in attributes.items()},
                    "time_ns": round(micros) * 1000,
                }
                truth.write(json.dumps(line, ensure_ascii=False) + "\n")
                await asyncio.sleep(0.01)
        await hass.async_block_till_done()
        await asyncio.sleep(2)
        for entry in hass.config_entries.async_entries("influxdb"):
            await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_stop(force=True)


def main():
    logging.basicConfig(level=logging.WARNING)
    folder, prefix = sys.argv[1:]
    for name, influx, options in SESSIONS:
        asyncio.run(session(Path(folder), f"{prefix}-{name}", influx, options))


if __name__ == "__main__":
    main()
