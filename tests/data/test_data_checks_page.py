"""docs/data_checks.md lists each kind of finding with its rule and what is done."""

import re

from mnv4_mm.data.findings import KINDS


def test_the_page_lists_the_kinds(repository):
    text = (repository / 'docs/data_checks.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `([\w-]+)` \| (\w+) \| (.+) \|$', text, re.M)
    assert rows == [(slug, kind.rule.value, kind.remedy) for slug, kind in KINDS.items()]
    assert list(KINDS) == sorted(KINDS)
