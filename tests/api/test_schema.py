"""Requests generated from the OpenAPI document: none causes a server error, and every answer matches the document."""

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

OPERATIONS = (
    ("POST", "/transcribe"), ("POST", "/translate"), ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/audio/translations"), ("GET", "/v1/models"), ("GET", "/v1/models/{id}"), ("GET", "/health"),
    ("GET", "/ready"), ("GET", "/metrics"),
)  # fmt: skip
BOUNDED = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_generated_requests_are_answered_as_documented(serve_mock, session, method, path):
    client = serve_mock()
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=str(client.base_url))
    statuses = set()

    @BOUNDED
    @given(case=schema[path][method].as_strategy())
    def check(case) -> None:
        response = case.call(session=session)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    assert statuses <= {200, 400, 404}
    assert client.get("/health").status_code == 200


def test_every_documented_operation_is_tested(serve_mock):
    paths = serve_mock().get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)
