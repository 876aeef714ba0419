"""docs/settings.md says what `fedlearn.config` says."""

import pytest
from pydantic import BaseModel

from support.settings_page import GROUPS, PAGE, SERVICES, page

KINDS = {**SERVICES, **GROUPS}


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: make docs"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_setting_says_what_it_means(kind: type[BaseModel]) -> None:
    silent = [name for name, field in kind.model_fields.items() if not field.description and name not in GROUPS]
    assert not silent


def test_every_group_of_a_service_is_on_the_page() -> None:
    groups = {
        name
        for service in SERVICES.values()
        for name, field in service.model_fields.items()
        if field.annotation in GROUPS.values()
    }
    assert groups == set(GROUPS)
