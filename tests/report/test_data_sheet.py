"""The HTML sheet of a data set shows findings and statistics, and escapes all that comes from the data."""

from html.parser import HTMLParser
from pathlib import Path

from mnv4_mm.data.checked import CheckedData, Count, SplitStatistics
from mnv4_mm.data.findings import Finding
from mnv4_mm.report.data_sheet import MAX_FINDINGS, data_sheet

HOSTILE = '<script>alert(1)</script>"\'&'


class Parser(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith('on') or name in ('src', 'href') for name, _ in attrs)
        if tag not in ('meta',):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page: str) -> Parser:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def checked(root: Path, **changes) -> CheckedData:
    train = SplitStatistics(3, 5, 1, {HOSTILE: 5, 'dog': 0}, {'64x48': 3}, {HOSTILE: [1.5, 2.0, 9.0], 'dog': []})
    val = SplitStatistics(1, 1, 0, {HOSTILE: 0, 'dog': 1}, {'64x48': 1}, {HOSTILE: [], 'dog': [4.0]})
    values = dict(
        root=root, task='detection', format='COCO JSON', classes=(HOSTILE, 'dog'), notes=(f'note {HOSTILE}',),
        findings=(Finding('box-empty', root / f'{HOSTILE}.json', f'no area {HOSTILE}', f'annotation {HOSTILE}'),),
        counts=dict(images=Count(4), boxes=Count(7, 1)), splits=dict(train=train, val=val),
    ) | changes  # fmt: skip
    return CheckedData(**values)


def test_the_page_is_whole_and_escaped(tmp_path):
    page = data_sheet(checked(tmp_path / '<b>mine'))
    parser = parse(page)
    assert 'script' not in parser.tags
    assert 'b' in parser.tags
    text = ''.join(parser.text)
    for part in ('Data set <b>mine', f'note {HOSTILE}', f'no area {HOSTILE}', f'annotation {HOSTILE}', '3 of 64x48'):
        assert part in text
    assert '1 of 7 boxes (14.3 %) would be left out' in text
    assert 'It cannot be trained on' in text
    assert 'http' not in page


def test_what_can_be_trained_on(tmp_path):
    assert 'It cannot be trained on' not in data_sheet(checked(tmp_path), allow_dropped=True)
    text = ''.join(parse(data_sheet(checked(tmp_path, findings=(), counts=dict(images=Count(4))))).text)
    assert 'None.' in text
    assert 'It cannot be trained on' not in text


def test_not_every_finding_of_thousands_is_listed(tmp_path):
    findings = tuple(Finding('box-empty', tmp_path / 'a', f'problem {i}') for i in range(MAX_FINDINGS + 5))
    text = ''.join(parse(data_sheet(checked(tmp_path, findings=findings))).text)
    assert 'and 5 more' in text
    assert f'problem {MAX_FINDINGS - 1}' in text
    assert f'problem {MAX_FINDINGS}' not in text
