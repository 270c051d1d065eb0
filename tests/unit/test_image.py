"""docker/: every container keeps to the same limits, and every setting in the files is one."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_each_profile_has_one_service_that_this_machine_alone_can_reach():
    entries = {name: service for name, service in SERVICES.items() if "ports" in service}
    assert {name: service["profiles"] for name, service in entries.items()} == {
        "cpu": ["cpu"],
        "cuda": ["cuda"],
        "haproxy": ["many"],
    }
    for service in entries.values():
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert service["networks"]["default"]["aliases"] == ["canary"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_may_write_to_its_root_or_gain_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["cpu", "cuda", "server"])
def test_a_server_has_time_to_stop_and_cannot_start_without_keys(name):
    service = SERVICES[name]
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings(_env_file=None).shutdown_s
    assert service["environment"]["CANARY_API_KEYS"].startswith("${CANARY_API_KEYS:?")
    assert service["volumes"] == ["cache:/cache"]
    assert service["init"] is True


def test_the_gpu_is_given_to_the_image_that_uses_it_and_to_no_other():
    (device,) = SERVICES["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert SERVICES["cuda"]["build"]["args"] == {"EXTRAS": "cuda12"}
    assert SERVICES["cuda"]["image"] != SERVICES["cpu"]["image"]
    assert "deploy" not in SERVICES["cpu"]


def test_haproxy_finds_the_servers_by_the_name_of_their_service_and_gets_files_that_exist():
    command, mounted = SERVICES["haproxy"]["command"], SERVICES["haproxy"]["volumes"]
    assert mounted == ["./balancers:/etc/haproxy:ro"]
    files = [DOCKER / "balancers" / Path(word).name for word in command if word.startswith("/etc/haproxy/")]
    assert [file.is_file() for file in files] == [True, True]
    assert re.search(r"^    server-template \S+ 1-16 server:8000 ", files[1].read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml", "rehearse.sh"])
def test_each_variable_in_the_files_is_a_setting(file):
    text = (DOCKER / file).read_text(encoding="utf-8")
    named = set(re.findall(r"\bCANARY_[A-Z_]*[A-Z]\b", text))
    assert named
    assert named <= {f"CANARY_{field.upper()}" for field in Settings.model_fields}


def test_the_image_runs_as_an_unprivileged_user_and_installs_from_wheels_alone():
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "--only-binary :all: --constraint constraints.txt" in DOCKERFILE
    assert "apt-get" not in DOCKERFILE
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${PYTHON}", "${PYTHON}"]


def test_haproxy_sends_a_server_no_more_requests_than_it_may_queue():
    """Or one that refuses gets more than its share, since it has the fewest in progress."""
    text = (DOCKER / "balancers" / "haproxy.cfg").read_text(encoding="utf-8")
    (limit,) = re.findall(r"^    default-server .* maxconn (\d+)$", text, re.MULTILINE)
    settings = Settings(_env_file=None)
    assert int(limit) == settings.max_queue
    assert int(limit) < settings.max_connections_per_address
