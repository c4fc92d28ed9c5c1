"""The API form under tests/data/api is what the host's own front end makes of the shipped workflows."""

import export_api
import pytest


def test_api_form_is_what_the_front_end_makes():
    problem = export_api.what_is_missing()
    if problem:
        pytest.skip(problem)
    assert export_api.differences(export_api.export()) == "", "run make api"
